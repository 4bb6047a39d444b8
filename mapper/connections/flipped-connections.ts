/**
 * Which open connections the flip of a pod's verdict concerns: those that the
 * programs would send another way by now, had they been opened after it.
 *
 * - Outbound: what the pod's processes opened, in the pod's network namespace.
 *   When it joins, what went directly; when it leaves, what went to the proxy.
 * - Inbound: what processes of the host opened to the pod, in their own namespaces.
 *   When it joins, what went directly; when it leaves, what went to the proxy.
 *
 * What another pod opened to this one went the way that its own verdict said, and
 * so did what came from another node. What a pod in the host's network opened is a
 * process of the host's; its own verdict never flips.
 */
import { readFileSync, readdirSync, readlinkSync, statSync } from 'node:fs';
import { BlockList } from 'node:net';
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import { CgrouteError, isForbidden, refusalOf } from '../../native/error.ts';
import type { PodInfo } from '../../native/layout/layouts.ts';
import { openPodNetns } from '../../native/netns/pod-netns.ts';
import {
  openTcpSockets,
  type TcpSocket,
  type TcpSockets,
  type TcpState,
} from '../../native/netlink/sock-destroy.ts';
import type { Cgroup } from '../../watcher/cgroup-tree.ts';
import type { Host } from '../../watcher/open-host.ts';
import { isInboundRedirected, isRedirected } from '../maps/pod-entry.ts';
import { addressText } from '../objects/address.ts';
import { isExcludedInbound, isExcludedOutbound } from '../decisions/traffic-options.ts';
import type { Decision } from '../decisions/decision.ts';

/** A pod whose entry has another verdict than before. */
export interface Flipped {
  readonly decision: Decision;
  readonly before: PodInfo;
  readonly entry: PodInfo;
  /** Of its containers and its own, relative to the watched root, as they are when asked. */
  readonly paths: () => readonly string[];
}

export interface FlippedConnectionsOptions {
  readonly maps: Pick<DataPlane['maps'], 'connections' | 'overflowConnections' | 'podLocals' | 'podDevices'>;
  readonly sidecarUser: number;
  readonly cgroupRoot: string;
  readonly procRoot: string;
  readonly host: Pick<Host, 'pidsOf' | 'netnsOf' | 'hostNetns'>;
  /** Cgroups of no pod, and of pods in the host's network, as they are when asked. */
  readonly hostCgroups: () => readonly Cgroup[];
}

const CONNECTED: readonly TcpState[] = ['established', 'synSent', 'finWait1', 'finWait2', 'closeWait'];

export function isOutboundFlip({ before, entry }: Pick<Flipped, 'before' | 'entry'>): boolean {
  return isRedirected(before) !== isRedirected(entry);
}

export function isInboundFlip({ before, entry }: Pick<Flipped, 'before' | 'entry'>): boolean {
  return isInboundRedirected(before) !== isInboundRedirected(entry);
}

/**
 * Resets what the pod opened and its flip concerns.
 * @param onReset called for each
 * @throws CgrouteError `ESYSCALL`, `ENETNS`, `ESOCKDIAG` when something could not be reset
 */
export function resetOutbound(flip: Flipped, options: FlippedConnectionsOptions, onReset: () => void): void {
  const { host } = options;
  const cgroups = allBelow(flip.paths(), options.cgroupRoot);
  const pids = new Set([...cgroups.values()].flatMap((path) => host.pidsOf(path)));
  const { netns } = flip.entry;
  // What is nested in the pod, in a network of its own, is left alone either way.
  const isOwn = (inode: number): boolean => netns === 0n || netns === BigInt(inode);
  inNamespaces(pids, isOwn, options, (sockets) => {
    for (const tcp of openedIn(sockets)) {
      // Another pod in the same namespace keeps its own.
      if (tcp.cgroupId === undefined || !cgroups.has(tcp.cgroupId)) continue;
      if (isOutboundConcerned(flip, tcp, options) && sockets.destroy(tcp)) onReset();
    }
  });
}

function isOutboundConcerned(
  { entry, decision }: Flipped,
  tcp: TcpSocket,
  { maps, sidecarUser }: FlippedConnectionsOptions,
): boolean {
  const wasRedirected = originalOf(tcp, maps) !== undefined;
  if (!isRedirected(entry)) return wasRedirected;
  // Leave alone what the connect programs would: local, bound elsewhere, the sidecar's own, excluded.
  if (wasRedirected || isLocal(tcp, entry, maps) || isBoundElsewhere(tcp, entry, maps)) return false;
  if (decision.sidecar && tcp.uid === sidecarUser) return false;
  return decision.traffic === undefined || !isExcludedOutbound(decision.traffic, tcp.remote, tcp.remotePort);
}

/**
 * Resets what processes of the host opened to these pods and their flips concern.
 * One look for all, as it goes through every network namespace of the host's
 * processes.
 * @param onReset called for each
 * @throws CgrouteError `ESYSCALL`, `ENETNS`, `ESOCKDIAG` when something could not be reset
 */
export function resetInbound<T extends Flipped>(
  flips: readonly T[],
  options: FlippedConnectionsOptions,
  onReset: (flip: T) => void,
): void {
  const { host } = options;
  const own = options.hostCgroups();
  const cgroups = new Set(own.map(({ id }) => id));
  const pids = own.flatMap(({ path }) => host.pidsOf(path));
  const kubelets = lazily(() => socketsOfKubelets(pids, options.procRoot));
  const flipOf = new Map(
    flips.flatMap((flip) =>
      [flip.before.ip4, flip.before.ip6, flip.entry.ip4, flip.entry.ip6].map(
        (ip) => [addressText(ip), flip] as const,
      ),
    ),
  );
  flipOf.delete(undefined);
  const hosts = host.hostNetns();
  // In any other, the same address may be somebody else's.
  const isHosts = (inode: number): boolean => hosts === undefined || hosts === inode;
  inNamespaces(pids, isHosts, options, (sockets) => {
    for (const tcp of openedIn(sockets)) {
      if (tcp.cgroupId === undefined || !cgroups.has(tcp.cgroupId)) continue;
      const original = originalOf(tcp, options.maps);
      const flip = flipOf.get(addressText(original ?? tcp.remote));
      if (
        flip !== undefined &&
        isInboundConcerned(flip, tcp, original !== undefined, kubelets) &&
        sockets.destroy(tcp)
      )
        onReset(flip);
    }
  });
}

function isInboundConcerned(
  { entry, decision }: Flipped,
  tcp: TcpSocket,
  wasRedirected: boolean,
  kubelets: () => ReadonlySet<number>,
): boolean {
  if (!isInboundRedirected(entry)) return wasRedirected;
  // Leave alone what the connect programs would: ports of the proxy's, excluded ones, the kubelet's probes.
  if (wasRedirected || isExcludedInbound(decision.traffic, tcp.remotePort)) return false;
  return !kubelets().has(tcp.inode);
}

/** Calls for each network namespace of these processes once. What fails in one keeps no other from its turn, and is thrown afterwards. */
function inNamespaces(
  pids: Iterable<number>,
  isConcerned: (inode: number) => boolean,
  { host, procRoot }: FlippedConnectionsOptions,
  work: (sockets: TcpSockets) => void,
): void {
  const seen = new Set<number>();
  let failed: { readonly error: unknown } | undefined;
  for (const pid of pids) {
    const inode = host.netnsOf(pid);
    if (inode !== undefined && (seen.has(inode) || !isConcerned(inode))) continue;
    try {
      using netns = openPodNetns(pid, procRoot);
      // It has gone meanwhile, and its connections with it.
      if (netns === undefined || seen.has(netns.inode) || !isConcerned(netns.inode)) continue;
      seen.add(netns.inode);
      using sockets = openTcpSockets(netns.fd);
      work(sockets);
    } catch (error) {
      failed ??= { error };
    }
  }
  if (failed !== undefined) throw failed.error;
}

/** Those that were opened from there. An accepted one has its listener's port. */
function openedIn(sockets: TcpSockets): readonly TcpSocket[] {
  const all = sockets.list([...CONNECTED, 'listen']);
  const listening = new Set(all.filter(({ state }) => state === 'listen').map(({ localPort }) => localPort));
  return all.filter(({ state, localPort }) => state !== 'listen' && !listening.has(localPort));
}

/** Where a redirected connection was meant to go; undefined for any other. */
function originalOf(
  { cookie }: TcpSocket,
  { connections, overflowConnections }: FlippedConnectionsOptions['maps'],
): Uint8Array | undefined {
  return (connections.get(cookie) ?? overflowConnections.get(cookie))?.original.address.word;
}

/** These cgroups and all below, paths by id: something in a container may have made its own, and all its processes be there. */
function allBelow(paths: readonly string[], cgroupRoot: string): ReadonlyMap<bigint, string> {
  const found = new Map<bigint, string>();
  const walk = (path: string): void => {
    const id = statSync(cgroupRoot + path, { bigint: true, throwIfNoEntry: false })?.ino;
    if (id === undefined || found.has(id)) return;
    found.set(id, path);
    for (const name of subdirectories(cgroupRoot + path)) walk(`${path}/${name}`);
  };
  for (const path of paths) walk(path);
  return found;
}

/** @throws CgrouteError `EUNSEEN` where it may not be listed */
function subdirectories(directory: string): string[] {
  try {
    return readdirSync(directory, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => name);
  } catch (cause) {
    throwUnseen(cause, `cgroups below ${directory}`);
    return []; // gone meanwhile
  }
}

/** The names that bpf/lib/kubelet.bpf.h lets pass. */
const KUBELET = /^(kubelet|kubelite|k3s(-.*)?)$/;

/** Inodes of the sockets that kubelets among these processes have open. */
function socketsOfKubelets(pids: readonly number[], procRoot: string): ReadonlySet<number> {
  const inodes = new Set<number>();
  for (const pid of pids) {
    try {
      if (!KUBELET.test(readFileSync(`${procRoot}/${pid}/comm`, 'utf8').trim())) continue;
      for (const fd of readdirSync(`${procRoot}/${pid}/fd`)) {
        const inode = /^socket:\[(\d+)\]$/.exec(linkOf(`${procRoot}/${pid}/fd/${fd}`))?.[1];
        if (inode !== undefined) inodes.add(Number(inode));
      }
    } catch (cause) {
      throwUnseen(cause, `the sockets of the kubelet, process ${pid},`);
      // else gone meanwhile
    }
  }
  return inodes;
}

/** What may not be looked at is not gone: connections that should be reset, or must not be, would be missed. */
function throwUnseen(cause: unknown, what: string): void {
  if (isForbidden(cause))
    throw new CgrouteError('EUNSEEN', `${what} may not be looked at: ${refusalOf(cause)}`, { cause });
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return ''; // closed meanwhile
  }
}

function lazily<T extends object>(make: () => T): () => T {
  let made: T | undefined;
  return () => (made ??= make());
}

const NEAR = new BlockList();
NEAR.addSubnet('127.0.0.0', 8);
NEAR.addAddress('::1', 'ipv6');
NEAR.addSubnet('fe80::', 10, 'ipv6');

/** By its interface, as bpf/lib/network.bpf.h has it. Whether somebody bound it to its address, the kernel does not tell. */
function isBoundElsewhere(
  { family, local, boundDevice }: TcpSocket,
  { slot }: PodInfo,
  { podDevices }: FlippedConnectionsOptions['maps'],
): boolean {
  const { ip4 = 0, ip6 = 0 } = podDevices.get(slot) ?? {};
  const device = family === 4 || addressText(local)?.includes('.') === true ? ip4 : ip6;
  return boundDevice !== 0 && device !== 0 && boundDevice !== device;
}

function isLocal(
  { local, remote }: TcpSocket,
  { ip4, ip6, slot }: PodInfo,
  { podLocals }: FlippedConnectionsOptions['maps'],
): boolean {
  const text = addressText(remote);
  if (text === undefined || NEAR.check(text, text.includes(':') ? 'ipv6' : 'ipv4')) return true;
  return (
    [local, ip4, ip6].some((own) => Buffer.compare(own, remote) === 0) ||
    podLocals.get({ slot, address: { word: remote } }) !== undefined
  );
}
