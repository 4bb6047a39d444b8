/**
 * Stands in for the kubelet of a node as far as the pods of the agent's DaemonSet go:
 * starts the program of the pod's image with the pod's own flags, probes it as the pod
 * says, reports what came of it, and ends it when the pod is deleted. The agents run
 * on this machine and not in a container; where a flag names a place in one, it is
 * another place here.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type Agent, startAgent } from '../../deploy/stage/agent.ts';
import { run } from '../../deploy/stage/process.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';
import { makeServiceAccount } from './kube-account.ts';
import type { KubeObject, Pod } from './kube-objects.ts';
import { KubeApiError } from './kube-api.ts';
import type { Cluster } from './kube.ts';

/** From one look at the API server to the next, and from one probe to the next. */
const LOOK_MS = 100;
const PROBE_MS = 300;

interface Probe {
  readonly failureThreshold: number;
  readonly exec?: { readonly command: readonly string[] };
  readonly httpGet?: { readonly host: string; readonly path: string };
}
interface AgentContainer {
  readonly image: string;
  readonly args: readonly string[];
  readonly readinessProbe: Probe;
}

/** What has happened on the node, in its order: `started`, `ready`, `told to go`, `gone`, each with a pod's name. */
export type Moment = readonly [what: 'started' | 'ready' | 'told to go' | 'gone', pod: string];

export interface AgentKubelet extends AsyncDisposable {
  readonly moments: readonly Moment[];
  /** Of all pods so far, by name. */
  readonly agents: ReadonlyMap<string, Agent>;
  /** What went wrong. */
  readonly problems: readonly string[];
}

export interface AgentNode {
  readonly sandbox: Sandbox;
  readonly cluster: Cluster;
  readonly node: string;
  readonly roots: { readonly cgroupRoot: string; readonly bpffsRoot: string; readonly procRoot: string };
  /** One for all its agents, as on a node. */
  readonly http: string;
  /** By an image's tag. */
  readonly programs: Readonly<Record<string, string>>;
}

export const isAgentPod = ({ metadata }: Pod): boolean =>
  metadata.labels?.['app.kubernetes.io/component'] === 'agent';

const pathOf = ({ metadata: { namespace, name } }: Pod): string =>
  `/api/v1/namespaces/${namespace}/pods/${name}`;

export function startAgentKubelet(of: AgentNode): AgentKubelet {
  const { sandbox, cluster } = of;
  const moments: Moment[] = [];
  const agents = new Map<string, Agent>();
  const known = new Map<string, Pod>();
  const leaving = new Set<string>();
  const problems: string[] = [];
  const closed = new AbortController();
  const list = `/api/v1/pods?fieldSelector=${encodeURIComponent(`spec.nodeName=${of.node}`)}`;

  async function look(): Promise<void> {
    const { items } = await cluster.api.get<{ readonly items: readonly Pod[] }>(list);
    const own = items.filter(isAgentPod);
    for (const pod of own) {
      const { name } = pod.metadata;
      if (!known.has(name)) {
        known.set(name, pod);
        void start(pod).catch((error: unknown) => problems.push(`${name}: ${String(error)}`));
      }
    }
    for (const [name, agent] of agents) {
      const pod = own.find(({ metadata }) => metadata.name === name);
      const isDeleted = pod === undefined || pod.metadata.deletionTimestamp !== undefined;
      const last = pod ?? known.get(name);
      if (!isDeleted || last === undefined || leaving.has(name)) continue;
      leaving.add(name);
      void end(last, agent).catch((error: unknown) => problems.push(`${name}: ${String(error)}`));
    }
  }

  async function start(pod: Pod): Promise<void> {
    const { name, namespace = '', uid = '' } = pod.metadata;
    const { image, args, readinessProbe } = pod.spec.containers[0] as unknown as AgentContainer;
    const program = of.programs[image.replace(/.*:/, '')];
    if (program === undefined) throw new Error(`no program for the image ${image}`);
    const directory = sandbox.file(name);
    mkdirSync(directory);
    // Files of its own, as each pod has them: its token ends with the pod.
    const account = await makeServiceAccount(cluster.api, cluster.endpoint, join(directory, 'account'), {
      name: 'cgroute',
      namespace,
      pod: { name, uid },
    });
    const { data } = await cluster.api.get<KubeObject & { data: Record<string, string> }>(
      `/api/v1/namespaces/${namespace}/configmaps/cgroute`,
    );
    writeFileSync(join(directory, 'config.yaml'), data['config.yaml'] ?? '');
    const here = (flag: string): string =>
      flag
        .replace('/etc/cgroute/', `${directory}/`)
        .replace('/run/cgroute/', `${directory}/`)
        .replace('--source=kube', '');
    const agent = startAgent(sandbox, {
      ...of.roots,
      program,
      node: of.node,
      http: of.http,
      args: args
        .slice(1)
        .filter((flag) => !/^--(http|source)=/.test(flag))
        .map(here),
      env: { KUBECONFIG: account.kubeconfig(), POD_UID: uid },
    });
    agents.set(name, agent);
    moments.push(['started', name]);
    let failures = 0;
    for (
      let before: boolean | undefined;
      !leaving.has(name) && !closed.signal.aborted;
      await delay(PROBE_MS)
    ) {
      failures = (await probe(program, readinessProbe, directory)) ? 0 : failures + 1;
      const isReady = failures < readinessProbe.failureThreshold && (before === true || failures === 0);
      if (isReady === before || leaving.has(name)) continue;
      before = isReady;
      // Once: on a busy machine probes may fail for a while after that, which is no moment of the roll.
      if (isReady && !moments.some(([what, who]) => what === 'ready' && who === name))
        moments.push(['ready', name]);
      await report(pod, isReady);
    }
  }

  async function probe(program: string, { exec, httpGet }: Probe, directory: string): Promise<boolean> {
    if (httpGet !== undefined)
      return fetch(`http://${of.http}${httpGet.path}`).then(
        ({ ok }) => ok,
        () => false,
      );
    const [, ...args] = exec?.command ?? [];
    const { code } = await run({
      cmd: program,
      args: [...args, '--probe-socket', `${directory}/probe.sock`],
    });
    return code === 0;
  }

  async function report(pod: Pod, isReady: boolean): Promise<void> {
    const now = new Date().toISOString();
    const condition = (type: string) => ({
      type,
      status: isReady ? 'True' : 'False',
      lastTransitionTime: now,
    });
    const status = {
      phase: 'Running',
      startTime: now,
      conditions: ['Ready', 'ContainersReady'].map(condition),
    };
    await cluster.api.patch(`${pathOf(pod)}/status`, 'strategic-merge-patch+json', { status });
  }

  async function end(pod: Pod, agent: Agent): Promise<void> {
    moments.push(['told to go', pod.metadata.name]);
    await agent.stop();
    moments.push(['gone', pod.metadata.name]);
    const { uid } = pod.metadata;
    await cluster.api
      .request('DELETE', pathOf(pod), { gracePeriodSeconds: 0, preconditions: { uid } })
      .catch((error: unknown) => {
        // Deleted by force, it is gone already.
        if (!(error instanceof KubeApiError && error.status === 404)) throw error;
      });
  }

  async function follow(): Promise<void> {
    for (; !closed.signal.aborted; await delay(LOOK_MS))
      await look().catch((error: unknown) => closed.signal.aborted || problems.push(String(error)));
  }
  const following = follow();
  return {
    moments,
    agents,
    problems,
    async [Symbol.asyncDispose]() {
      closed.abort();
      await following;
      for (const agent of agents.values()) await agent[Symbol.asyncDispose]();
    },
  };
}
