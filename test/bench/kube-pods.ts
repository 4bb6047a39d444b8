/**
 * Nodes of a real API server for the agent to follow, without processes: the
 * pods are objects with a status, and cgroups as a kubelet makes them.
 */
import { resolve } from 'node:path';
import PQueue from 'p-queue';
import { openPinnedMaps, type PinnedMaps } from '../../native/data-plane/maps.ts';
import type { Agent } from '../../deploy/stage/agent.ts';
import { type Cgroup, removeCgroup } from '../../deploy/stage/cgroup.ts';
import { makeServiceAccount, type ServiceAccount } from '../harness/kube-account.ts';
import { AGENT_RULES, kubeAgentSeat } from '../harness/kube-agent.ts';
import { namespaceObject, type ObjectMeta, type Pod, podObject } from '../harness/kube-objects.ts';
import type { RecordedRequest } from '../harness/kube-server.ts';
import { type Cluster, startCluster } from '../harness/kube.ts';
import { containerCgroupPath, podCgroupPath, qosOf } from '../harness/kubelet-cgroups.ts';
import { ENROLLED } from '../harness/node.ts';
import { containerId } from '../../deploy/stage/pod-cgroup.ts';
import { run } from '../../deploy/stage/process.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import { type Relay, startRelay } from './kube-relay.ts';

const PROGRAM = resolve(import.meta.dirname, '../../dist/cgroute');
/** As the section `connect` has it: ahead of whatever else the machine does (SCHED_FIFO), or its neighbours are what is measured. */
export const PRIORITY = '10';
/** Of the requests that make and delete pods. */
const AT_ONCE = 12;

export interface BenchPod {
  readonly name: string;
  readonly namespace: string;
  readonly uid: string;
  readonly ip: string;
  /** The pod's own, then its containers'. */
  readonly cgroups: readonly Cgroup[];
}

export interface BenchPodOptions {
  /** Beside those that every pod has. */
  readonly labels?: Readonly<Record<string, string>>;
  /** Default: the next one that no pod has had. */
  readonly ip?: string;
}

export interface KubeNodeBench {
  readonly name: string;
  readonly bpffsRoot: string;
  /** Between the agent and the API server. */
  readonly relay: Relay;
  /** Starts the agent as it is shipped, with real-time priority if that is wanted, and waits until it is ready. */
  start(isAhead?: boolean, env?: Readonly<Record<string, string>>): Promise<Agent>;
  /** Nothing of an agent is pinned any more. */
  cleanUp(): Promise<void>;
  /** The maps of an agent that has started. */
  maps(): PinnedMaps;
  /** A pod that runs: its object, its cgroups, then its status. */
  runPod(namespace: string, name: string, containers: number, options?: BenchPodOptions): Promise<BenchPod>;
  /** Its cgroups go, then its object. */
  endPod(pod: BenchPod): Promise<void>;
  /** The agent's requests so far. */
  requests(): RecordedRequest[];
}

export interface KubeBenchCluster extends AsyncDisposable {
  readonly cluster: Cluster;
  readonly sandbox: Sandbox;
  addNode(name: string): Promise<KubeNodeBench>;
  /** Makes a namespace, enrolled unless it gets other labels. */
  addNamespace(name: string, labels?: Readonly<Record<string, string>>): Promise<void>;
  /** Makes the objects of pods that run on other nodes, a hundred on each. */
  fillElsewhere(count: number): Promise<void>;
  /** Changes a label of so many of them. */
  changeElsewhere(count: number): Promise<void>;
}

/** Whether this process may give real-time priority to others; a container may lack the right to. */
export async function hasPriority(): Promise<boolean> {
  return (await run({ cmd: 'chrt', args: ['-f', PRIORITY, 'true'] })).code === 0;
}

/** Runs one piece of work for each item, some at a time. */
export async function each<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> {
  const queue = new PQueue({ concurrency: AT_ONCE });
  return Promise.all(items.map((item) => queue.add(() => work(item))));
}

export const numbers = (count: number): number[] => Array.from({ length: count }, (_, i) => i);

/** As long as those of a usual cluster: some kilobytes, most of which the agent has no use for. */
function realisticPod(
  name: string,
  namespace: string,
  node: string,
  containers: number,
  labels: Readonly<Record<string, string>>,
): Pod {
  const env = numbers(20).map((i) => ({
    name: `SETTING_${i}`,
    value: `http://service-${i}.${namespace}.svc.cluster.local:8080/`,
  }));
  return podObject(name, {
    node,
    namespace,
    labels: {
      app: name.replace(/-\d+$/, ''),
      'pod-template-hash': '6d4b75cb6d',
      'app.kubernetes.io/managed-by': 'Helm',
      ...labels,
    },
    annotations: { 'checksum/config': containerId(name), 'prometheus.io/scrape': 'true' },
    spec: {
      containers: numbers(containers).map((i) => ({
        name: `container-${i}`,
        image: `registry.example/team/${name}:1.2.${i}`,
        env,
        resources: { requests: { cpu: '10m', memory: '32Mi' }, limits: { memory: '64Mi' } },
      })),
      tolerations: [
        {
          key: 'node.kubernetes.io/not-ready',
          operator: 'Exists',
          effect: 'NoExecute',
          tolerationSeconds: 300,
        },
      ],
    },
  });
}

function statusOf(ip: string): object {
  const conditions = ['PodScheduled', 'Initialized', 'ContainersReady', 'Ready'].map((type) => ({
    type,
    status: 'True',
  }));
  return { status: { phase: 'Running', podIP: ip, podIPs: [{ ip }], hostIP: '10.0.0.1', conditions } };
}

/** Starts etcd and an API server that records each request. */
export async function startBenchCluster(): Promise<KubeBenchCluster> {
  const stack = new AsyncDisposableStack();
  try {
    const sandbox = stack.use(await makeSandbox('bench-kube'));
    const cluster = stack.use(await startCluster(sandbox, { audit: true }));
    let ips = 0;
    const nextIp = (): string => `10.${128 + (++ips >> 16)}.${(ips >> 8) & 255}.${ips & 255}`;

    const create: CreatePod = (namespace, name, node, containers, labels = {}) =>
      cluster.api.request<Pod>(
        'POST',
        `/api/v1/namespaces/${namespace}/pods`,
        realisticPod(name, namespace, node, containers, labels),
      );

    return {
      cluster,
      sandbox,
      async addNode(name) {
        return addNode(
          sandbox,
          cluster,
          stack.use(await startRelay(cluster.endpoint.url)),
          name,
          create,
          nextIp,
        );
      },
      addNamespace: (name, labels = ENROLLED) => cluster.apply(namespaceObject(name, labels)),
      async fillElsewhere(count) {
        await cluster.apply(namespaceObject('elsewhere', ENROLLED));
        await each(numbers(count), (i) =>
          create('elsewhere', `other-${i}`, `other-node-${Math.floor(i / 100)}`, 2),
        );
      },
      async changeElsewhere(count) {
        await each(numbers(count), (i) =>
          cluster.api.patch(`/api/v1/namespaces/elsewhere/pods/other-${i}`, 'merge-patch+json', {
            metadata: { labels: { changed: 'yes' } },
          }),
        );
      },
      [Symbol.asyncDispose]: () => stack.disposeAsync(),
    };
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}

type CreatePod = (
  namespace: string,
  name: string,
  node: string,
  containers: number,
  labels?: Readonly<Record<string, string>>,
) => Promise<Pod>;

async function addNode(
  sandbox: Sandbox,
  cluster: Cluster,
  relay: Relay,
  node: string,
  create: CreatePod,
  nextIp: () => string,
): Promise<KubeNodeBench> {
  const bpffsRoot = `${sandbox.bpffs}/${node}`;
  const account: ServiceAccount = await makeServiceAccount(
    cluster.api,
    cluster.endpoint,
    sandbox.file(`account-${node}`),
    { name: node, rules: AGENT_RULES },
  );
  const seat = kubeAgentSeat(
    sandbox,
    { node, roots: { cgroupRoot: `${sandbox.cgroupRoot}/${node}`, bpffsRoot } },
    () => account.kubeconfig(relay.url),
  );
  sandbox.cgroup(`${node}/kubepods.slice`);
  const pathOf = ({ namespace, name }: Pick<ObjectMeta, 'namespace' | 'name'>): string =>
    `/api/v1/namespaces/${namespace}/pods/${name}`;
  return {
    name: node,
    bpffsRoot,
    relay,
    async start(isAhead = false, env = {}) {
      const agent = seat.launchAgent({
        ...(isAhead && {
          start: (args: readonly string[]) => ({ cmd: 'chrt', args: ['-f', PRIORITY, PROGRAM, ...args] }),
        }),
        env,
      });
      await agent.ready();
      return agent;
    },
    cleanUp: seat.cleanUp,
    maps() {
      const maps = openPinnedMaps(bpffsRoot);
      if (maps === undefined) throw new Error(`the agent of ${node} is ready and has pinned no maps`);
      return maps;
    },
    async runPod(namespace, name, containers, { labels, ip = nextIp() } = {}) {
      const pod = await create(namespace, name, node, containers, labels);
      const uid = pod.metadata.uid ?? '';
      const podPath = podCgroupPath('systemd', qosOf(pod.spec), uid);
      const paths = [
        podPath,
        ...numbers(containers).map((i) =>
          containerCgroupPath('systemd', podPath, containerId(`${uid} ${i}`)),
        ),
      ];
      const cgroups = paths.map((path) => sandbox.cgroup(`${node}/${path}`));
      await cluster.api.patch(
        `${pathOf({ namespace, name })}/status`,
        'strategic-merge-patch+json',
        statusOf(ip),
      );
      return { name, namespace, uid, ip, cgroups };
    },
    async endPod(pod) {
      for (const { absolute } of pod.cgroups.toReversed()) removeCgroup(absolute);
      await cluster.api.request('DELETE', pathOf(pod), { gracePeriodSeconds: 0 });
    },
    requests: () => cluster.requests().filter(({ user }) => user === account.user),
  };
}
