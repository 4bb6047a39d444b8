/**
 * The map behind a pin, before an object is loaded: taken over as it is, found
 * again where its pin is missing, or left to be made.
 */
import { closeSync } from 'node:fs';
import { sameShape } from '../layout/btf-shape.ts';
import { CgrouteError } from '../error.ts';
import { checked, libbpf } from '../boundary/libbpf.ts';
import { moveAside, pinsIn } from './pin-directory.ts';
import {
  linkFacts,
  mapFacts,
  mapShape,
  programFacts,
  withPin,
  type MapFacts,
  type MapShape,
  type PinKind,
} from './pinned-object.ts';

/** A map as the object that is about to be loaded declares it. */
export interface WantedMap {
  readonly name: string;
  readonly type: number;
  readonly keySize: number;
  readonly valueSize: number;
  readonly flags: number;
  /** Undefined where its key or value has no types. */
  readonly shape: MapShape | undefined;
}

/** Whether a map can stand for the wanted one. Sizes alone decide where the kernel doesn't tell the types. */
export function fits(wanted: WantedMap, facts: MapFacts): boolean {
  if (facts.type !== wanted.type || facts.flags !== wanted.flags) return false;
  if (facts.keySize !== wanted.keySize || facts.valueSize !== wanted.valueSize) return false;
  if (wanted.shape === undefined) return true;
  if (facts.btfId === 0) return false;
  const shape = mapShape(facts);
  return (
    shape === undefined ||
    (sameShape(shape.key, wanted.shape.key) && sameShape(shape.value, wanted.shape.value))
  );
}

/** Ids of the maps that programs of pinned links use. Empty without CAP_SYS_ADMIN. */
export type HeldMaps = ReadonlySet<number>;

export function heldMaps(linkDirectory: string): HeldMaps {
  const programs = new Set(
    pinsIn(linkDirectory).map(
      (pin) => withPin(pin, (kind, fd) => (kind === 'link' ? linkFacts(fd).programId : 0)) ?? 0,
    ),
  );
  return new Set([...programs].filter((id) => id !== 0).flatMap((id) => programFacts(id)?.mapIds ?? []));
}

export interface PinnedMapOptions {
  readonly bpffsRoot: string;
  readonly mapDirectory: string;
  readonly held: HeldMaps;
  /** Another version's map that serves as this one, where neither a pin nor a program of this version has it. */
  readonly adopt: (wanted: WantedMap, idOf?: (name: string) => number | undefined) => number | undefined;
}

/**
 * The map that {@link settlePin} would lead to as things stand, found without touching
 * anything; undefined where none is there yet. The caller closes it.
 * @throws CgrouteError `EPINLAYOUT`, as that does
 */
export function findStanding(
  wanted: WantedMap,
  { mapDirectory, held, adopt }: PinnedMapOptions,
  idOf?: (name: string) => number | undefined,
): number | undefined {
  const path = `${mapDirectory}/${wanted.name}`;
  const found = judgePin(path, wanted, held);
  if (found?.is === 'ours') return checked(libbpf().objGet(path), 'bpf_obj_get', path);
  return findHeld(wanted, held) ?? adopt(wanted, idOf);
}

/**
 * Sees to it that the path holds the right map, or nothing. Returns sentences
 * about what was not as it should be.
 * @throws CgrouteError `EPINLAYOUT` when programs use a map of another layout under
 *   this version's name, `EPINFOREIGN`
 */
export function settlePin(
  wanted: WantedMap,
  { bpffsRoot, mapDirectory, held, adopt }: PinnedMapOptions,
): string[] {
  const path = `${mapDirectory}/${wanted.name}`;
  const notes: string[] = [];
  const found = judgePin(path, wanted, held);
  if (found?.is === 'ours') return [];
  if (found !== undefined)
    notes.push(`${path} was ${found.what}; it is kept as ${moveAside(bpffsRoot, path, found.what)}`);
  const inUse = findHeld(wanted, held);
  const map = inUse ?? adopt(wanted);
  if (map === undefined) return notes;
  try {
    checked(libbpf().objPin(map, path), 'bpf_obj_pin', path);
  } finally {
    closeSync(map);
  }
  return inUse === undefined
    ? notes
    : [...notes, `${path} was missing; the map that the attached programs use is pinned there again`];
}

/** Undefined where nothing is pinned. @throws CgrouteError `EPINLAYOUT` */
function judgePin(path: string, wanted: WantedMap, held: HeldMaps): Judgement | undefined {
  const found = withPin(path, (kind, fd) =>
    judge(wanted, held, kind === 'map' ? mapFacts(fd, wanted.name) : undefined, kind),
  );
  if (found?.is !== 'conflict') return found;
  throw new CgrouteError(
    'EPINLAYOUT',
    `the map pinned at ${path} has ${found.what}, and attached programs use it: it is of another build with the same pins; run \`cgroute cleanup\` first`,
  );
}

interface Judgement {
  /** `conflict`: attached programs use it, and it has another layout. */
  readonly is: 'ours' | 'conflict' | 'foreign';
  readonly what: string;
}

function judge(wanted: WantedMap, held: HeldMaps, facts: MapFacts | undefined, kind: PinKind): Judgement {
  if (facts === undefined)
    return { is: 'foreign', what: kind === 'other' ? 'no BPF object' : `a ${kind} and no map` };
  const isHeld = held.has(facts.id) && facts.name === wanted.name.slice(0, 15);
  if (fits(wanted, facts)) {
    if (isHeld) return { is: 'ours', what: '' };
    const other = findHeld(wanted, held);
    if (other === undefined) return { is: 'ours', what: '' };
    closeSync(other);
    return { is: 'foreign', what: 'another map than the attached programs use' };
  }
  const isLike =
    facts.type === wanted.type && facts.keySize === wanted.keySize && facts.valueSize === wanted.valueSize;
  const sizes = `keys of ${facts.keySize} and values of ${facts.valueSize} bytes, expected ${wanted.keySize} and ${wanted.valueSize}`;
  if (isHeld) return { is: 'conflict', what: isLike ? 'other fields than expected' : sizes };
  return {
    is: 'foreign',
    what: isLike
      ? 'a map with other fields, or flags, than expected'
      : `a map of type ${facts.type}, expected ${wanted.type}, with ${sizes}`,
  };
}

/** The map of that name that attached programs use; the caller closes it. */
function findHeld(wanted: WantedMap, held: HeldMaps): number | undefined {
  for (const id of held) {
    const fd = libbpf().mapFdById(id);
    if (fd < 0) continue;
    const facts = mapFacts(fd, wanted.name);
    if (facts.name === wanted.name.slice(0, 15) && fits(wanted, facts)) return fd;
    closeSync(fd);
  }
  return undefined;
}
