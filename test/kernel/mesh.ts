/**
 * A small node: pods in namespaces and cgroups of their own, a server outside,
 * a proxy that tells what it was asked for, and the data plane between them.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { infoFlag } from '../../native/layout/layouts.ts';
import type { Cgroup } from '../../deploy/stage/cgroup.ts';
import type { Network, NetworkHost } from '../../deploy/stage/netns.ts';
import { makeNode, type Server, SERVER_PORT } from '../../deploy/stage/node.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { inSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import {
  type Accepted,
  type Connected,
  listen,
  type Listener,
  type Place,
  SOCK,
} from '../../deploy/stage/sock.ts';
import { at, plain } from '../harness/travel.ts';
import {
  attachAll,
  type Counts,
  type Enrolment,
  netnsOf,
  openTestPlane,
  type PlaneOptions,
  type TestPlane,
} from './data-plane.ts';

/** The server's port. */
export const PORT = SERVER_PORT;

/** What `sock proxy --level both` prints: both levels of SO_ORIGINAL_DST, and the second line of `--again`. */
export interface Proxied extends Accepted {
  readonly otherOrig?: string;
  readonly otherError?: string;
  readonly again?: string;
}

export interface Pod extends Required<Place> {
  readonly name: string;
  readonly slot: number;
  readonly host: NetworkHost;
  readonly ip4: string;
  readonly ip6: string;
  /** The pod's cgroup; `cgroup` is its container's. */
  readonly podCgroup: Cgroup;
  /** Where its processes run. */
  readonly cgroup: Cgroup;
}

export interface Mesh extends AsyncDisposable {
  readonly sandbox: Sandbox;
  readonly network: Network;
  readonly plane: TestPlane;
  readonly podTree: Cgroup;
  readonly server: Server;
  readonly serving: Listener;
  readonly proxy: Pod;
  readonly proxying: Listener;
  /** An enrolled pod. */
  readonly app: Pod;
  /** Makes a pod with entries for its two cgroups. */
  addPod(name: string, enrolment?: Partial<Enrolment>): Promise<Pod>;
  /** A host process, in the network namespace of a pod or of the mesh's own "node". */
  hostProcess(netns?: string): Required<Place>;
  /** Runs a function; the connections that it made, as `app redirected`, by the pod's name or `none`. */
  counted<T>(run: () => Promise<T>): Promise<[T, Record<string, number>]>;
}

export interface MeshOptions extends PlaneOptions {
  /** More options for `sock proxy`. */
  readonly proxyOptions?: readonly string[];
  /** Called with the watched root just before the data plane's programs are attached. */
  readonly beforeAttach?: (root: Pick<Cgroup, 'absolute'>) => void;
}

const uid = (slot: number): string => `2c48913c-b29f-11e7-9350-${slot.toString(16).padStart(12, '0')}`;

/** Makes it, with a server, a dual-stack proxy on 15001 and 15006, and one enrolled pod. */
export function makeMesh(name: string, options: MeshOptions = {}): Promise<Mesh> {
  return inSandbox(name, (sandbox) => makeMeshIn(sandbox, options));
}

async function makeMeshIn(sandbox: Sandbox, options: MeshOptions): Promise<Mesh> {
  const base = await makeNode(sandbox);
  const { network } = base;
  const node = await network.addHost('node');
  const plane = openTestPlane(sandbox, { hostNetns: netnsOf(node.netns), ...options });
  const podTree = sandbox.cgroup('kubepods');
  const pods: Pod[] = [];

  async function addPod(podName: string, enrolment: Partial<Enrolment> = {}): Promise<Pod> {
    const slot = enrolment.slot ?? pods.length + 1;
    const { host, cgroup } = await base.addPod({ name: podName, uid: uid(slot) });
    const { ip4, ip6, netns } = host;
    const podCgroup = sandbox.cgroup(dirname(cgroup.path));
    for (const each of [podCgroup, cgroup]) plane.enrol(each, { ip4, ip6, ...enrolment, slot });
    const pod: Pod = { name: podName, slot, host, ip4, ip6, podCgroup, cgroup, netns };
    pods.push(pod);
    return pod;
  }

  const server = await base.startServer({ flags: ['--dual', '--tfo'] });
  const proxy = await addPod('proxy', { inMesh: false, flags: infoFlag.proxy });
  const app = await addPod('app');
  options.beforeAttach?.({ absolute: sandbox.cgroupRoot });
  attachAll(plane, podTree, proxy.podCgroup);
  plane.setProxy(proxy);
  const proxying = await listen(
    sandbox,
    proxy,
    'proxy',
    '*',
    [15001, 15006],
    '--dual',
    '--tfo',
    '--level',
    'both',
    ...(options.proxyOptions ?? []),
  );

  const all = (): Map<string, Counts> =>
    new Map([
      ['none', plane.counters(0)],
      ...pods.map((pod) => [pod.name, plane.counters(pod.slot)] as const),
    ]);
  return {
    sandbox,
    network,
    plane,
    podTree,
    server,
    serving: server.listener,
    proxy,
    proxying,
    app,
    addPod,
    hostProcess: (netns = node.netns) => ({ cgroup: sandbox.hostCgroup, netns }),
    async counted(run) {
      const before = all();
      const result = await run();
      const counts: Record<string, number> = {};
      for (const [pod, after] of all()) {
        for (const [branch, count] of Object.entries(after)) {
          const more = count - ((before.get(pod) as Record<string, number> | undefined)?.[branch] ?? 0);
          if (more !== 0) counts[`${pod} ${branch}`] = more;
        }
      }
      return [result, counts];
    },
    async [Symbol.asyncDispose]() {
      plane[Symbol.dispose]();
      await sandbox[Symbol.asyncDispose]();
    },
  };
}

export function portOf(address: string): number {
  return Number(address.slice(address.lastIndexOf(':') + 1));
}

/** Several connections of one socket: `sock connect` with `--then` and `--or`. */
export async function connectAll(place: Place, ...args: readonly (string | number)[]): Promise<Connected[]> {
  const text = await must({ ...place, cmd: SOCK, args: ['connect', ...args.map(String)] });
  return text
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line) as Connected);
}

/** A connection that is kept open. */
export interface Held {
  readonly result: Connected;
  /** Ends it; what it looked like just before. */
  end(): Promise<{ readonly alive: boolean; readonly peer: string; readonly local: string }>;
}

export async function hold(
  sandbox: Sandbox,
  place: Place,
  address: string,
  port: number,
  ...options: readonly string[]
): Promise<Held> {
  const running = sandbox.spawn({
    ...place,
    cmd: SOCK,
    args: ['connect', '--hold', ...options, address, String(port)],
  });
  const result = await running.json<Connected>();
  return {
    result,
    async end() {
      running.end();
      const last = await running.json<{ alive: boolean; peer: string; local: string }>();
      await running.exit;
      return last;
    },
  };
}

/**
 * What a listener printed of the client with this address and port, or of its
 * connection to this port alone: the kernel may use a client's port again for another.
 */
export async function seen(listener: Listener, client: string, port?: number): Promise<Proxied> {
  return eventually(`the listener has seen ${client}${port === undefined ? '' : ` on port ${port}`}`, () =>
    (listener.accepted() as Proxied[]).find(
      ({ peer, local }) => plain(peer) === plain(client) && (port === undefined || portOf(local) === port),
    ),
  );
}

/**
 * The connection reached the proxy on this port, which knows by both levels of
 * SO_ORIGINAL_DST where it was meant to go; the application sees the peer that
 * it asked for, and its own true address.
 */
export async function assertRedirected(
  mesh: Pick<Mesh, 'proxying' | 'proxy'>,
  result: Connected | undefined,
  asked: string,
  port = 15001,
): Promise<void> {
  assert.ok(result?.ok, JSON.stringify(result));
  assert.equal(result.peer, asked, 'getpeername()');
  const original = plain(asked);
  const { local, orig, otherOrig, otherError } = await seen(mesh.proxying, result.local, port);
  const is6 = original.startsWith('[');
  const mapped = `[::ffff:${original.replace(':', ']:')}`;
  // An IPv6 destination has no answer at SOL_IP: there the kernel's own one stays.
  assert.deepEqual(
    { local: plain(local), orig, otherOrig },
    {
      local: at(is6 ? mesh.proxy.ip6 : mesh.proxy.ip4, port),
      orig: original,
      otherOrig: is6 ? undefined : mapped,
    },
  );
  if (is6) assert.match(otherError ?? '', NO_ORIGINAL);
  assert.equal(result.reply.split(' ').map(plain).join(' '), `proxy ${original} ${plain(result.local)}`);
}

/** The kernel's own answers: no conntrack entry, no conntrack, not for this family. */
export const NO_ORIGINAL = /^(ENOENT|ENOPROTOOPT|EOPNOTSUPP|EINVAL)$/;

/** The connection reached the server itself, with the client's own address. */
export async function assertDirect(
  mesh: Pick<Mesh, 'serving'>,
  result: Connected | undefined,
  asked: string,
): Promise<void> {
  assert.ok(result?.ok, JSON.stringify(result));
  assert.equal(result.peer, asked, 'getpeername()');
  assert.equal(result.reply.split(' ').map(plain).join(' '), `server ${plain(asked)} ${plain(result.local)}`);
  const { local } = await seen(mesh.serving, result.local, portOf(asked));
  assert.equal(plain(local), plain(asked));
}

export function assertFailed(result: Connected | undefined, errno: string): void {
  assert.ok(result !== undefined && !result.ok, JSON.stringify(result));
  assert.equal(result.errno, errno);
}

/** Stops all processes of a cgroup; format of cgroup.events: docs.kernel.org/admin-guide/cgroup-v2.html. */
export async function freeze(cgroup: Cgroup, on: boolean): Promise<void> {
  writeFileSync(join(cgroup.absolute, 'cgroup.freeze'), on ? '1' : '0');
  await eventually('the cgroup is frozen, or runs', () =>
    readFileSync(join(cgroup.absolute, 'cgroup.events'), 'utf8').includes(`frozen ${on ? 1 : 0}`),
  );
}
