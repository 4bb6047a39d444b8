/**
 * The contents of one version's maps into another's, whose structs may be others.
 * Both layouts come from the maps' own BTF, so any version's will do; without
 * CAP_SYS_ADMIN, to which alone the kernel tells it, that of a released version.
 */
import { closeSync } from 'node:fs';
import { CgrouteError } from '../error.ts';
import { checked, libbpf } from '../boundary/libbpf.ts';
import { errnoValue } from '../boundary/libc.ts';
import { mapFacts, withPin, type MapFacts, type MapShape } from '../pins/pinned-object.ts';
import { structCopy, type CopyStruct } from '../layout/struct-copy.ts';
import { maps, mapTypes } from '../programs/maps.ts';
import { ownShape, shapeAt } from './map-shapes.ts';

const BPF_ANY = 0;
const BPF_NOEXIST = 1;

/** A small one, and one for what finds no room in it. */
const CONNECTION_MAPS = [maps.connections.name, maps.overflowConnections.name] as const;

interface OpenMap extends Disposable {
  readonly fd: number;
  readonly path: string;
  readonly facts: MapFacts;
}

/** Undefined where no map is pinned. */
function openMap(path: string): OpenMap | undefined {
  if (withPin(path, (kind) => kind) !== 'map') return undefined;
  const fd = checked(libbpf().objGet(path), 'bpf_obj_get', path);
  return { fd, path, facts: mapFacts(fd, path), [Symbol.dispose]: () => closeSync(fd) };
}

/** Whether both paths are pins of one map. */
export function sameMap(one: string, other: string): boolean {
  const id = mapIdAt(one);
  return id !== undefined && id === mapIdAt(other);
}

/** The map that is pinned there, by the kernel's number; undefined where none is. */
export function mapIdAt(path: string): number | undefined {
  return withPin(path, (kind, fd) => (kind === 'map' ? mapFacts(fd, path).id : undefined));
}

function* entriesOf({
  fd,
  path,
  facts,
}: OpenMap): Generator<{ readonly key: Buffer; readonly value: Buffer }> {
  const lib = libbpf();
  const [key, next, value] = [
    Buffer.alloc(facts.keySize),
    Buffer.alloc(facts.keySize),
    Buffer.alloc(facts.valueSize),
  ];
  let result = lib.mapNextKey(fd, null, next);
  // The kernel starts over when a key has gone; the bound ends that.
  for (let left = 2 * facts.maxEntries; result >= 0 && left > 0; left--) {
    next.copy(key);
    if (lib.mapLookup(fd, key, value) >= 0) yield { key, value };
    result = lib.mapNextKey(fd, key, next);
  }
  if (result < 0 && result !== -errnoValue('ENOENT')) checked(result, 'bpf_map_get_next_key', path);
}

interface CopyEntry {
  readonly key: CopyStruct;
  readonly value: CopyStruct;
}

/** @throws CgrouteError `EPINLAYOUT` when the layouts are not known, or have nothing in common */
function entryCopy(from: OpenMap, to: OpenMap): CopyEntry {
  return shapeCopy(from.path, shapeAt(from.path, from.facts), shapeAt(to.path, to.facts));
}

/** @throws CgrouteError `EPINLAYOUT` */
function shapeCopy(path: string, before: MapShape | undefined, after: MapShape | undefined): CopyEntry {
  if (before === undefined || after === undefined) {
    throw new CgrouteError(
      'EPINLAYOUT',
      `the layout of the map pinned at ${path} cannot be read: expected CAP_SYS_ADMIN, which it takes to go on with the maps of a version that is not known; add it, or run \`cgroute cleanup\` first`,
    );
  }
  const key = structCopy(before.key, after.key);
  const value = structCopy(before.value, after.value);
  if (key === undefined || value === undefined) {
    throw new CgrouteError(
      'EPINLAYOUT',
      `the map pinned at ${path} has no field in common with this version's: expected one of a version next to this; run \`cgroute cleanup\` first`,
    );
  }
  return { key, value };
}

/**
 * Makes one map say what another says. Returns how many entries found no room.
 * @throws CgrouteError `EPINLAYOUT`, `EBPF`
 */
export function replaceEntries(fromPath: string, toPath: string): number {
  using from = openMap(fromPath);
  using to = openMap(toPath);
  if (from === undefined || to === undefined || from.facts.id === to.facts.id) return 0;
  const copy = entryCopy(from, to);
  const [key, value] = [Buffer.alloc(to.facts.keySize), Buffer.alloc(to.facts.valueSize)];
  const kept = new Set<string>();
  let left = 0;
  for (const entry of entriesOf(from)) {
    copy.key(entry.key, key);
    copy.value(entry.value, value);
    kept.add(key.toString('latin1'));
    const result = libbpf().mapUpdate(to.fd, key, value, BPF_ANY);
    // An element that an array no longer has.
    if (result === -errnoValue('E2BIG')) left++;
    else checked(result, 'bpf_map_update_elem', toPath);
  }
  if (to.facts.type !== mapTypes.array.id) removeEntries(to, (other) => !kept.has(other.toString('latin1')));
  return left;
}

function removeEntries(map: OpenMap, isUnwanted: (key: Buffer) => boolean): void {
  for (const key of [...keysOf(map)].filter(isUnwanted)) libbpf().mapDelete(map.fd, key);
}

function* keysOf(map: OpenMap): Generator<Buffer> {
  for (const { key } of entriesOf(map)) yield Buffer.from(key);
}

/** @throws CgrouteError `EPINLAYOUT` when open connections could not be copied from one to the other */
export function requireCopyable(fromMaps: string, toMaps: string): void {
  for (const name of CONNECTION_MAPS) {
    using from = openMap(`${fromMaps}/${name}`);
    using to = openMap(`${toMaps}/${name}`);
    if (from !== undefined && to !== undefined && from.facts.id !== to.facts.id) entryCopy(from, to);
  }
}

/**
 * The same, and of other maps, where this version's are not made yet.
 * @throws CgrouteError `EPINLAYOUT`
 */
export function requireKnown(fromMaps: string, others: readonly string[]): void {
  for (const name of [...CONNECTION_MAPS, ...others]) {
    using from = openMap(`${fromMaps}/${name}`);
    const own = ownShape(name);
    if (from !== undefined && own !== undefined) shapeCopy(from.path, shapeAt(from.path, from.facts), own);
  }
}

/** A connection that was copied, to be looked at once more. */
interface Copied {
  readonly from: Buffer;
  readonly to: Buffer;
  readonly map: OpenMap;
}

/** Added to the count of overflowed connections while it is not exact: too many costs a lookup, too few would hide them. */
export const OVERFLOW_BIAS = 1n << 32n;

/**
 * Copies the open connections, while both versions' programs look after them.
 * What this version has filed itself is newer and stays. Calls `pause` before it
 * looks once more: a socket that was closed meanwhile was forgotten in the old map
 * only, and is forgotten in the new one, too. Returns how many were copied.
 */
export async function copyConnections(
  fromMaps: string,
  toMaps: string,
  pause: () => Promise<void>,
): Promise<number> {
  using stack = new DisposableStack();
  const open = (path: string): OpenMap | undefined => {
    const map = openMap(path);
    return map === undefined ? undefined : stack.use(map);
  };
  const [first, overflow] = CONNECTION_MAPS.map((name) => open(`${toMaps}/${name}`));
  const count = open(`${toMaps}/${maps.overflowCount.name}`);
  if (first === undefined || overflow === undefined || count === undefined) return 0;
  let total = 0;
  for (const name of CONNECTION_MAPS) {
    const from = open(`${fromMaps}/${name}`);
    if (from === undefined || from.facts.id === first.facts.id || from.facts.id === overflow.facts.id)
      continue;
    const copied = copyInto(from, [first, overflow], count);
    await pause();
    const value = Buffer.alloc(from.facts.valueSize);
    for (const { from: key, to, map } of copied) {
      if (libbpf().mapLookup(from.fd, key, value) < 0) libbpf().mapDelete(map.fd, to);
      else total++;
    }
  }
  return total;
}

function copyInto(from: OpenMap, [first, overflow]: readonly [OpenMap, OpenMap], count: OpenMap): Copied[] {
  const copy = entryCopy(from, first);
  const copied: Copied[] = [];
  const value = Buffer.alloc(first.facts.valueSize);
  const other = Buffer.alloc(first.facts.valueSize);
  let isBiased = false;
  for (const entry of entriesOf(from)) {
    const key = Buffer.alloc(first.facts.keySize);
    copy.key(entry.key, key);
    copy.value(entry.value, value);
    if (libbpf().mapLookup(overflow.fd, key, other) >= 0) continue;
    let map = first;
    let result = libbpf().mapUpdate(map.fd, key, value, BPF_NOEXIST);
    if (result === -errnoValue('E2BIG')) {
      if (!isBiased) addBias(count);
      isBiased = true;
      map = overflow;
      result = libbpf().mapUpdate(map.fd, key, value, BPF_NOEXIST);
    }
    // Without room it goes on as a connection whose peer's address is the proxy's.
    if (result === -errnoValue('EEXIST') || result === -errnoValue('E2BIG')) continue;
    checked(result, 'bpf_map_update_elem', map.path);
    copied.push({ from: Buffer.from(entry.key), to: key, map });
  }
  return copied;
}

/** The kernel adds to it at the same time, and what is lost of that is little beside this. */
function addBias(count: OpenMap): void {
  const [key, value] = [Buffer.alloc(4), Buffer.alloc(8)];
  checked(libbpf().mapLookup(count.fd, key, value), 'bpf_map_lookup_elem', count.path);
  value.writeBigInt64LE(value.readBigInt64LE() + OVERFLOW_BIAS);
  checked(libbpf().mapUpdate(count.fd, key, value, BPF_ANY), 'bpf_map_update_elem', count.path);
}

/**
 * Removes connections from a version that serves no more, but had begun to hand
 * over, where the one that serves has them, too: its entries are newer.
 */
export function dropTaken(ownMaps: string, servingMaps: string): void {
  const taken = CONNECTION_MAPS.flatMap((name) => {
    using map = openMap(`${servingMaps}/${name}`);
    return map === undefined
      ? []
      : [{ id: map.facts.id, keys: new Set([...keysOf(map)].map((key) => key.toString('latin1'))) }];
  });
  for (const name of CONNECTION_MAPS) {
    using own = openMap(`${ownMaps}/${name}`);
    if (own === undefined || taken.some(({ id }) => id === own.facts.id)) continue;
    removeEntries(own, (key) => taken.some(({ keys }) => keys.has(key.toString('latin1'))));
  }
}

/** Counters as they were, by slot, in this version's layout. */
export type Counters = ReadonlyMap<number, Buffer>;

function readCounters(from: OpenMap, to: OpenMap): Counters {
  const copy = entryCopy(from, to);
  const counters = new Map<number, Buffer>();
  for (const { key, value } of entriesOf(from)) {
    const own = Buffer.alloc(to.facts.valueSize);
    copy.value(value, own);
    counters.set(key.readUInt32LE(), own);
  }
  return counters;
}

/**
 * Makes one map of counters say what another says, and tells what that was: what
 * the other counts meanwhile is in neither. `left`: how many found no room.
 * @throws CgrouteError `EPINLAYOUT`, `EBPF`
 */
export function copyCounters(
  fromPath: string,
  toPath: string,
): { readonly counters: Counters; readonly left: number } {
  using from = openMap(fromPath);
  using to = openMap(toPath);
  if (from === undefined || to === undefined || from.facts.id === to.facts.id)
    return { counters: new Map(), left: 0 };
  const counters = readCounters(from, to);
  const key = Buffer.alloc(4);
  let left = 0;
  for (const [slot, counts] of counters) {
    key.writeUInt32LE(slot);
    const result = libbpf().mapUpdate(to.fd, key, counts, BPF_ANY);
    // An element that the array no longer has.
    if (result === -errnoValue('E2BIG')) left++;
    else checked(result, 'bpf_map_update_elem', toPath);
  }
  return { counters, left };
}

/** Adds what the other version has counted since. */
export function addCounters(fromPath: string, toPath: string, since: Counters): void {
  using from = openMap(fromPath);
  using to = openMap(toPath);
  if (from === undefined || to === undefined || from.facts.id === to.facts.id) return;
  const now = readCounters(from, to);
  const [key, value] = [Buffer.alloc(4), Buffer.alloc(to.facts.valueSize)];
  for (const [slot, counts] of now) {
    const before = since.get(slot);
    if (before?.equals(counts) === true) continue;
    key.writeUInt32LE(slot);
    if (libbpf().mapLookup(to.fd, key, value) < 0) continue;
    for (let at = 0; at + 8 <= value.length; at += 8) {
      const more = counts.readBigUInt64LE(at) - (before?.readBigUInt64LE(at) ?? 0n);
      if (more > 0n) value.writeBigUInt64LE(value.readBigUInt64LE(at) + more, at);
    }
    checked(libbpf().mapUpdate(to.fd, key, value, BPF_ANY), 'bpf_map_update_elem', toPath);
  }
}
