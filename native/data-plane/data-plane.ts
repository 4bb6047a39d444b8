/**
 * The kernel's half of cgroute: its programs where they belong, its maps by
 * name. Everything is pinned below one versioned bpffs directory.
 */
import { closeSync, mkdirSync } from 'node:fs';
import { checked, libbpf } from '../boundary/libbpf.ts';
import { loadPinned, type LoadedObject, type LoadOptions } from '../bpf/bpf-object.ts';
import type { CgroupPlace } from '../bpf/cgroup-link.ts';
import { watchRingBuffer } from '../bpf/ring-buffer.ts';
import { CgrouteError, messageOf } from '../error.ts';
import type { CgroupEvent } from '../layout/layouts.ts';
import type { FilterPin } from '../netns/iptables-rules.ts';
import { pinDirectory } from '../pins/pin-directory.ts';
import { MapsBeside } from '../pins/maps-beside.ts';
import { heldMaps } from '../pins/pinned-map.ts';
import { maps as mapTable } from '../programs/maps.ts';
import {
  lossOf,
  objects as objectTable,
  programOf,
  type ObjectName,
  type Tunable,
} from '../programs/programs.ts';
import { Attachments, programNamed } from './attachments.ts';
import { pinBypassFilter } from './bypass-filter.ts';
import { isFarOff, recountOriginals, recountShares } from './map-shares.ts';
import { openMaps, settleOverflow, type MapShares, type PinnedMaps } from './maps.ts';
import { removePins, stopRedirecting } from './pin-removal.ts';
import { beginHandover, type Handover } from './version-handover.ts';

/** Longer than a proxy leaves a connection unaccepted. */
const STALE_MS = 60_000;

export interface DataPlaneOptions {
  /** Made by {@link makePinDirectory}. */
  readonly bpffsRoot: string;
  /** The watched root and its depth in the kernel's cgroup hierarchy (the real root is 0). */
  readonly root: CgroupPlace;
  readonly rootLevel: number;
  /** Inode of the host's network namespace. @default not known: whatever is no pod's counts as the host's */
  readonly hostNetns?: number | undefined;
  readonly maxEntries: Readonly<Record<string, number>>;
  /** Is told in a sentence of pins that were not as they should be, once {@link DataPlane.notes} have been read. */
  readonly warn?: (sentence: string) => void;
  /** Entries of the maps that all pods share which one slot may have. @default those of the compiled objects */
  readonly shares?: MapShares;
  /** Where the proxy takes redirected connections. @default 15001 and 15006 */
  readonly ports?: { readonly outbound: number; readonly inbound: number };
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

/** What the programs are told; a tunable that is not among it stays as compiled. */
function tunablesOf({
  root,
  rootLevel,
  hostNetns = 0,
  ports,
  shares,
}: DataPlaneOptions): Readonly<Partial<Record<Tunable, number | bigint>>> {
  return {
    root_level: rootLevel,
    root_id: root.id,
    host_netns: hostNetns,
    ...(ports === undefined ? {} : { outbound_port: ports.outbound, inbound_port: ports.inbound }),
    ...(shares === undefined
      ? {}
      : {
          [mapTable.overflowConnections.share]: shares.connections,
          [mapTable.originals.share]: shares.originals,
        }),
  };
}

/**
 * Loads every object, or all but those that cgroute can do without and the kernel
 * refuses; `notes` gets a sentence for each of these.
 */
function loadObjects(
  into: LoadedObject[],
  notes: string[],
  load: Omit<LoadOptions, 'tunables'>,
  values: ReturnType<typeof tunablesOf>,
): void {
  for (const [name, { tunables }] of Object.entries(objectTable) as [
    ObjectName,
    { readonly tunables: readonly Tunable[] },
  ][]) {
    const own = Object.fromEntries(
      tunables.flatMap((tunable) => {
        const value = values[tunable];
        return value === undefined ? [] : [[tunable, value] as const];
      }),
    );
    const loss = lossOf(name);
    try {
      into.push(loadPinned(name, { ...load, tunables: own }));
    } catch (error) {
      if (loss === undefined || !(error instanceof CgrouteError) || error.code !== 'EBPFLOAD') throw error;
      notes.push(`${loss}, as ${messageOf(error)}`);
    }
  }
}

/** Programs that the kernel has taken, with maps that are none of the pins' yet. */
export interface PreparedObjects extends Disposable {
  /** Pins their maps and gives them away; undefined where the pins lead to others by now. */
  take(
    load: Omit<LoadOptions, 'tunables'>,
  ): { readonly objects: readonly LoadedObject[]; readonly notes: readonly string[] } | undefined;
}

/**
 * Loads the programs while another agent is at work, which is most of what a start
 * takes. Changes nothing, neither pins nor maps.
 * @throws CgrouteError `ELAYOUT`, `EPINLAYOUT`, `EBPFLOAD`, `EBPF`
 */
export function prepareObjects(options: DataPlaneOptions): PreparedObjects {
  const objects: LoadedObject[] = [];
  const notes: string[] = [];
  const maps = new MapsBeside();
  const prepared: PreparedObjects = {
    take(load) {
      const settled = maps.settle(load);
      return settled && { objects: objects.splice(0), notes: [...notes, ...settled] };
    },
    [Symbol.dispose]() {
      maps[Symbol.dispose]();
      for (const object of objects.splice(0)) object[Symbol.dispose]();
    },
  };
  try {
    const handover = beginHandover(options.bpffsRoot);
    handover?.check();
    const load = { ...loadOptions(options, handover), beside: maps };
    loadObjects(objects, notes, load, tunablesOf(options));
    return prepared;
  } catch (error) {
    prepared[Symbol.dispose]();
    throw error;
  }
}

function loadOptions(
  { bpffsRoot, maxEntries }: DataPlaneOptions,
  handover: Handover | undefined,
): Omit<LoadOptions, 'tunables'> {
  const { maps: mapDirectory, links } = pinDirectory(bpffsRoot);
  const adopt: LoadOptions['adopt'] = handover?.adopt ?? (() => undefined);
  return { bpffsRoot, mapDirectory, held: heldMaps(links), adopt, maxEntries };
}

/**
 * Loads the programs and takes over the maps and links that are pinned. Nothing
 * is attached by this alone.
 * @param prepared with the same options; loaded anew where it is not fit any more
 * @throws CgrouteError `ELAYOUT`, `EPINLAYOUT`, `EBPFLOAD`, `EBPF`
 */
export function openDataPlane(options: DataPlaneOptions, prepared?: PreparedObjects): DataPlane {
  const { bpffsRoot, root, warn = () => {} } = options;
  const { maps: mapDirectory, links } = pinDirectory(bpffsRoot);
  for (const directory of [mapDirectory, links]) mkdirSync(directory, { recursive: true, mode: 0o700 });
  let handover = beginHandover(bpffsRoot);
  const objects: LoadedObject[] = [];
  const notes: string[] = [];
  let maps: PinnedMaps;
  try {
    const load = loadOptions(options, handover);
    const taken = prepared?.take(load);
    if (taken === undefined) loadObjects(objects, notes, load, tunablesOf(options));
    else objects.push(...taken.objects);
    notes.push(...(taken?.notes ?? []));
    notes.push(...(handover?.copyDecisions() ?? []));
    maps = openMaps(pinDirectory(bpffsRoot));
    recountShares(maps);
  } catch (error) {
    for (const object of objects) object[Symbol.dispose]();
    throw error;
  }
  const programs = new Map(objects.flatMap((object) => [...object.programs]));
  const attachments = new Attachments({
    programs,
    bpffsRoot,
    directory: links,
    others: () => handover?.links ?? [],
    warn,
  });
  return {
    maps,
    notes: [...new Set([...objects.flatMap((object) => object.notes), ...notes])],
    execFilter: programs.get(programOf('execFilter'))?.fd,
    pinBypass: () =>
      pinBypassFilter(bpffsRoot, programNamed(programs, programOf('bypassFilter')), maps.bypass4.info.id),
    attachIdentity: () => attachments.trace(),
    watchCgroupEvents(onEvent, onError) {
      const { name, record } = mapTable.cgroupEvents;
      const path = `${mapDirectory}/${name}`;
      const fd = checked(libbpf().objGet(path), 'bpf_obj_get', path);
      try {
        return watchRingBuffer(fd, record, onEvent, onError);
      } finally {
        closeSync(fd);
      }
    },
    attachSockets: () => attachments.attach('sockets', root),
    attachHandoff: (place) => attachments.attach('handoff', place),
    detachHandoff: (cgroupId) => attachments.detach('handoff', cgroupId),
    attachRoot: () => attachments.attach('root', root),
    attachPodTree: (place) => attachments.attach('podTree', place),
    attachProxy: (place) => attachments.attach('proxy', place),
    async completeHandover() {
      const done = await handover?.complete();
      if (handover !== undefined) recountShares(maps);
      handover = undefined;
      return done;
    },
    dropOtherLinks: () => attachments.dropOthers(),
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
      attachments.repair(attempt);
      return repaired;
    },
    expireOriginals(olderThanMs = STALE_MS) {
      // The clock that bpf_ktime_get_ns() reads.
      const since = process.hrtime.bigint() - BigInt(olderThanMs) * 1_000_000n;
      settleOverflow(maps);
      const stale = maps.originals.entries().filter(([, { atNs }]) => atNs < since);
      const dropped = stale.filter(([key]) => maps.originals.delete(key));
      if (dropped.length > 0 || isFarOff(maps))
        recountOriginals(maps, new Set(dropped.map(([, { slot }]) => slot)));
      return dropped.length;
    },
    stopRedirecting() {
      attachments.forgetRedirecting();
      stopRedirecting(bpffsRoot);
    },
    detachPrograms: () => attachments.detachAll(),
    detach(keepsFilter = false) {
      attachments.detachAll();
      removePins(bpffsRoot, keepsFilter);
    },
    [Symbol.dispose]() {
      attachments[Symbol.dispose]();
      maps[Symbol.dispose]();
      for (const object of objects.splice(0)) object[Symbol.dispose]();
    },
  };
}
