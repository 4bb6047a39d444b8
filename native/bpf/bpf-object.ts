/** A compiled object, loaded: its programs and its maps, which are pinned by name. */
import { closeSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { shapeOf } from '../layout/btf-shape.ts';
import { parseBtf, readObjectTypes, type Types } from '../layout/btf.ts';
import { mapInfo } from './bpf-map.ts';
import { readElf, type Elf } from '../layout/elf.ts';
import { CgrouteError } from '../error.ts';
import { checkLayouts } from '../layout/layout.ts';
import { layouts } from '../layout/layouts.ts';
import {
  checked,
  closeObject,
  libbpf,
  loadObject,
  openObject,
  type MapPointer,
  type OpenObject,
} from '../boundary/libbpf.ts';
import { isThere } from '../boundary/presence.ts';
import { moveAside } from '../pins/pin-directory.ts';
import type { MapsBeside } from '../pins/maps-beside.ts';
import { settlePin, type PinnedMapOptions, type WantedMap } from '../pins/pinned-map.ts';
import { withPin } from '../pins/pinned-object.ts';

export interface Program {
  readonly name: string;
  /** Valid as long as the object is open. */
  readonly fd: number;
  /** `enum bpf_attach_type`, from the program's section name. */
  readonly attachType: number;
}

/** `mapDirectory` is the bpffs directory that maps are pinned in, and taken over from; it exists. */
export interface LoadOptions extends PinnedMapOptions {
  /** Entries by map name, where the object's own figure is not wanted. */
  readonly maxEntries?: Readonly<Record<string, number>>;
  /** `const volatile` tunables by name, __u32 as numbers and __u64 as bigints; an object without .rodata has none. */
  readonly tunables?: Readonly<Record<string, number | bigint>>;
  /** The maps of all objects that are loaded beside an agent at work: nothing is pinned, nor moved. */
  readonly beside?: MapsBeside;
}

export interface LoadedObject extends Disposable {
  readonly programs: ReadonlyMap<string, Program>;
  /** What was not as asked for, in sentences: a pinned map of another size is kept. */
  readonly notes: readonly string[];
  /** Pins again the maps whose pins somebody has removed or replaced. Returns their names. */
  repairPins(warn: (sentence: string) => void): string[];
}

/** Where the compiled objects are: beside the bundle, or in the checkout's dist. */
export function objectPath(name: string): string {
  for (const candidate of [`./bpf/${name}.bpf.o`, `../../dist/bpf/${name}.bpf.o`]) {
    const path = fileURLToPath(new URL(candidate, import.meta.url));
    if (isThere(path)) return path;
  }
  throw new CgrouteError(
    'ENOOBJECT',
    `the compiled BPF object ${name}.bpf.o is neither beside the program nor in dist/bpf: run \`npm run setup\``,
  );
}

/**
 * Loads an object, with every map of it pinned in `mapDirectory`. Maps that are
 * pinned there already are used as they are, with all that is in them.
 *
 * @throws CgrouteError `ELAYOUT` when the object or a pinned map has other
 *   structs than this program, `EBPFLOAD` when the kernel refuses a program
 */
export function loadPinned(name: string, options: LoadOptions): LoadedObject {
  const file = objectPath(name);
  const bytes = readFileSync(file);
  checkLayouts(layouts, readObjectTypes(bytes, file), file);
  const lib = libbpf();
  const open = openObject(file);
  try {
    const notes: string[] = [];
    const made: (() => void)[] = [];
    const types = parseBtf(readElf(bytes, file).section('.BTF'), file);
    for (let map = lib.nextMap(open.object, null); map !== null; map = lib.nextMap(open.object, map)) {
      if (!lib.mapIsInternal(map)) made.push(prepareMap(map, types, options, notes));
      else if (options.tunables !== undefined && lib.mapName(map).endsWith('.rodata'))
        setTunables(map, readElf(bytes, file), options.tunables, file);
    }
    loadObject(open, file);
    for (const tell of made) tell();
    return {
      programs: programsOf(open),
      notes,
      repairPins: (warn) => repairPins(open, options, warn),
      [Symbol.dispose]: () => closeObject(open),
    };
  } catch (error) {
    closeObject(open);
    throw error;
  }
}

/** .rodata as compiled, with the tunables' values written in. */
function setTunables(
  map: MapPointer,
  elf: Elf,
  tunables: Readonly<Record<string, number | bigint>>,
  file: string,
): void {
  const bytes = Buffer.from(elf.section('.rodata'));
  for (const [name, value] of Object.entries(tunables)) {
    const symbol = elf.symbol(name);
    const size = typeof value === 'bigint' ? 8 : 4;
    if (symbol?.section !== '.rodata' || symbol.size !== size) {
      throw new CgrouteError(
        'ELAYOUT',
        `${file} was built for another version of cgroute: it has no ${8 * size}-bit tunable ${name}`,
      );
    }
    if (typeof value === 'bigint') bytes.writeBigUInt64LE(value, symbol.offset);
    else bytes.writeUInt32LE(value, symbol.offset);
  }
  checked(
    libbpf().mapSetInitialValue(map, bytes, bytes.length),
    'bpf_map__set_initial_value',
    libbpf().mapName(map),
  );
}

/** Returns what is to be done once the object is loaded. */
function prepareMap(map: MapPointer, types: Types, options: LoadOptions, notes: string[]): () => void {
  const lib = libbpf();
  const name = lib.mapName(map);
  const path = `${options.mapDirectory}/${name}`;
  const { beside } = options;
  const entries = options.maxEntries?.[name];
  if (entries !== undefined) checked(lib.mapSetMaxEntries(map, entries), 'bpf_map__set_max_entries', name);
  const wanted = declared(map, types);
  if (beside !== undefined) {
    const fd = beside.find(wanted, options);
    if (fd === undefined) return () => beside.made(wanted, lib.mapFd(map));
    keepEntries(map, fd, entries, notes);
    checked(lib.mapReuseFd(map, fd), 'bpf_map__reuse_fd', name);
    return () => {};
  }
  checked(lib.mapSetPinPath(map, path), 'bpf_map__set_pin_path', name);
  notes.push(...settlePin(wanted, options));
  if (isThere(path)) {
    const fd = checked(lib.objGet(path), 'bpf_obj_get', path);
    try {
      keepEntries(map, fd, entries, notes);
    } finally {
      closeSync(fd);
    }
  }
  return () => {};
}

/** A map that is there is as large as it is. */
function keepEntries(map: MapPointer, fd: number, wanted: number | undefined, notes: string[]): void {
  const name = libbpf().mapName(map);
  const { maxEntries } = mapInfo(fd, name);
  if (wanted === undefined || maxEntries === wanted) return;
  notes.push(
    `the pinned map ${name} keeps its ${maxEntries} entries, not the configured ${wanted}, until \`cgroute cleanup\``,
  );
  checked(libbpf().mapSetMaxEntries(map, maxEntries), 'bpf_map__set_max_entries', name);
}

function declared(map: MapPointer, types: Types): WantedMap {
  const lib = libbpf();
  const [keyType, valueType] = [lib.mapKeyTypeId(map), lib.mapValueTypeId(map)];
  const key = keyType === 0 ? undefined : shapeOf(types, keyType);
  const value = valueType === 0 ? undefined : shapeOf(types, valueType);
  return {
    name: lib.mapName(map),
    type: lib.mapType(map),
    keySize: lib.mapKeySize(map),
    valueSize: lib.mapValueSize(map),
    flags: lib.mapFlags(map),
    shape: key === undefined || value === undefined ? undefined : { key, value },
  };
}

/** What the kernel has pinned twice is one map, so this undoes what others did and nothing else. */
function repairPins(
  { object }: OpenObject,
  { bpffsRoot, mapDirectory }: LoadOptions,
  warn: (sentence: string) => void,
): string[] {
  const lib = libbpf();
  const repaired: string[] = [];
  for (let map = lib.nextMap(object, null); map !== null; map = lib.nextMap(object, map)) {
    const path = `${mapDirectory}/${lib.mapName(map)}`;
    if (lib.mapIsInternal(map)) continue;
    const { id } = mapInfo(lib.mapFd(map), lib.mapName(map));
    const found = withPin(path, (kind, fd) => kind === 'map' && mapInfo(fd, path).id === id);
    if (found === true) continue;
    if (found === false) {
      const what = 'another object than the map that the programs use';
      warn(`${path} was ${what}; it is kept as ${moveAside(bpffsRoot, path, what)}`);
    }
    checked(lib.objPin(lib.mapFd(map), path), 'bpf_obj_pin', path);
    repaired.push(lib.mapName(map));
  }
  return repaired;
}

function programsOf({ object }: OpenObject): Map<string, Program> {
  const lib = libbpf();
  const programs = new Map<string, Program>();
  for (
    let program = lib.nextProgram(object, null);
    program !== null;
    program = lib.nextProgram(object, program)
  ) {
    const name = lib.programName(program);
    programs.set(name, { name, fd: lib.programFd(program), attachType: lib.programAttachType(program) });
  }
  return programs;
}
