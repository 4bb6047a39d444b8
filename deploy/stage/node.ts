/**
 * A node in a sandbox, part by part: a network, a manifest in the place of the
 * API server, pods in cgroups and network namespaces of their own, a server to
 * connect to, HAProxy as the node's proxy. Who builds one asks for the parts that
 * it needs; the agent, or a data plane without one, comes on top.
 */
import type { Cgroup } from './cgroup.ts';
import { type Haproxy, type HaproxyOptions, startHaproxy } from './haproxy.ts';
import { type Manifest, type PodObject, makeManifest } from './manifest.ts';
import { type Network, type NetworkHost, makeNetwork } from './netns.ts';
import { type CgroupStyle, containerId, containerPath, newUid } from './pod-cgroup.ts';
import type { Sandbox } from './sandbox.ts';
import { type Listener, type Place, listen } from './sock.ts';

/** The server's port. */
export const SERVER_PORT = 8080;

/** What one connects to. */
export interface Target {
  readonly ip: string;
  readonly port: number;
}

export interface Server extends NetworkHost, Target {
  readonly listener: Listener;
}

interface ServerOptions {
  /** Addresses of its namespace. Default: the next free ones. */
  readonly at?: { readonly ip4: string; readonly ip6: string };
  /** What it listens on. Default `*`, over IPv4 and IPv6. */
  readonly address?: string;
  /** Options of `sock serve`. */
  readonly flags?: readonly string[];
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
  readonly place: Required<Place>;
  /** Makes the cgroup of a new container of the pod, with an id of its own. */
  startContainer(): Cgroup;
}

export interface StageNode {
  readonly sandbox: Sandbox;
  readonly network: Network;
  /** Without any object; the file is there after the first `write()`. */
  readonly manifest: Manifest;
  /** A process of the host: the watched root's, in the network of the bridge. */
  readonly hostPlace: Required<Place>;
  /** Makes a pod in namespace `demo`, unless told otherwise, and puts it into the manifest. */
  addPod(options: PodOptions): Promise<NodePod>;
  /** Starts a server on {@link SERVER_PORT} in a network namespace of its own, outside the mesh. */
  startServer(options?: ServerOptions): Promise<Server>;
  /** Runs HAProxy in a pod. */
  startProxy(pod: NodePod, options?: Pick<HaproxyOptions, 'addresses'>): Promise<Haproxy>;
}

/** Makes the node, with nothing on it. All of it goes away with the sandbox. */
export async function makeNode(sandbox: Sandbox): Promise<StageNode> {
  const network = await makeNetwork(sandbox);
  await sandbox.hostIn(network.gateway.netns);
  const manifest = makeManifest(sandbox.file('pods.yaml'));
  let proxies = 0;
  return {
    sandbox,
    network,
    manifest,
    hostPlace: { cgroup: sandbox.hostCgroup, netns: network.gateway.netns },
    async addPod(options) {
      const {
        style = 'cgroupfs',
        cgroupUid,
        host = await network.addHost(options.name),
        listed = true,
        running = true,
        ...rest
      } = options;
      const object: PodObject = { namespace: 'demo', uid: newUid(), ips: [host.ip4], ...rest };
      if (listed) manifest.pod(object);
      const { name, namespace, uid } = object;
      let containers = 0;
      let latest: Cgroup | undefined;
      const startContainer = (): Cgroup =>
        (latest = sandbox.cgroup(
          containerPath(style, cgroupUid ?? uid, containerId(`${uid} ${++containers}`)),
        ));
      if (running) startContainer();
      const cgroup = (): Cgroup => latest ?? startContainer();
      return {
        name,
        namespace,
        uid,
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
    },
    async startServer({ at, address = '*', flags = ['--dual'] } = {}) {
      const host = await network.addHost('server', at);
      const place = { netns: host.netns };
      const listener = await listen(sandbox, place, 'serve', address, [SERVER_PORT], ...flags);
      return { ...host, ip: host.ip4, port: SERVER_PORT, listener };
    },
    startProxy: ({ place }, options = {}) =>
      startHaproxy(sandbox, { ...options, ...place, name: `haproxy${++proxies}` }),
  };
}
