/**
 * The kernel's half of cgroute: its programs where they belong, its maps by
 * name. Everything is pinned below one versioned bpffs directory.
 */
import { closeSync, existsSync, mkdirSync, statSync } from 'node:fs';
import { basename } from 'node:path';
import { BpfMap } from '../bpf/bpf-map.ts';
import { bytes, u8, u32, u64, type Codec } from '../layout/codec.ts';
import { loadPinned, type LoadedObject, type Program } from '../bpf/bpf-object.ts';
import {
  dropLinkAt,
  dropLink,
  ensureLink,
  isLive,
  isStill,
  pinnedLinks,
  type CgroupPlace,
  type LinkPins,
} from '../bpf/cgroup-link.ts';
import { CgrouteError, messageOf } from '../error.ts';
import { foreignCodec } from '../layout/foreign-codec.ts';
import {
  address,
  agentInfo,
  cgroupEvent,
  cgroupInfo,
  connection,
  originalDst,
  podAddress,
  podCounters,
  podInfo,
  podKey,
  podOptions,
  podShare,
  podTrees,
  portKey,
  rangeKey,
  settingValue,
  tuple,
  type CgroupEvent,
} from '../layout/layouts.ts';
import { BYPASS_PROGRAM, pinBypassFilter } from './bypass-filter.ts';
import type { FilterPin } from '../netns/iptables-rules.ts';
import { checked, libbpf } from '../boundary/libbpf.ts';
import { recountOriginals, recountShares } from './map-shares.ts';
import { OVERFLOW_BIAS } from './map-migration.ts';
import {
  PIN_VERSION,
  pinDirectories,
  pinDirectory,
  redirects,
  type PinDirectory,
} from '../pins/pin-directory.ts';
import { removePins, stopRedirecting } from './pin-removal.ts';
import { heldMaps } from '../pins/pinned-map.ts';
import { mapFacts, mapShape } from '../pins/pinned-object.ts';
import { watchRingBuffer } from '../bpf/ring-buffer.ts';
import { hasTraceLink, replaceTraceLink, tracePin } from '../bpf/trace-link.ts';
import { beginHandover, dropFormer, isServing } from './version-handover.ts';

export { makePinDirectory, PIN_VERSION } from '../pins/pin-directory.ts';
export { removePins } from './pin-removal.ts';

/** Longer than a proxy leaves a connection unaccepted. */
const STALE_MS = 60_000;

/** What runs at the watched root, where the kubelet keeps its pods, and at the proxy. */
const ROOT_PROGRAMS = ['root_connect4', 'root_connect6'];
const SOCKET_PROGRAMS = ['sock_release', 'getpeername4', 'getpeername6'];
const HANDOFF_PROGRAMS = ['sock_ops'];
const POD_TREE_PROGRAMS = ['pod_connect4', 'pod_connect6'];
const PROXY_PROGRAMS = ['original_dst'];
const TRACE_PROGRAMS = ['cgroup_mkdir', 'cgroup_rmdir'];

/** In the place of one that another version had not. */
function emptyMap<K, V>(name: string, key: Codec<K>, value: Codec<V>): BpfMap<K, V> {
  const BPF_MAP_TYPE_HASH = 1;
  return new BpfMap(
    name,
    checked(
      libbpf().mapCreate(BPF_MAP_TYPE_HASH, null, key.size, value.size, 1, null),
      'bpf_map_create',
      name,
    ),
    key,
    value,
  );
}

function openMaps({ maps: directory, version }: PinDirectory) {
  const open = <K, V>(name: string, key: Codec<K>, value: Codec<V>): BpfMap<K, V> => {
    const path = `${directory}/${name}`;
    if (version !== PIN_VERSION && !existsSync(path)) return emptyMap(name, key, value);
    const fd = checked(libbpf().objGet(path), 'bpf_obj_get', path);
    if (version === PIN_VERSION) return new BpfMap(name, fd, key, value);
    const shape = mapShape(mapFacts(fd, name));
    if (shape === undefined)
      throw new CgrouteError(
        'EPINLAYOUT',
        `the layout of ${path}, which is another version's, cannot be read: expected CAP_SYS_ADMIN; run as root`,
      );
    return new BpfMap(name, fd, foreignCodec(key, shape.key), foreignCodec(value, shape.value));
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
    bypass4: open('bypass_filter_map', bytes(4), u8),
    bypass6: open('bypass_filter6_map', bytes(16), u8),
    agent: open('agent_map', u32, agentInfo),
    connections: open('connection_map', u64, connection),
    overflowConnections: open('connection_overflow_map', u64, connection),
    overflowCount: open('overflow_count_map', u32, u64),
    originals: open('original_dst_map', tuple, originalDst),
    shares: open('pod_share_map', u32, podShare),
  };
}

/** Typed handles on the pinned maps; the agent may be down. */
export type PinnedMaps = ReturnType<typeof openMaps> & Disposable;

/**
 * This version's or, where none is pinned, another's, read by the layouts that the
 * kernel knows of them. Undefined when nothing of cgroute is pinned below `bpffsRoot`.
 * @throws CgrouteError when they cannot be read
 */
export function openPinnedMaps(bpffsRoot: string): PinnedMaps | undefined {
  try {
    const directory = pinDirectories(bpffsRoot).find(
      ({ maps }) => statSync(`${maps}/agent_map`, { throwIfNoEntry: false }) !== undefined,
    );
    return directory === undefined ? undefined : disposable(openMaps(directory));
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (cause instanceof CgrouteError) throw cause;
    if (code === 'ENOTDIR') return undefined;
    throw new CgrouteError(
      'EPINS',
      `--bpffs-root ${bpffsRoot} cannot be looked into (${code ?? messageOf(cause)}): run as root, or as the user whose directory it is`,
      { cause },
    );
  }
}

/** Whether anything that is pinned, of whichever version, redirects. */
export const isRedirecting = (bpffsRoot: string): boolean => pinDirectories(bpffsRoot).some(isServing);

function disposable(maps: ReturnType<typeof openMaps>): PinnedMaps {
  return {
    ...maps,
    [Symbol.dispose]() {
      for (const map of Object.values(maps)) map[Symbol.dispose]();
    },
  };
}

export interface DataPlaneOptions {
  /** Made by {@link makePinDirectory}. */
  readonly bpffsRoot: string;
  /** The watched root and its depth in the kernel's cgroup hierarchy (the real root is 0). */
  readonly root: CgroupPlace;
  readonly rootLevel: number;
  readonly maxEntries: Readonly<Record<string, number>>;
  /** Is told in a sentence of pins that were not as they should be, once {@link DataPlane.notes} have been read. */
  readonly warn?: (sentence: string) => void;
  /** Entries of the maps that all pods share which one slot may have. @default those of the compiled objects */
  readonly shares?: MapShares;
  /** Where the proxy takes redirected connections. @default 15001 and 15006 */
  readonly ports?: { readonly outbound: number; readonly inbound: number };
}

export interface MapShares {
  /** Of `connection_overflow_map`. */
  readonly connections: number;
  /** Of `original_dst_map`. */
  readonly originals: number;
}

export interface DataPlane extends Disposable {
  readonly maps: PinnedMaps;
  readonly notes: readonly string[];
  /** Descriptor of the socket filter for process events; undefined where the kernel refuses it, with the reason among the notes. */
  readonly execFilter: number | undefined;
  /** The pin that rules in pods with a sidecar name, made or replaced; idempotent. @throws CgrouteError `EBPF`, `EBPFFS` */
  pinBypass(): FilterPin;
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
  /**
   * When all connect programs are attached: takes over the open connections of
   * another version and removes its links and maps. Returns a sentence about it,
   * or undefined where there was none.
   */
  completeHandover(): Promise<string | undefined>;
  /** `SO_ORIGINAL_DST` for the processes of the node's proxy. */
  attachProxy(place: CgroupPlace): void;
  /** Drops links of cgroups that are not among those attached by now. Returns their number. */
  dropOtherLinks(): number;
  /**
   * Puts back links, and pins of links and maps, that somebody removed or replaced, with their directories. Returns their names.
   * @param onError is told what could not be put back, and the others are; by default it is thrown
   */
  repairLinks(onError?: (error: unknown) => void): string[];
  /** Drops original destinations that no proxy has fetched for so long. Returns their number. @default 60,000 ms */
  expireOriginals(olderThanMs?: number): number;
  /** No program runs any more; the maps stay. */
  detachPrograms(): void;
  /** Nothing more is redirected; the maps stay. */
  stopRedirecting(): void;
  /** Removes all links and maps: connections are untouched from now on. */
  detach(keepsFilter?: boolean): void;
}

/**
 * Loads the programs and takes over the maps and links that are pinned. Nothing
 * is attached by this alone.
 * @throws CgrouteError `ELAYOUT`, `EPINLAYOUT`, `EBPFLOAD`, `EBPF`
 */
export function openDataPlane(options: DataPlaneOptions): DataPlane {
  const { bpffsRoot, warn = () => {} } = options;
  const { maps: mapDirectory, links } = pinDirectory(bpffsRoot);
  let handover = beginHandover(bpffsRoot);
  const objects: LoadedObject[] = [];
  const notes: string[] = [];
  const load = {
    bpffsRoot,
    mapDirectory,
    held: heldMaps(links),
    adopt: handover?.adopt ?? (() => undefined),
    maxEntries: options.maxEntries,
    tunables: { root_level: options.rootLevel },
  };
  const { shares } = options;
  const ports =
    options.ports === undefined
      ? {}
      : { outbound_port: options.ports.outbound, inbound_port: options.ports.inbound };
  /** An optimisation: everything works without it. */
  const optional = (name: string, without: string, tunables: Readonly<Record<string, bigint>> = {}): void => {
    try {
      objects.push(loadPinned(name, { ...load, tunables: { ...load.tunables, ...tunables } }));
    } catch (error) {
      if (error instanceof CgrouteError && error.code === 'EBPFLOAD')
        notes.push(`${without}, as ${messageOf(error)}`);
      else throw error;
    }
  };
  let maps: PinnedMaps;
  try {
    objects.push(
      loadPinned('origdst', {
        ...load,
        tunables: shares === undefined ? {} : { original_share: shares.originals },
      }),
      loadPinned('connect', {
        ...load,
        tunables: {
          ...load.tunables,
          ...ports,
          ...(shares === undefined ? {} : { connection_share: shares.connections }),
        },
      }),
    );
    objects.push(loadPinned('bypass', { ...load, tunables: {} }));
    optional('execs', 'each exec on the host is looked at');
    optional('cgroups', 'pods are known some milliseconds after their cgroups are made', {
      root_id: options.root.id,
    });
    notes.push(...(handover?.copyDecisions() ?? []));
    maps = disposable(openMaps(pinDirectory(bpffsRoot)));
    recountShares(maps);
  } catch (error) {
    for (const object of objects) object[Symbol.dispose]();
    throw error;
  }
  const programs = new Map(objects.flatMap((object) => [...object.programs]));
  /** What should be attached: pin name to program and place. */
  const attached = new Map<string, { program: Program; place: CgroupPlace }>();
  /** The same for tracepoints. */
  const traced = new Map<string, Program>();
  /** Descriptors of the links, so that who removes a pin takes no program away. */
  const held = new Map<string, number>();
  const release = (isMeant: (pin: string) => boolean): void => {
    for (const [pin, fd] of held) {
      if (!isMeant(pin)) continue;
      held.delete(pin);
      closeSync(fd);
    }
  };
  const hold = (pin: string): void => {
    const path = `${links}/${pin}`;
    const fd = checked(libbpf().objGet(path), 'bpf_obj_get', path);
    release((other) => other === pin);
    held.set(pin, fd);
  };
  const detachPrograms = (): void => {
    attached.clear();
    traced.clear();
    release(() => true);
    for (const link of pinnedLinks(links)) dropLink(link);
  };
  const attach = (names: readonly string[], place: CgroupPlace): void => {
    for (const name of names) {
      const program = programs.get(name);
      if (program === undefined)
        throw new CgrouteError(
          'ENOOBJECT',
          `the compiled BPF objects have no program ${name}: run \`npm run setup\``,
        );
      const pin = `${name}@${place.id}`;
      ensureLink(pins(), program, place, redirects(pin), held.get(pin));
      attached.set(pin, { program, place });
      hold(pin);
    }
  };
  const pins = (): LinkPins => ({ bpffsRoot, directory: links, others: handover?.links ?? [], warn });
  return {
    maps,
    notes: [...new Set([...objects.flatMap((object) => object.notes), ...notes])],
    execFilter: programs.get('exec_filter')?.fd,
    pinBypass() {
      const program = programs.get(BYPASS_PROGRAM);
      if (program === undefined)
        throw new CgrouteError(
          'ENOOBJECT',
          `the compiled BPF objects have no program ${BYPASS_PROGRAM}: run \`npm run setup\``,
        );
      return pinBypassFilter(options.bpffsRoot, program, maps.bypass4.info.id);
    },
    attachIdentity() {
      const tracing = TRACE_PROGRAMS.flatMap((name) => programs.get(name) ?? []);
      for (const program of tracing) {
        replaceTraceLink(pins(), program);
        traced.set(tracePin(program.name), program);
        hold(tracePin(program.name));
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
        release((pin) => pin === `${program}@${cgroupId}`);
        dropLinkAt(links, program, cgroupId);
      }
    },
    attachRoot: () => attach(ROOT_PROGRAMS, options.root),
    attachPodTree: (place) => attach(POD_TREE_PROGRAMS, place),
    attachProxy: (place) => attach(PROXY_PROGRAMS, place),
    async completeHandover() {
      const done = await handover?.complete();
      if (handover !== undefined) recountShares(maps);
      handover = undefined;
      return done;
    },
    dropOtherLinks() {
      const others = pinnedLinks(links).filter(
        (link) => !attached.has(basename(link.pin)) && !traced.has(basename(link.pin)),
      );
      for (const link of others) dropLink(link);
      return (
        others.length +
        dropFormer(links, (id) => PROXY_PROGRAMS.some((program) => attached.has(`${program}@${id}`)))
      );
    },
    repairLinks(
      onError = (error) => {
        throw error;
      },
    ) {
      const repaired: string[] = [];
      const attempt = (work: () => readonly string[]): void => {
        try {
          repaired.push(...work());
        } catch (error) {
          onError(error);
        }
      };
      attempt(() => {
        for (const directory of [mapDirectory, links]) mkdirSync(directory, { recursive: true, mode: 0o700 });
        return [];
      });
      for (const object of objects) attempt(() => object.repairPins(warn));
      for (const [pin, program] of traced) {
        attempt(() => {
          if (hasTraceLink(links, program.name)) return [];
          replaceTraceLink(pins(), program, held.get(pin));
          hold(pin);
          return [pin];
        });
      }
      for (const [name, { program, place }] of [...attached]) {
        attempt(() => {
          if (isLive(links, program.name, place.id)) return [];
          if (isStill(place)) {
            attach([program.name], place);
            return [name];
          }
          attached.delete(name);
          release((pin) => pin === name);
          dropLinkAt(links, program.name, place.id);
          return [];
        });
      }
      return repaired;
    },
    expireOriginals(olderThanMs = STALE_MS) {
      // The clock that bpf_ktime_get_ns() reads.
      const since = process.hrtime.bigint() - BigInt(olderThanMs) * 1_000_000n;
      settleOverflow(maps);
      const stale = maps.originals.entries().filter(([, { atNs }]) => atNs < since);
      const dropped = stale.filter(([key]) => maps.originals.delete(key));
      if (dropped.length > 0) recountOriginals(maps, new Set(dropped.map(([, { slot }]) => slot)));
      return dropped.length;
    },
    stopRedirecting() {
      for (const pin of attached.keys()) if (redirects(pin)) attached.delete(pin);
      release(redirects);
      stopRedirecting(options.bpffsRoot);
    },
    detachPrograms,
    detach(keepsFilter = false) {
      detachPrograms();
      removePins(options.bpffsRoot, keepsFilter);
    },
    [Symbol.dispose]() {
      release(() => true);
      maps[Symbol.dispose]();
      for (const object of objects.splice(0)) object[Symbol.dispose]();
    },
  };
}

/** After a handover the count is too high; it is made exact when nothing is counted, and the kernel is far from doing so. */
function settleOverflow({ connections, overflowConnections, overflowCount }: PinnedMaps): void {
  const isOff = (overflowCount.get(0) ?? 0n) >= OVERFLOW_BIAS / 2n;
  if (!isOff || !overflowConnections.isEmpty || connections.keys().length > connections.info.maxEntries / 2)
    return;
  overflowCount.set(0, 0n);
}
