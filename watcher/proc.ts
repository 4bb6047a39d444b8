/**
 * What /proc says about processes, read below a `procRoot` so that tests run on
 * fixture trees. Formats: proc_pid_cgroup(5), proc_pid_stat(5), namespaces(7).
 *
 * Nothing here throws: a process that is gone, or whose PID was given to another
 * one in the middle of reading, is `undefined`.
 */
import { closeSync, openSync, readFileSync, readlinkSync, readSync } from 'node:fs';
import { SocketAddress } from 'node:net';
import { levelsAbove, type CgroupMount } from './host.ts';
import { networkFiles } from './network-files.ts';
import { networkTables, type NetworkTables } from './network-tables.ts';

const DELETED = ' (deleted)';

export interface ProcessFact {
  readonly pid: number;
  /** The process's cgroup, relative to the watched root, with a leading slash; `/` is the root itself. */
  readonly path: string;
  /** Inode number of its network namespace. */
  readonly netns: number;
}

export interface Addresses {
  readonly netns: number;
  /** The process is in the network namespace of PID 1: its addresses say nothing, and `ips` is empty. */
  readonly isHost: boolean;
  /** Canonical text, IPv4 first. No loopback, no link-local, none of the host's own. */
  readonly ips: readonly string[];
  /** When the process began, in clock ticks since boot. */
  readonly startedTicks: number;
}

/** The network namespace of one process. */
export interface ProcessNetwork {
  readonly pid: number;
  /** Inode number. */
  readonly netns: number;
  /** It is that of PID 1: it says nothing of the process. */
  readonly isHost: boolean;
  /** When the process began, in clock ticks since boot. */
  readonly startedTicks: number;
}

export interface Proc {
  /**
   * The process's cgroup relative to the watched root, without ' (deleted)'.
   * Undefined when it is outside the root, or gone. One read of one file and no
   * copy for a process outside the root: this is called for each exec on the host.
   */
  cgroupOfPid(pid: number): string | undefined;
  /** Cgroup and network namespace, read of one and the same process. */
  processOf(pid: number): ProcessFact | undefined;
  /** False for a thread of the kernel's, which has no executable. */
  isUserProcess(pid: number): boolean;
  /** Inode number of the process's network namespace. */
  netnsOf(pid: number): number | undefined;
  /** The host's network namespace; undefined where that cannot be told. */
  hostNetns(): number | undefined;
  /** True for an address of the host's own network namespace. */
  isHostAddress(ip: string): boolean;
  /** Undefined also where the host's network namespace is not known: nothing is proved then. */
  networkOf(pid: number): ProcessNetwork | undefined;
  /**
   * Addresses and routes of the process's network namespace, without entering it. What
   * cannot be read is empty; undefined where the process is not, or not all the time, in
   * the network of that inode.
   */
  networkTablesOf(pid: number, netns: number): NetworkTables | undefined;
  /** The addresses of the process's network namespace that can be a pod's. */
  addressesOf(pid: number): Addresses | undefined;
}

export interface ProcOptions {
  readonly procRoot: string;
  /** The watched root as a path of the file system, without symbolic links. */
  readonly cgroupRoot: string;
  /** The cgroup2 mount that holds `cgroupRoot`. */
  readonly mount: CgroupMount;
  /**
   * The root of the reader's own cgroup namespace as a path from the mount's
   * root, where the mount starts above it (`/kubepods/pod1/c1` for `/../../..`).
   * Without it, cgroups that the kernel names from that namespace on are unknown.
   */
  readonly namespacePath?: string | undefined;
}

export function openProc(options: ProcOptions): Proc {
  const { procRoot, mount } = options;
  const below = options.cgroupRoot.slice(mount.mountPoint === '/' ? 0 : mount.mountPoint.length);
  // How /proc/<pid>/cgroup writes the watched root, as far as text alone can say.
  const rootText = (mount.root === '/' ? '' : mount.root) + below;
  const rootBytes = Buffer.from(rootText);
  const line = Buffer.alloc(64 * 1024);

  function read(file: string): string | undefined {
    try {
      return readFileSync(`${procRoot}/${file}`, 'utf8');
    } catch {
      return undefined;
    }
  }

  function readCgroup(pid: number): number {
    let fd: number;
    try {
      fd = openSync(`${procRoot}/${pid}/cgroup`, 'r');
    } catch {
      return -1;
    }
    try {
      return readSync(fd, line);
    } catch {
      return -1;
    } finally {
      closeSync(fd);
    }
  }

  function cgroupOfPid(pid: number): string | undefined {
    const length = readCgroup(pid);
    if (length <= 0) return undefined;
    const [start, end] = unifiedLine(line, length);
    if (start < 0) return undefined;
    const after = start + rootBytes.length;
    const matches = after <= end && line.compare(rootBytes, 0, rootBytes.length, start, after) === 0;
    if (matches && (after === end || line[after] === 0x2f || line[after] === 0x20)) {
      const path = withoutDeleted(line.toString('utf8', after, end));
      // With '/../..' as the mount's root, '/../../..' is above it.
      if (path === '') return '/';
      return path.startsWith('/') && levelsAbove(path) === 0 ? path : undefined;
    }
    if (levelsAbove(mount.root) === 0 || options.namespacePath === undefined) return undefined;
    const whole = fromMount(
      withoutDeleted(line.toString('utf8', start, end)),
      mount.root,
      options.namespacePath,
    );
    if (whole === undefined || !(whole === below || whole.startsWith(`${below}/`))) return undefined;
    return whole.slice(below.length) || '/';
  }

  function netnsOf(pid: number): number | undefined {
    try {
      const text = /^net:\[(\d+)\]$/.exec(readlinkSync(`${procRoot}/${pid}/ns/net`))?.[1];
      return text === undefined ? undefined : Number(text);
    } catch {
      return undefined;
    }
  }

  function isUserProcess(pid: number): boolean {
    try {
      readlinkSync(`${procRoot}/${pid}/exe`);
      return true;
    } catch (error) {
      return (error as NodeJS.ErrnoException).code !== 'ENOENT';
    }
  }

  const startOf = (pid: number): string | undefined => startTime(read(`${pid}/stat`) ?? '');

  function processOf(pid: number): ProcessFact | undefined {
    return ofOneProcess(
      () => startOf(pid),
      () => {
        const path = cgroupOfPid(pid);
        const netns = path === undefined ? undefined : netnsOf(pid);
        return path === undefined || netns === undefined ? undefined : { pid, path, netns };
      },
    );
  }

  function addressesIn(pid: number): string[] {
    return [
      ...localAddresses4(read(`${pid}/net/fib_trie`) ?? ''),
      ...localAddresses6(read(`${pid}/net/if_inet6`) ?? ''),
    ];
  }

  /** A process that is in the host's network for sure: PID 1 or, where a security module hides it, the kernel's kthreadd. */
  function hostPid(): 1 | 2 | undefined {
    if (netnsOf(1) !== undefined) return 1;
    return read('2/comm') === 'kthreadd\n' && netnsOf(2) !== undefined ? 2 : undefined;
  }

  function hostNetns(): number | undefined {
    const pid = hostPid();
    return pid === undefined ? undefined : netnsOf(pid);
  }

  // The host's table of routes can be large; its addresses seldom change.
  let host: { readonly until: number; readonly ips: ReadonlySet<string> } | undefined;
  function hostAddresses(): ReadonlySet<string> {
    const now = performance.now();
    if (host === undefined || host.until < now)
      host = { until: now + 10_000, ips: new Set(addressesIn(hostPid() ?? 1)) };
    return host.ips;
  }

  function networkOf(pid: number): ProcessNetwork | undefined {
    const startedTicks = Number(startOf(pid));
    return ofOneProcess(
      () => startOf(pid),
      () => {
        const netns = netnsOf(pid);
        const host = hostNetns();
        // Without the host's to compare with, nothing is proved.
        if (netns === undefined || host === undefined) return undefined;
        return { pid, netns, isHost: netns === host, startedTicks };
      },
    );
  }

  function addressesOf(pid: number): Addresses | undefined {
    return ofOneProcess(
      () => startOf(pid),
      () => {
        const network = networkOf(pid);
        if (network === undefined) return undefined;
        const { netns, isHost, startedTicks } = network;
        if (isHost) return { netns, isHost, ips: [], startedTicks };
        const own = hostAddresses();
        const ips = addressesIn(pid).filter((ip) => !own.has(ip));
        // One that has ended meanwhile is still there for its parent, and has no network any more: what was read is a part.
        return netnsOf(pid) === netns ? { netns, isHost: false, ips, startedTicks } : undefined;
      },
    );
  }

  function networkTablesOf(pid: number, netns: number): NetworkTables | undefined {
    return ofOneProcess(
      () => startOf(pid),
      () => {
        if (netnsOf(pid) !== netns) return undefined;
        const files = networkFiles(`${procRoot}/${pid}/net`);
        // What was read in part says what is not so.
        return netnsOf(pid) === netns ? networkTables(files) : undefined;
      },
    );
  }

  return {
    cgroupOfPid,
    processOf,
    isUserProcess,
    netnsOf,
    hostNetns,
    isHostAddress: (ip) => hostAddresses().has(ip),
    networkOf,
    networkTablesOf,
    addressesOf,
  };
}

/** What `reader` says, if `startOf` says the same before and after: the PID was one process's all the time. */
export function ofOneProcess<T>(
  startOf: () => string | undefined,
  reader: () => T | undefined,
): T | undefined {
  const before = startOf();
  if (before === undefined) return undefined;
  const result = reader();
  return startOf() === before ? result : undefined;
}

/** Where the path of the `0::` line stands in the bytes of /proc/<pid>/cgroup: start and end, start -1 without one. */
function unifiedLine(bytes: Buffer, length: number): readonly [start: number, end: number] {
  for (let at = 0; at < length; ) {
    let end = bytes.indexOf(0x0a, at);
    if (end < 0 || end > length) end = length;
    if (bytes[at] === 0x30 && bytes[at + 1] === 0x3a && bytes[at + 2] === 0x3a) return [at + 3, end];
    at = end + 1;
  }
  return [-1, -1];
}

/** The path of the `0::` line in the text of /proc/<pid>/cgroup, wherever that line stands. */
export function unifiedPath(text: string): string | undefined {
  const bytes = Buffer.from(text);
  const [start, end] = unifiedLine(bytes, bytes.length);
  return start < 0 ? undefined : bytes.toString('utf8', start, end);
}

function withoutDeleted(path: string): string {
  return path.endsWith(DELETED) ? path.slice(0, -DELETED.length) : path;
}

/**
 * A cgroup as the reader's cgroup namespace names it (`/../podX/c`), told from
 * the root of a mount that starts above that namespace (`/../..`), given the
 * namespace's own place below the mount. Undefined when it lies outside.
 */
export function fromMount(path: string, mountRoot: string, namespacePath: string): string | undefined {
  const above = levelsAbove(path);
  const base = namespacePath.split('/').filter((name) => name !== '');
  if (above > levelsAbove(mountRoot) || base.length !== levelsAbove(mountRoot)) return undefined;
  const names = path
    .split('/')
    .filter((name) => name !== '')
    .slice(above);
  return `/${[...base.slice(0, base.length - above), ...names].join('/')}`;
}

/**
 * Field 22 of /proc/<pid>/stat, clock ticks since boot. The command before it may
 * hold spaces and parentheses. Undefined for a process that has ended and waits
 * for its parent: it has no addresses any more, or half of them.
 */
export function startTime(stat: string): string | undefined {
  const close = stat.lastIndexOf(')');
  if (close < 0) return undefined;
  const fields = stat.slice(close + 2).split(' ');
  return fields[0] === 'Z' || fields[0] === 'X' ? undefined : fields[19];
}

/** The namespace's own IPv4 addresses in /proc/<pid>/net/fib_trie, without loopback and link-local. */
export function localAddresses4(fibTrie: string): string[] {
  const found = new Set<string>();
  // A leaf `|-- 10.0.0.5` is followed by its prefixes, `/32 host LOCAL` if it is ours.
  for (const [, address] of fibTrie.matchAll(
    /\|-- (\d+\.\d+\.\d+\.\d+)\n(?: +\/\d+ (?!host LOCAL).*\n)* +\/32 host LOCAL/g,
  )) {
    if (address !== undefined && !/^(?:127\.|169\.254\.|0\.)/.test(address)) found.add(address);
  }
  return [...found];
}

/** The namespace's own IPv6 addresses in /proc/<pid>/net/if_inet6, without loopback, link-local, IPv4-compatible ones and duplicates on the link. */
export function localAddresses6(ifInet6: string): string[] {
  const found = new Set<string>();
  for (const line of ifInet6.split('\n')) {
    // address, interface index, prefix length, scope, flags, name; all hexadecimal
    const [hex, , , , flags] = line.trim().split(/ +/);
    if (hex === undefined || flags === undefined || !/^[0-9a-f]{32}$/.test(hex)) continue;
    if (Number.parseInt(flags, 16) & 0x08) continue; // IFA_F_DADFAILED
    const groups = hex.match(/.{4}/g) ?? [];
    const first = Number.parseInt(hex.slice(0, 4), 16);
    // ::, ::1, and ::a.b.c.d, which has the bytes of a.b.c.d in the maps
    if (hex.startsWith('0'.repeat(24)) || (first & 0xffc0) === 0xfe80) continue;
    found.add(new SocketAddress({ address: groups.join(':'), family: 'ipv6' }).address);
  }
  return [...found];
}
