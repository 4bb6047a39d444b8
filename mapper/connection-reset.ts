/**
 * `existingConnections: reset`: when a pod's verdict flips, the connections that it
 * opened before are reset, so that what it opens in their place goes the new way.
 *
 * Concerned are connections that the pod opened. One that was opened to it went the
 * way that its client's verdict said, and ends when that flips.
 */
import { readdirSync, statSync } from 'node:fs';
import { BlockList } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { DataPlane } from '../native/data-plane.ts';
import { messageOf } from '../native/error.ts';
import type { PodInfo } from '../native/layouts.ts';
import { openPodNetns } from '../native/pod-netns.ts';
import { effectiveCapabilities } from '../native/privilege.ts';
import { openTcpSockets, type TcpSocket, type TcpState } from '../native/sock-destroy.ts';
import type { Pod } from './objects.ts';
import { addressText, isRedirected } from './pod-entry.ts';
import { isExcludedOutbound } from './traffic-options.ts';
import type { Decision } from './verdict.ts';

const CONNECTED: readonly TcpState[] = ['established', 'synSent', 'finWait1', 'finWait2', 'closeWait'];
/** Of a connect() that was under way at the flip, the second look finds the socket. */
const LOOKS_MS: readonly number[] = [0, 150];
const NOT_READY_MS = 100;

/** A pod's entry was written. */
export interface Written {
  readonly pod: Pod;
  readonly decision: Decision;
  /** Undefined where the pod had none. */
  readonly before: PodInfo | undefined;
  readonly entry: PodInfo;
  /** Of its containers and its own, relative to the watched root, as they are when asked. */
  readonly paths: () => readonly string[];
}

export interface ConnectionResetOptions {
  readonly maps: Pick<DataPlane['maps'], 'connections' | 'overflowConnections'>;
  readonly sidecarUser: number;
  readonly cgroupRoot: string;
  readonly procRoot: string;
  readonly logger: Logger;
  readonly pidsOf: (path: string) => readonly number[];
  /** Whether all cgroups have been seen and the programs are attached. */
  readonly isReady: () => boolean;
  readonly onError: (error: unknown) => void;
}

export class ConnectionReset implements Disposable {
  readonly #options: ConnectionResetOptions;
  /** The latest flip of each pod, by UID, while it is looked after. */
  readonly #flips = new Map<string, Written>();
  #isStopped = false;

  constructor(options: ConnectionResetOptions) {
    this.#options = options;
    if (!effectiveCapabilities(options.procRoot).has('CAP_SYS_ADMIN')) {
      options.logger.warn("existingConnections is reset, and the agent lacks CAP_SYS_ADMIN, which it takes to enter a pod's network namespace: open connections will go on as they are when a verdict changes");
    }
  }

  /** Returns at once. A pod that is seen for the first time has nothing to reset. */
  written(written: Written): void {
    const { pod, before, entry } = written;
    if (before?.uid !== pod.uid || isRedirected(before) === isRedirected(entry)) return;
    const isUnderWay = this.#flips.has(pod.uid);
    this.#flips.set(pod.uid, written);
    if (!isUnderWay) void this.#lookAfter(pod);
  }

  async #lookAfter({ uid, namespace, name }: Pod): Promise<void> {
    const { logger, isReady, onError } = this.#options;
    let done: Written | undefined;
    let closed = 0;
    try {
      // Two flips in a row: the second one is looked after from its beginning.
      for (let flip = this.#flips.get(uid); flip !== done && flip !== undefined; flip = this.#flips.get(uid)) {
        done = flip;
        closed = 0;
        for (const wait of LOOKS_MS) {
          await delay(wait, undefined, { ref: false });
          while (!isReady() && !this.#isStopped) await delay(NOT_READY_MS, undefined, { ref: false });
          if (this.#isStopped || this.#flips.get(uid) !== flip) break;
          closed += this.#reset(flip);
        }
      }
      if (done !== undefined) logger.info({ podUid: uid, closed, redirected: isRedirected(done.entry) }, `the verdict on pod ${namespace}/${name} changed: connections that it had open were reset`);
    } catch (error) {
      onError(error);
      logger.error({ err: error, podUid: uid }, `connections that pod ${namespace}/${name} had open could not be reset, and go on as they were: ${messageOf(error)}`);
    } finally {
      this.#flips.delete(uid);
    }
  }

  /** Returns how many were reset. */
  #reset(flip: Written): number {
    const { pidsOf, procRoot } = this.#options;
    const paths = flip.paths();
    const cgroups = this.#below(paths);
    const seen = new Set<number>();
    let closed = 0;
    for (const pid of new Set(paths.flatMap((path) => [...pidsOf(path)]))) {
      using netns = openPodNetns(pid, procRoot);
      if (netns === undefined || seen.has(netns.inode)) continue;
      seen.add(netns.inode);
      using sockets = openTcpSockets(netns.fd);
      const all = sockets.list([...CONNECTED, 'listen']);
      const listening = new Set(all.filter(({ state }) => state === 'listen').map(({ localPort }) => localPort));
      for (const tcp of all) {
        // Another pod in the same namespace keeps its own.
        if (tcp.state === 'listen' || tcp.cgroupId === undefined || !cgroups.has(tcp.cgroupId)) continue;
        if (this.#isConcerned(flip, tcp, listening) && sockets.destroy(tcp)) closed++;
      }
    }
    return closed;
  }

  #isConcerned({ entry, decision }: Written, tcp: TcpSocket, listening: ReadonlySet<number>): boolean {
    const { maps, sidecarUser } = this.#options;
    const wasRedirected = maps.connections.get(tcp.cookie) !== undefined || maps.overflowConnections.get(tcp.cookie) !== undefined;
    if (!isRedirected(entry)) return wasRedirected;
    // Leave alone what the connect programs would: what was accepted, local, the sidecar's own, excluded.
    if (wasRedirected || listening.has(tcp.localPort) || isLocal(tcp, entry)) return false;
    if (decision.sidecar && tcp.uid === sidecarUser) return false;
    return decision.traffic === undefined || !isExcludedOutbound(decision.traffic, tcp.remote, tcp.remotePort);
  }

  /** Ids of these cgroups and of all below: something in a container may have made its own. */
  #below(paths: readonly string[]): ReadonlySet<bigint> {
    const ids = new Set<bigint>();
    const walk = (directory: string): void => {
      const id = statSync(directory, { bigint: true, throwIfNoEntry: false })?.ino;
      if (id === undefined || ids.has(id)) return;
      ids.add(id);
      for (const below of subdirectories(directory)) walk(below);
    };
    for (const path of paths) walk(this.#options.cgroupRoot + path);
    return ids;
  }

  [Symbol.dispose](): void {
    this.#isStopped = true;
  }
}

function subdirectories(directory: string): string[] {
  try {
    return readdirSync(directory, { withFileTypes: true }).filter((entry) => entry.isDirectory()).map(({ name }) => `${directory}/${name}`);
  } catch {
    return []; // gone meanwhile
  }
}

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet('127.0.0.0', 8);
LOOPBACK.addAddress('::1', 'ipv6');

function isLocal({ local, remote }: TcpSocket, { ip4, ip6 }: PodInfo): boolean {
  const text = addressText(remote);
  if (text === undefined || LOOPBACK.check(text, text.includes(':') ? 'ipv6' : 'ipv4')) return true;
  return [local, ip4, ip6].some((own) => Buffer.compare(own, remote) === 0);
}
