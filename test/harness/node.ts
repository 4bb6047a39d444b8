/**
 * A Kubernetes node in a sandbox: pods with cgroups as kubelets and runtimes
 * make them, a network, a real HAProxy as the node's proxy, the agent, and a
 * manifest in the place of the API server.
 */
import { createHash } from 'node:crypto';
import { existsSync, globSync } from 'node:fs';
import { type Agent, type AgentOptions, cgroute, startAgent } from '../../deploy/stage/agent.ts';
import type { Cgroup } from '../../deploy/stage/cgroup.ts';
import { type Haproxy, startHaproxy } from '../../deploy/stage/haproxy.ts';
import { type Manifest, type PodObject, makeManifest } from '../../deploy/stage/manifest.ts';
import { type Network, type NetworkHost, makeNetwork } from '../../deploy/stage/netns.ts';
import { eventually, must, run } from '../../deploy/stage/process.ts';
import { type Sandbox, makeSandbox } from '../../deploy/stage/sandbox.ts';
import { type Connected, type Listener, type Place, connect, listen } from '../../deploy/stage/sock.ts';

/** Where kubelets and runtimes put a container, by cgroup driver; below the watched root. */
const STYLES = {
  cgroupfs: (uid: string, id: string) => `kubepods/burstable/pod${uid}/${id}`,
  'cgroupfs-guaranteed': (uid: string, id: string) => `kubepods/pod${uid}/${id}`,
  systemd: (uid: string, id: string) =>
    `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${slice(uid)}.slice/cri-containerd-${id}.scope`,
  crio: (uid: string, id: string) => `kubepods.slice/kubepods-pod${slice(uid)}.slice/crio-${id}.scope`,
  docker: (uid: string, id: string) =>
    `kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod${slice(uid)}.slice/docker-${id}.scope`,
  'kind-cgroupfs': (uid: string, id: string) =>
    `docker/${containerId('kind')}/kubepods/besteffort/pod${uid}/${id}`,
  'kind-systemd': (uid: string, id: string) =>
    `system.slice/docker-${containerId('kind')}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod${slice(uid)}.slice/cri-containerd-${id}.scope`,
  joined: (uid: string, id: string) => `kubepods-besteffort-pod${slice(uid)}.slice:cri-containerd:${id}`,
} as const;

export type CgroupStyle = keyof typeof STYLES;
export const CGROUP_STYLES = Object.keys(STYLES) as readonly CgroupStyle[];

function slice(uid: string): string {
  return uid.replaceAll('-', '_');
}

/** 64 hex digits, the same for the same text. */
export function containerId(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}

/** The path of a container's cgroup below the watched root. */
export function containerPath(style: CgroupStyle, uid: string, id: string): string {
  return STYLES[style](uid, id);
}

export interface PodOptions extends Partial<Omit<PodObject, 'name'>> {
  readonly name: string;
  /** Default `cgroupfs`. */
  readonly style?: CgroupStyle;
  /** What stands in the cgroup's name; default the UID. A static pod has the hash of its configuration there. */
  readonly cgroupUid?: string;
  /** The network namespace; default one of its own. */
  readonly host?: NetworkHost;
  /** False: it runs, and the manifest does not have it yet. */
  readonly listed?: boolean;
  /** False: it is listed, and has no cgroup yet; see {@link NodePod.startContainer}. */
  readonly running?: boolean;
}

export interface NodePod {
  readonly name: string;
  readonly namespace: string;
  readonly uid: string;
  readonly host: NetworkHost;
  /** As it is in the manifest when listed. */
  readonly object: PodObject;
  /** Of its latest container. */
  readonly cgroup: Cgroup;
  /** Where its processes run. */
  readonly place: Place;
  /** Makes the cgroup of a new container of the pod, with an id of its own. */
  startContainer(): Cgroup;
}

/** What became of a connection: through the proxy's 15001 or 15006, untouched, or the errno of connect(). */
export type Travel = 'redirected' | 'inbound' | 'direct' | (string & {});

/** `cgroute status -o json`, as section 8 of the behaviour says. */
export interface NodeStatus {
  readonly node: string | null;
  readonly agent: {
    readonly running: boolean;
    readonly ready: boolean;
    readonly pid: number | null;
    readonly version: string | null;
  };
  readonly proxy: { readonly address: string | null; readonly pod: string | null; readonly ready: boolean };
  readonly sources: readonly { readonly name: string; readonly state: string; readonly detail: string }[];
  readonly pods: readonly PodStatus[];
  readonly unknown: readonly { readonly id: string; readonly path: string | null }[];
  readonly host: Readonly<Record<string, number>>;
}

export interface PodStatus {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string;
  readonly verdict: string;
  readonly reason: string;
  readonly ips: readonly string[];
  readonly cgroups: readonly { readonly id: string; readonly path: string | null }[];
  readonly connections: Readonly<Record<string, number>>;
}

export interface MapEntry {
  readonly key: unknown;
  readonly value: Readonly<Record<string, unknown>>;
}

export interface TestNode extends AsyncDisposable {
  readonly sandbox: Sandbox;
  readonly network: Network;
  readonly manifest: Manifest;
  /** Outside the mesh; listens on port 8080 over IPv4 and IPv6. */
  readonly server: NetworkHost & { readonly listener: Listener };
  /** The pod of the node's proxy, in namespace `mesh`. */
  readonly proxyPod: NodePod;
  /** What runs in it; replaced by {@link TestNode.startProxy}. */
  readonly proxy: Haproxy;
  readonly agent: Agent;
  /** A process of the host: the watched root's, in the network of the bridge. */
  readonly hostPlace: Place;
  addPod(options: PodOptions): Promise<NodePod>;
  /** Writes the manifest and waits until the agent has acted on it. */
  apply(): Promise<void>;
  status(): Promise<NodeStatus>;
  /** What a pinned map of the kernel holds, as bpftool reads it by the map's own BTF. */
  entries(map: string): Promise<readonly MapEntry[]>;
  /** The status of one pod; an error when there is none. */
  podStatus(pod: { readonly uid: string }): Promise<PodStatus>;
  /** Waits until the status is so. */
  until(what: string, check: (status: NodeStatus) => unknown): Promise<NodeStatus>;
  /** Connects and tells how the connection travelled, as client, proxy and server saw it. Default: to the server. */
  travel(
    place: Place,
    options?: {
      readonly to?: { readonly ip: string; readonly port: number };
      readonly flags?: readonly string[];
    },
  ): Promise<Travel>;
  startAgent(options?: Partial<AgentOptions>): Promise<Agent>;
  startProxy(pod?: NodePod): Promise<Haproxy>;
}

export interface NodeOptions {
  /** Labels of the namespace `demo`. Default: enrolled. */
  readonly demo?: Readonly<Record<string, string>>;
  /** False: the test starts the agent itself. */
  readonly agent?: false | Partial<AgentOptions>;
  /** False: nothing runs in the proxy's pod. */
  readonly proxy?: false;
}

export const ENROLLED = { 'istio.io/dataplane-mode': 'ambient' } as const;
/** The pod that {@link TestNode.apply} puts at the end of the manifest, to see that the agent has come that far. */
const MARKER = 'applied';
const SERVER_PORT = 8080;
/** What kubelets of both drivers make when they start, before any pod. */
const KUBELET_TREES = ['kubepods', 'kubepods.slice'].flatMap((tree) =>
  ['burstable', 'besteffort'].map((qos) =>
    tree === 'kubepods' ? `${tree}/${qos}` : `${tree}/kubepods-${qos}.slice`,
  ),
);

let uids = 0;

/** A UID that no other pod of this process has. */
export function newUid(): string {
  return `00000000-0000-4000-8000-${(++uids).toString(16).padStart(12, '0')}`;
}

/** Starts a node; everything of it goes away with `await using`, and when its start fails. */
export async function startNode(name: string, options: NodeOptions = {}): Promise<TestNode> {
  const sandbox = await makeSandbox(name);
  try {
    return await startNodeIn(sandbox, options);
  } catch (error) {
    await sandbox[Symbol.asyncDispose]();
    throw error;
  }
}

async function startNodeIn(sandbox: Sandbox, options: NodeOptions): Promise<TestNode> {
  const network = await makeNetwork(sandbox);
  const manifest = makeManifest(sandbox.file('pods.yaml'));
  manifest.namespace('demo', options.demo ?? ENROLLED);
  manifest.namespace('mesh');
  const serverHost = await network.addHost('server');
  const listener = await listen(sandbox, { netns: serverHost.netns }, 'serve', '*', [SERVER_PORT], '--dual');
  let agent: Agent | undefined;
  let haproxy: Haproxy | undefined;
  let proxies = 0;
  let revision = 0;

  async function addPod(of: PodOptions): Promise<NodePod> {
    const {
      style = 'cgroupfs',
      cgroupUid,
      host = await network.addHost(of.name),
      listed = true,
      running = true,
      ...rest
    } = of;
    const object: PodObject = { namespace: 'demo', uid: newUid(), ips: [host.ip4], ...rest };
    let containers = 0;
    let latest: Cgroup | undefined;
    const startContainer = (): Cgroup =>
      (latest = sandbox.cgroup(
        containerPath(style, cgroupUid ?? object.uid, containerId(`${object.uid} ${++containers}`)),
      ));
    if (running) startContainer();
    if (listed) manifest.pod(object);
    const cgroup = (): Cgroup => latest ?? startContainer();
    return {
      name: object.name,
      namespace: object.namespace,
      uid: object.uid,
      host,
      object,
      startContainer,
      get cgroup() {
        return cgroup();
      },
      get place() {
        return { cgroup: cgroup(), netns: host.netns };
      },
    };
  }

  async function status(): Promise<NodeStatus> {
    const { code, stdout, stderr } = await cgroute(sandbox, ['status', '-o', 'json']);
    if (code !== 0 && code !== 3) throw new Error(`cgroute status exited with ${code}\n${stderr}`);
    return JSON.parse(stdout) as NodeStatus;
  }

  /** Without the marker, which is no part of the test. */
  async function shownStatus(): Promise<NodeStatus> {
    const now = await status();
    return { ...now, pods: now.pods.filter(({ namespace }) => namespace !== MARKER) };
  }

  const until: TestNode['until'] = async (what, check) => {
    let now = await shownStatus();
    await eventually(what, async () => check(now) || check((now = await shownStatus()))).catch(
      (error: unknown) => {
        throw new Error(
          `${String(error)}\n${JSON.stringify({ ...now, host: undefined }, (key, value: unknown) => (key === 'connections' ? undefined : value), 1)}`,
        );
      },
    );
    return now;
  };

  const pinOf = (map: string): string =>
    globSync(`${sandbox.bpffs}/cgroute/*/maps/${map}`)[0] ?? `${sandbox.bpffs}/${map}`;

  async function entries(map: string): Promise<readonly MapEntry[]> {
    const dump = JSON.parse(
      await must({ cmd: 'bpftool', args: ['-j', 'map', 'dump', 'pinned', pinOf(map)] }),
    ) as readonly { readonly formatted: MapEntry }[];
    return dump.map(({ formatted }) => formatted);
  }

  /** Asked of the kernel, as that is ten times as fast as asking for the status. */
  async function knows(uid: string): Promise<boolean> {
    const key = Buffer.alloc(40);
    key.write(uid);
    const map = pinOf('pod_info_map');
    const { code } = await run({
      cmd: 'bpftool',
      args: ['map', 'lookup', 'pinned', map, 'key', ...[...key].map(String)],
    });
    return code === 0;
  }

  async function apply(): Promise<void> {
    const uid = `ffffffff-ffff-4fff-8fff-${(++revision).toString(16).padStart(12, '0')}`;
    manifest.remove(`ffffffff-ffff-4fff-8fff-${(revision - 1).toString(16).padStart(12, '0')}`);
    manifest.pod({ name: `${MARKER}-${revision}`, namespace: MARKER, uid });
    manifest.write();
    await eventually('the agent has acted on the manifest', () => knows(uid)).catch((error: unknown) => {
      throw new Error(
        `${String(error)}\n${agent
          ?.log()
          .slice(-10)
          .map((line) => JSON.stringify(line))
          .join('\n')}`,
      );
    });
  }

  async function startProxy(pod: NodePod = proxyPod): Promise<Haproxy> {
    return (haproxy = await startHaproxy(sandbox, { ...pod.place, name: `haproxy${++proxies}` }));
  }

  async function start(more: Partial<AgentOptions> = {}): Promise<Agent> {
    if (!existsSync(manifest.path)) manifest.write();
    agent = startAgent(sandbox, { manifest: manifest.path, ...more });
    await agent.ready();
    return agent;
  }

  for (const place of KUBELET_TREES) sandbox.cgroup(place);
  const proxyPod = await addPod({ name: 'ztunnel', namespace: 'mesh', labels: { app: 'ztunnel' } });
  if (options.proxy !== false) await startProxy();
  if (options.agent !== false) await start(options.agent);

  const of = <T>(value: T | undefined, what: string): T => {
    if (value === undefined) throw new Error(`this node has no ${what} yet`);
    return value;
  };
  return {
    sandbox,
    network,
    manifest,
    proxyPod,
    addPod,
    apply,
    entries,
    until,
    startProxy,
    status: shownStatus,
    startAgent: start,
    server: { ...serverHost, listener },
    hostPlace: { cgroup: sandbox.hostCgroup, netns: network.gateway.netns },
    get proxy() {
      return of(haproxy, 'proxy');
    },
    get agent() {
      return of(agent, 'agent');
    },
    async podStatus({ uid }) {
      const { pods } = await shownStatus();
      return of(
        pods.find((pod) => pod.uid === uid),
        `pod ${uid} in its status`,
      );
    },
    async travel(place, { to = { ip: serverHost.ip4, port: SERVER_PORT }, flags = [] } = {}) {
      return travelOf(await connect(place, to.ip, to.port, ...flags), to, haproxy);
    },
    [Symbol.asyncDispose]: () => sandbox[Symbol.asyncDispose](),
  };
}

/** `[::ffff:10.0.0.1]:80` as `10.0.0.1:80`. */
function plain(address: string): string {
  return address.replace(/^\[::ffff:([\d.]+)\]/, '$1');
}

/** Tells how a connection travelled, and refuses one of which client, proxy and server do not say the same. */
export async function travelOf(
  result: Connected,
  to: { readonly ip: string; readonly port: number },
  proxy: Pick<Haproxy, 'connections'> | undefined,
): Promise<Travel> {
  if (!result.ok) return result.errno;
  const asked = to.ip.includes(':') ? `[${to.ip}]:${to.port}` : `${to.ip}:${to.port}`;
  const [kind, , peer = ''] = result.reply.split(' ');
  if (kind !== 'server') throw new Error(`expected the server's reply, got "${result.reply}"`);
  if (plain(result.peer) !== asked)
    throw new Error(`getpeername says ${result.peer} for a connection to ${asked}`);
  if (plain(peer) === plain(result.local)) return 'direct';
  const seen = await eventually(`the proxy has seen ${result.local} on its way to ${asked}`, () =>
    proxy?.connections().find(({ client }) => client === plain(result.local)),
  );
  if (seen.destination !== asked)
    throw new Error(
      `the proxy took ${seen.destination} for the original destination of a connection to ${asked}`,
    );
  return seen.port === 15006 ? 'inbound' : 'redirected';
}
