/** The node of the leak test: a proxy and servers that write down everything, and the maps of the kernel. */
import { dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { openPinnedMaps, type PinnedMaps } from '../../native/data-plane/maps.ts';
import { beginWait } from '../../deploy/stage/deadline.ts';
import type { Manifest } from '../../deploy/stage/manifest.ts';
import { makeNode } from '../../deploy/stage/node.ts';
import { ip, sysctl } from '../../deploy/stage/netns.ts';
import { inSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import { SLOWDOWN } from '../../deploy/stage/slowdown.ts';
import { type Account, account } from './account.ts';
import { startBurst, startServer } from './burst.ts';
import type { Attempt, CaseName, ClientLine, Job } from './connection.ts';
import { cgroupId, type LeakPod, NAMESPACES, type PodFactory, podFactory, type Verdict } from './pods.ts';
import { PORTS, startProxy } from './proxy.ts';
import { MODE } from '../harness/label-names.ts';

/** Processes at a time. */
const PARALLEL = 8;
const SERVER_PORTS = [8080, 8081, 8082, 8083];
export const POD_PORT = 80;
/** Where kubelets keep pods, and the host its services; made before anything else. */
const PLACES = [
  'kubepods/burstable',
  'kubepods/besteffort',
  'kubepods.slice/kubepods-burstable.slice',
  'kubepods.slice/kubepods-besteffort.slice',
  'system.slice',
  'user.slice',
  'docker',
];

export interface LeakNode extends AsyncDisposable {
  readonly sandbox: Sandbox;
  readonly manifest: Manifest;
  readonly pods: PodFactory;
  readonly proxyPod: { readonly directory: string };
  /** Whether any of these cases is asked for; what belongs to the others is left undone. */
  wants(cases: readonly CaseName[]): boolean;
  /** Does all of it at once, in this order, and waits for the last. */
  connect(jobs: readonly Job[]): Promise<void>;
  /** Waits until the maps say this of all of them, and of their cgroups; calls for each when they do. */
  known(pods: readonly LeakPod[], verdict: Verdict, onKnown?: (pod: LeakPod) => void): Promise<void>;
  /** What the agent that wrote last says to be its version. */
  readonly agentVersion: string | undefined;
  /** What client, proxy and server say of all that was done. */
  account(): Promise<Account>;
}

/** @param onFresh for each cgroup that is going to be made for a process */
export function startLeakNode(only: ReadonlySet<CaseName>, onFresh: () => void): Promise<LeakNode> {
  return inSandbox('leak', (sandbox) => startIn(sandbox, only, onFresh));
}

async function startIn(
  sandbox: Sandbox,
  only: ReadonlySet<CaseName>,
  onFresh: () => void,
): Promise<LeakNode> {
  for (const place of PLACES) sandbox.cgroup(place);
  const base = await makeNode(sandbox);
  const { network, manifest } = base;
  const proxyPod = await base.addPod({
    name: 'ztunnel',
    namespace: 'istio-system',
    uid: 'fafafafa-0000-4000-8000-000000000001',
    labels: { app: 'ztunnel' },
  });
  const proxyHost = proxyPod.host;
  const [serverHost, podHost] = [await network.addHost('server'), await network.addHost('pods')];
  // Each pod has an address, and each connection a destination of its own.
  await ip(
    network.gateway.netns,
    `route add 10.78.0.0/16 via ${podHost.ip4}`,
    `route add 10.79.0.0/16 via ${serverHost.ip4}`,
  );
  await ip(podHost.netns, 'route add local 10.78.0.0/16 dev lo');
  await ip(serverHost.netns, 'route add local 10.79.0.0/16 dev lo');
  await sysctl(network.gateway.netns, 'ipv4.conf.all.send_redirects=0', 'ipv4.conf.br0.send_redirects=0');
  for (const { netns } of [network.gateway, podHost, proxyHost])
    await sysctl(netns, 'ipv4.ip_local_port_range=10000 65000', 'ipv4.tcp_syn_retries=3');

  const proxy = await startProxy(sandbox, proxyPod.place);
  const servers = [
    await startServer(sandbox, { netns: serverHost.netns }, 'server', SERVER_PORTS),
    await startServer(sandbox, { netns: podHost.netns }, 'pods', [POD_PORT]),
  ];
  const bursts = {
    pods: await startBurst(sandbox, { netns: podHost.netns }, PARALLEL),
    host: await startBurst(sandbox, { netns: network.gateway.netns }, PARALLEL),
  };
  manifest.namespace(NAMESPACES.mesh, { [MODE]: 'ambient' });
  manifest.namespace(NAMESPACES.plain);
  manifest.namespace(NAMESPACES.flipping, { [MODE]: 'ambient' });
  manifest.write();

  const attempts: Attempt[] = [];
  const clients: ClientLine[] = [];
  let maps: PinnedMaps | undefined;
  const pinned = (): PinnedMaps => {
    maps ??= openPinnedMaps(`${sandbox.bpffs}/cgroute`);
    if (maps === undefined) throw new Error('the agent has pinned no maps yet');
    return maps;
  };

  function destination(number: number): { ip: string; port: number } {
    const host = number % 60_000;
    return {
      ip: `10.79.${1 + Math.floor(host / 250)}.${1 + (host % 250)}`,
      port: SERVER_PORTS[Math.floor(number / 60_000) % SERVER_PORTS.length] ?? 0,
    };
  }

  function isKnown(pod: LeakPod, verdict: Verdict): boolean {
    const info = pinned().pods.get({ text: pod.key });
    if (info?.verdict !== verdict || info.uid !== pod.uid) return false;
    return [pod.directory, ...pod.containers].every((path) => {
      const id = cgroupId(path);
      if (id === undefined) return true;
      const entry = pinned().cgroups.get(id);
      // A container's may have none of its own: then its pod's counts.
      if (entry === undefined) return path !== pod.directory;
      return entry.isInMesh === info.isInMesh && entry.flags === info.flags;
    });
  }

  return {
    sandbox,
    manifest,
    wants: (cases) => cases.some((name) => only.has(name)),
    pods: podFactory(sandbox.cgroupRoot),
    proxyPod: { directory: dirname(proxyPod.cgroup.absolute) },
    get agentVersion() {
      return pinned().agent.get(0)?.version;
    },
    async connect(jobs) {
      const begun = jobs
        .filter((job) => only.has(job.case))
        .map((job): Attempt => {
          // As many as the agent's start takes time for; what a round makes is counted without them.
          if (job.isNew && job.case !== 'taken_over') onFresh();
          const number = attempts.length;
          const attempt = { ...job, token: `c${number}`, to: job.to ?? destination(number) };
          attempts.push(attempt);
          return attempt;
        });
      const of = (from: Job['from']): Attempt[] => begun.filter((attempt) => attempt.from === from);
      clients.push(...(await Promise.all([bursts.pods.run(of('pods')), bursts.host.run(of('host'))])).flat());
    },
    async known(pods, verdict, onKnown = () => {}) {
      const wait = beginWait();
      const isMissing = (pod: LeakPod): boolean => {
        const isDone = isKnown(pod, verdict);
        if (isDone) onKnown(pod);
        return !isDone;
      };
      for (let missing = pods; (missing = missing.filter(isMissing)).length > 0; ) {
        if (wait.isOver())
          throw new Error(
            `${wait.passed()}, and the agent has not said of ${missing.length} pods that they are ${verdict}: ${missing[0]?.object.name}`,
          );
        await delay(2);
      }
    },
    async account() {
      let count = -1;
      // A log's last line comes late where everything is slow.
      while (count !== (count = proxy.lines().length)) await delay(500 * Math.min(SLOWDOWN, 6));
      return account({
        attempts,
        clients,
        proxy: proxy.lines(),
        server: servers.flatMap((server) => server.lines()),
        cgroupRoot: sandbox.cgroupRoot,
        proxyIp: proxyHost.ip4,
        ports: PORTS,
      });
    },
    async [Symbol.asyncDispose]() {
      maps?.[Symbol.dispose]();
      await sandbox[Symbol.asyncDispose]();
    },
  };
}
