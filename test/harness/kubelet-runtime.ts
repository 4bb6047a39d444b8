/** What a kubelet asks of its runtime and its network plugin: containers, and network namespaces with addresses. */
import { randomBytes } from 'node:crypto';
import { readlinkSync, rmSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { type Cgroup, removeCgroup } from '../../deploy/stage/cgroup.ts';
import { type Network, type NetworkHost, ip } from '../../deploy/stage/netns.ts';
import { type Running, eventually, run } from '../../deploy/stage/process.ts';
import { type Container, type ContainerOptions, startContainer as startRunc } from './runc.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';
import { SOCK } from '../../deploy/stage/sock.ts';

/**
 * `runc`: real containers. `process`: a plain process in the container's cgroup
 * and the pod's network namespace. `none`: a cgroup without a process, and an
 * address without a namespace.
 */
export type Runtime = 'runc' | 'process' | 'none';

export interface RuntimeContainer {
  /** 64 hex digits. */
  readonly id: string;
  readonly cgroup: Cgroup;
  /** Of its first process; undefined with the runtime `none`. */
  readonly pid: number | undefined;
  /** Its own output; undefined with the runtime `none`. */
  readonly running: Running | undefined;
  /** Settles with the exit code when its first process has ended; 128 + the signal's number when killed. */
  readonly exit: Promise<number>;
  exec(...args: readonly string[]): Running;
  kill(signal: 'TERM' | 'KILL'): Promise<void>;
  /** Kills it and removes its cgroup. */
  remove(): Promise<void>;
}

export interface ContainerRequest {
  readonly runtime: Runtime;
  /** Its cgroup below the sandbox's root, for its id. */
  readonly cgroupPath: (id: string) => string;
  /** Name of a network namespace. */
  readonly netns: string;
  readonly args: readonly string[] | undefined;
}

/** What an image without a command of its own would run. */
const ENTRYPOINT = ['sleep', '1000000'] as const;
const SIGNALS = { TERM: 15, KILL: 9 } as const;

export function newContainerId(): string {
  return randomBytes(32).toString('hex');
}

/** Starts a container; its first process runs in its cgroup and namespace when this settles. */
export function startRuntimeContainer(
  sandbox: Sandbox,
  request: ContainerRequest,
): Promise<RuntimeContainer> {
  return { runc: startInRunc, process: startProcess, none: startEmpty }[request.runtime](sandbox, request);
}

function exitCode(running: Running): Promise<number> {
  return running.exit.then(({ code, signal }) => code ?? (signal === 'SIGTERM' ? 143 : 137));
}

/** Created, then started, as runtimes do it: the command waits for a line, so that even one that ends at once has been seen. */
const WAIT_FOR_START = ['sh', '-c', 'read -r start; exec "$@"', 'sh'] as const;

/** The first container of a sandbox makes the root file system that all share; the others wait until it is whole. */
const firstOf = new WeakMap<Sandbox, Promise<unknown>>();

async function startRuncAfterFirst(sandbox: Sandbox, options: ContainerOptions): Promise<Container> {
  const first = firstOf.get(sandbox);
  await first?.catch(() => {});
  const container = startRunc(sandbox, options);
  if (first === undefined) firstOf.set(sandbox, container);
  return container;
}

async function startInRunc(
  sandbox: Sandbox,
  { cgroupPath, netns, args = ENTRYPOINT }: ContainerRequest,
): Promise<RuntimeContainer> {
  const id = newContainerId();
  const path = cgroupPath(id);
  const container = await startRuncAfterFirst(sandbox, {
    id,
    cgroupPath: path,
    netns,
    args: [...WAIT_FOR_START, ...args],
  });
  const { running, pid } = container;
  const cgroup = sandbox.cgroup(path);
  running.write('\n');
  let over = false;
  void running.exit.then(() => (over = true));
  return {
    id,
    pid,
    running,
    cgroup,
    exit: exitCode(running),
    exec: (...command) => container.exec(...command),
    // It may end at the same moment.
    kill: (signal) =>
      container.kill(signal).catch((error: unknown) => {
        if (!over) throw error;
      }),
    async remove() {
      await container.delete();
      removeCgroup(cgroup.absolute);
      rmSync(sandbox.file(`bundle-${id}`), { recursive: true, force: true });
    },
  };
}

/** Whether a process has come to its network namespace; one that is gone counts. */
function hasArrived(pid: number, netns: string): boolean {
  try {
    return readlinkSync(`/proc/${pid}/ns/net`) === `net:[${statSync(`/run/netns/${netns}`).ino}]`;
  } catch {
    return true;
  }
}

async function startProcess(
  sandbox: Sandbox,
  { cgroupPath, netns, args = ENTRYPOINT }: ContainerRequest,
): Promise<RuntimeContainer> {
  const id = newContainerId();
  const cgroup = sandbox.cgroup(cgroupPath(id));
  const env = { PATH: `${dirname(SOCK)}:${process.env['PATH'] ?? ''}` };
  const start = ([cmd = '', ...rest]: readonly string[]): Running =>
    sandbox.spawn({ cmd, args: rest, cgroup, netns, env });
  const running = start(args);
  await eventually(`process ${running.pid} is in ${netns}`, () => hasArrived(running.pid, netns));
  return {
    id,
    cgroup,
    running,
    pid: running.pid,
    exit: exitCode(running),
    exec: (...command) => start(command),
    kill: async (signal) => running.kill(`SIG${signal}`),
    async remove() {
      removeCgroup(cgroup.absolute);
      await running.exit;
    },
  };
}

async function startEmpty(sandbox: Sandbox, { cgroupPath }: ContainerRequest): Promise<RuntimeContainer> {
  const id = newContainerId();
  const cgroup = sandbox.cgroup(cgroupPath(id));
  const { promise, resolve } = Promise.withResolvers<number>();
  return {
    id,
    cgroup,
    pid: undefined,
    running: undefined,
    exit: promise,
    exec: () => {
      throw new Error('a container of the runtime `none` has no namespaces to enter');
    },
    kill: async (signal) => resolve(128 + SIGNALS[signal]),
    async remove() {
      resolve(137);
      removeCgroup(cgroup.absolute);
    },
  };
}

export interface PodNetwork {
  /** An address of the pool, in a namespace of its own unless `bare`. */
  attach(pod: string, bare: boolean): Promise<NetworkHost>;
  /** Removes the interface and the namespace, then gives the address back. */
  detach(host: NetworkHost): Promise<void>;
}

export interface PoolOptions {
  /** The last numbers of the first and the last address. Default 10 to 249. */
  readonly range?: readonly [number, number];
  /** Who gets a freed address: `late`, when all others have been used; `at-once`, the very next pod. Default `late`. */
  readonly reuse?: 'late' | 'at-once';
}

/** Gives pods addresses of a network out of a pool, as an IPAM plugin does. */
export function makePodNetwork(
  network: Network,
  { range: [from, to] = [10, 249], reuse = 'late' }: PoolOptions = {},
): PodNetwork {
  const free = Array.from({ length: to - from + 1 }, (_, index) => from + index);
  const numbers = new Map<NetworkHost, number>();
  const bareHosts = new Set<NetworkHost>();
  let attached = 0;
  return {
    async attach(pod, bare) {
      const number = free.shift();
      if (number === undefined) throw new Error(`all addresses from ${from} to ${to} are taken`);
      const addresses = {
        ip4: network.gateway.ip4.replace(/\d+$/, String(number)),
        ip6: network.gateway.ip6.replace(/[^:]*$/, number.toString(16)),
      };
      // The pod's name for whoever looks at the machine, the number as names may come again.
      const name = `${pod.slice(0, 40)}-${from}-${++attached}`;
      const host = bare ? { name, netns: '', ...addresses } : await network.addHost(name, addresses);
      numbers.set(host, number);
      if (bare) bareHosts.add(host);
      return host;
    },
    async detach(host) {
      const number = numbers.get(host);
      if (number === undefined || !numbers.delete(host)) return;
      if (!bareHosts.delete(host)) {
        // At once; with the namespace it would go some time later, and answer for its address until then.
        await run({ cmd: 'ip', args: ['-n', host.netns, 'link', 'delete', 'eth0'] });
        await ip(undefined, `netns delete ${host.netns}`);
      }
      if (reuse === 'at-once') free.unshift(number);
      else free.push(number);
    },
  };
}
