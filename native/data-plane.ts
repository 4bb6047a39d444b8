/**
 * The kernel's half of cgroute: its programs where they belong, its maps by
 * name. Everything is pinned below one versioned bpffs directory.
 */
import { closeSync, existsSync, mkdirSync, readdirSync, rmdirSync, statfsSync, statSync, unlinkSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { BpfMap, u32, u64, type Codec } from './bpf-map.ts';
import { loadPinned, type LoadedObject, type Program } from './bpf-object.ts';
import { dropLinkAt, dropLink, ensureLink, isLive, pinnedLinks, type CgroupPlace } from './cgroup-link.ts';
import { CgrouteError, messageOf } from './error.ts';
import { address, agentInfo, cgroupEvent, cgroupInfo, connection, originalDst, podAddress, podCounters, podInfo, podKey, podOptions, podTrees, portKey, rangeKey, settingValue, tuple, type CgroupEvent } from './layouts.ts';
import { checked, libbpf } from './libbpf.ts';
import { watchRingBuffer } from './ring-buffer.ts';
import { hasTraceLink, replaceTraceLink, tracePin } from './trace-link.ts';

/** Changes when a map's layout does. */
export const PIN_VERSION = 'v1';
const BPF_FS_MAGIC = 0xcafe4a11;

/** Longer than a proxy leaves a connection unaccepted. */
const STALE_MS = 60_000;

/** What runs at the watched root, where the kubelet keeps its pods, and at the proxy. */
const ROOT_PROGRAMS = ['root_connect4', 'root_connect6'];
const SOCKET_PROGRAMS = ['sock_release', 'getpeername4', 'getpeername6'];
const HANDOFF_PROGRAMS = ['sock_ops'];
const POD_TREE_PROGRAMS = ['pod_connect4', 'pod_connect6'];
const PROXY_PROGRAMS = ['original_dst'];
const TRACE_PROGRAMS = ['cgroup_mkdir', 'cgroup_rmdir'];

function openMaps(directory: string) {
  const open = <K, V>(name: string, key: Codec<K>, value: Codec<V>): BpfMap<K, V> => {
    const path = `${directory}/${name}`;
    return new BpfMap(name, checked(libbpf().objGet(path), 'bpf_obj_get', path), key, value);
  };
  return {
    cgroups: open('cgroup_info_map', u64, cgroupInfo),
    settings: open('settings', u32, settingValue),
    podAddresses: open('pod_ip_map', address, podAddress),
    pods: open('pod_info_map', podKey, podInfo),
    counters: open('pod_counters_map', u32, podCounters),
    podTrees: open('pod_trees_map', u32, podTrees),
    handoffs: open('handoff_map', u64, u32),
    podOptions: open('pod_options_map', u32, podOptions),
    podPorts: open('pod_port_map', portKey, u32),
    podRanges: open('pod_range_map', rangeKey, u32),
    agent: open('agent_map', u32, agentInfo),
    connections: open('connection_map', u64, connection),
    overflowConnections: open('connection_overflow_map', u64, connection),
    overflowCount: open('overflow_count_map', u32, u64),
    originals: open('original_dst_map', tuple, originalDst),
  };
}

/** Typed handles on the pinned maps; the agent may be down. */
export type PinnedMaps = ReturnType<typeof openMaps> & Disposable;

const directories = (bpffsRoot: string) => ({
  base: `${bpffsRoot}/${PIN_VERSION}`,
  maps: `${bpffsRoot}/${PIN_VERSION}/maps`,
  links: `${bpffsRoot}/${PIN_VERSION}/links`,
});

/** Where the links of this version are pinned. */
export const linkDirectory = (bpffsRoot: string): string => directories(bpffsRoot).links;

/** Undefined when nothing of cgroute is pinned below `bpffsRoot`. @throws CgrouteError when it cannot be read */
export function openPinnedMaps(bpffsRoot: string): PinnedMaps | undefined {
  const { maps } = directories(bpffsRoot);
  try {
    statSync(`${maps}/agent_map`);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    throw new CgrouteError('EPINS', `--bpffs-root ${bpffsRoot} cannot be looked into (${code ?? messageOf(cause)}): run as root, or as the user whose directory it is`, { cause });
  }
  return disposable(openMaps(maps));
}

function disposable(maps: ReturnType<typeof openMaps>): PinnedMaps {
  return { ...maps, [Symbol.dispose]() { for (const map of Object.values(maps)) map[Symbol.dispose](); } };
}

export interface DataPlaneOptions {
  /** Made by {@link makePinDirectory}. */
  readonly bpffsRoot: string;
  /** The watched root and its depth in the kernel's cgroup hierarchy (the real root is 0). */
  readonly root: CgroupPlace;
  readonly rootLevel: number;
  readonly maxEntries: Readonly<Record<string, number>>;
  /** Where the proxy takes redirected connections. @default 15001 and 15006 */
  readonly ports?: { readonly outbound: number; readonly inbound: number };
}

export interface DataPlane extends Disposable {
  readonly maps: PinnedMaps;
  readonly notes: readonly string[];
  /** Descriptor of the socket filter for process events; undefined where the kernel refuses it, with the reason among the notes. */
  readonly execFilter: number | undefined;
  /**
   * Has the kernel write the entries of pods' cgroups as these are made, from what
   * is in `pod_info_map`, and tells of each cgroup that is made or removed below
   * the root. False where this kernel refuses the programs; the notes say why.
   */
  attachIdentity(): boolean;
  /** Calls for each of those events until disposed of. @throws CgrouteError `EBPF` when there is none */
  watchCgroupEvents(onEvent: (event: CgroupEvent) => void, onError: (error: unknown) => void): Disposable;
  /** What looks after redirected sockets at the watched root: before the connect programs. Idempotent, like the next four. */
  attachSockets(): void;
  /** What brings the original destinations of the redirected connections of a cgroup to the proxy: before anything there is redirected. */
  attachHandoff(place: CgroupPlace): void;
  /** Nothing there is redirected any more, or it is gone. */
  detachHandoff(cgroupId: bigint): void;
  /** Programs at the watched root. */
  attachRoot(): void;
  /** Programs at a cgroup that holds pods, ahead of any at the root. */
  attachPodTree(place: CgroupPlace): void;
  /** `SO_ORIGINAL_DST` for the processes of the node's proxy. */
  attachProxy(place: CgroupPlace): void;
  /** Drops links of cgroups that are not among those attached by now. Returns their number. */
  dropOtherLinks(): number;
  /** Puts back links that somebody removed. Returns their names. */
  repairLinks(): string[];
  /** Drops original destinations that no proxy has fetched for so long. Returns their number. @default 60,000 ms */
  expireOriginals(olderThanMs?: number): number;
  /** Removes all links and maps: connections are untouched from now on. */
  detach(): void;
}

/**
 * Loads the programs and takes over the maps and links that are pinned. Nothing
 * is attached by this alone.
 * @throws CgrouteError `ELAYOUT`, `EPINLAYOUT`, `EBPFLOAD`, `EBPF`
 */
export function openDataPlane(options: DataPlaneOptions): DataPlane {
  const { maps: mapDirectory, links } = directories(options.bpffsRoot);
  mkdirSync(mapDirectory, { recursive: true, mode: 0o700 });
  mkdirSync(links, { recursive: true, mode: 0o700 });
  const objects: LoadedObject[] = [];
  const notes: string[] = [];
  const load = { mapDirectory, maxEntries: options.maxEntries, tunables: { root_level: options.rootLevel } };
  const ports = options.ports === undefined ? {} : { outbound_port: options.ports.outbound, inbound_port: options.ports.inbound };
  /** An optimisation: everything works without it. */
  const optional = (name: string, without: string, tunables: Readonly<Record<string, bigint>> = {}): void => {
    try {
      objects.push(loadPinned(name, { ...load, tunables: { ...load.tunables, ...tunables } }));
    } catch (error) {
      if (error instanceof CgrouteError && error.code === 'EBPFLOAD') notes.push(`${without}, as ${messageOf(error)}`);
      else throw error;
    }
  };
  let maps: PinnedMaps;
  try {
    objects.push(loadPinned('origdst', load), loadPinned('connect', { ...load, tunables: { ...load.tunables, ...ports } }));
    optional('execs', 'each exec on the host is looked at');
    optional('cgroups', 'pods are known some milliseconds after their cgroups are made', { root_id: options.root.id });
    maps = disposable(openMaps(mapDirectory));
  } catch (error) {
    for (const object of objects) object[Symbol.dispose]();
    throw error;
  }
  const programs = new Map(objects.flatMap((object) => [...object.programs]));
  /** What should be attached: pin name to program and place. */
  const attached = new Map<string, { program: Program; place: CgroupPlace }>();
  /** The same for tracepoints. */
  const traced = new Map<string, Program>();
  const attach = (names: readonly string[], place: CgroupPlace): void => {
    for (const name of names) {
      const program = programs.get(name);
      if (program === undefined) throw new CgrouteError('ENOOBJECT', `the compiled BPF objects have no program ${name}: run \`npm run setup\``);
      ensureLink(links, program, place);
      attached.set(`${name}@${place.id}`, { program, place });
    }
  };
  return {
    maps,
    notes: [...new Set([...objects.flatMap((object) => object.notes), ...notes])],
    execFilter: programs.get('exec_filter')?.fd,
    attachIdentity() {
      const tracing = TRACE_PROGRAMS.flatMap((name) => programs.get(name) ?? []);
      for (const program of tracing) {
        replaceTraceLink(links, program);
        traced.set(tracePin(program.name), program);
      }
      return tracing.length > 0;
    },
    watchCgroupEvents(onEvent, onError) {
      const path = `${mapDirectory}/cgroup_event_map`;
      const fd = checked(libbpf().objGet(path), 'bpf_obj_get', path);
      try {
        return watchRingBuffer(fd, cgroupEvent, onEvent, onError);
      } finally {
        closeSync(fd);
      }
    },
    attachSockets: () => attach(SOCKET_PROGRAMS, options.root),
    attachHandoff: (place) => attach(HANDOFF_PROGRAMS, place),
    detachHandoff(cgroupId) {
      for (const program of HANDOFF_PROGRAMS) {
        attached.delete(`${program}@${cgroupId}`);
        dropLinkAt(links, program, cgroupId);
      }
    },
    attachRoot: () => attach(ROOT_PROGRAMS, options.root),
    attachPodTree: (place) => attach(POD_TREE_PROGRAMS, place),
    attachProxy: (place) => attach(PROXY_PROGRAMS, place),
    dropOtherLinks() {
      const others = pinnedLinks(links).filter((link) => !attached.has(basename(link.pin)) && !traced.has(basename(link.pin)));
      for (const link of others) dropLink(link);
      return others.length;
    },
    repairLinks() {
      const untraced = [...traced].filter(([, { name }]) => !hasTraceLink(links, name));
      for (const [, program] of untraced) replaceTraceLink(links, program);
      const lost = [...attached].filter(([, { program, place }]) => !isLive(links, program.name, place.id));
      return [...untraced.map(([pin]) => pin), ...lost.flatMap(([name, { program, place }]) => {
        if (!isStill(place)) {
          attached.delete(name);
          dropLinkAt(links, program.name, place.id);
          return [];
        }
        ensureLink(links, program, place);
        return [name];
      })];
    },
    expireOriginals(olderThanMs = STALE_MS) {
      // The clock that bpf_ktime_get_ns() reads.
      const since = process.hrtime.bigint() - BigInt(olderThanMs) * 1_000_000n;
      const stale = maps.originals.entries().filter(([, { atNs }]) => atNs < since);
      return stale.filter(([key]) => maps.originals.delete(key)).length;
    },
    detach() {
      attached.clear();
      traced.clear();
      removePins(options.bpffsRoot);
    },
    [Symbol.dispose]() {
      maps[Symbol.dispose]();
      for (const object of objects.splice(0)) object[Symbol.dispose]();
    },
  };
}

/** The cgroup at that path may have been removed and made again. */
function isStill({ path, id }: CgroupPlace): boolean {
  return statSync(path, { bigint: true, throwIfNoEntry: false })?.ino === id;
}

/**
 * Makes the directory for pins, if it is not there.
 * @throws CgrouteError `EBPFFS` when it would not be on a BPF filesystem
 */
export function makePinDirectory(bpffsRoot: string): void {
  let at = bpffsRoot;
  while (!existsSync(at) && at !== dirname(at)) at = dirname(at);
  requireBpffs(at, bpffsRoot);
  mkdirSync(bpffsRoot, { recursive: true, mode: 0o700 });
}

function requireBpffs(path: string, bpffsRoot: string): void {
  if ((statfsSync(path).type >>> 0) === BPF_FS_MAGIC) return;
  throw new CgrouteError('EBPFFS', `--bpffs-root ${bpffsRoot} is not on a BPF filesystem: expected bpffs mounted at or above it; mount it with \`mount -t bpf bpf /sys/fs/bpf\``);
}

/** A redirected connection gets from connect() to accept() within this time, as both ends are on this host. */
const IN_FLIGHT_MS = 100;

/**
 * Removes all that cgroute pinned, of any version: first what redirects; then,
 * when the connections that are under way have arrived, what brings them there.
 * What others keep beside it stays. Returns the number of pins removed.
 * @throws CgrouteError `EBPFFS` when the directory is not on a BPF filesystem
 */
export function removePins(bpffsRoot: string): number {
  if (!existsSync(bpffsRoot)) return 0;
  requireBpffs(bpffsRoot, bpffsRoot);
  const versions = subdirectories(bpffsRoot).filter((path) => /\/v\d+$/.test(path));
  const folders = versions.flatMap((version) => subdirectories(version).filter((path) => /\/(?:maps|links)$/.test(path)));
  const pins = folders.flatMap((folder) => readdirSync(folder).map((name) => `${folder}/${name}`));
  const redirecting = pins.filter((pin) => /\/(?:root|pod)_connect[46]@\d+$/.test(pin));
  for (const pin of redirecting) unlinkSync(pin);
  if (redirecting.length > 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, IN_FLIGHT_MS);
  for (const pin of pins) if (!redirecting.includes(pin)) unlinkSync(pin);
  for (const directory of [...folders, ...versions, bpffsRoot]) if (readdirSync(directory).length === 0) rmdirSync(directory);
  return pins.length;
}

function subdirectories(directory: string): string[] {
  return readdirSync(directory, { withFileTypes: true }).filter((entry) => entry.isDirectory()).map(({ name }) => `${directory}/${name}`);
}
