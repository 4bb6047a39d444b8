/**
 * Programs attached to cgroups by links that are pinned, so that they outlive
 * the agent. A link that is there already gets the new program in place, with
 * no moment in between.
 */
import { closeSync, existsSync, openSync, readdirSync, renameSync, statSync, unlinkSync } from 'node:fs';
import type { Program } from './bpf-object.ts';
import { checked, libbpf } from '../boundary/libbpf.ts';
import { moveAside } from '../pins/pin-directory.ts';
import { linkFacts, linkState } from '../pins/pinned-object.ts';

export interface CgroupPlace {
  /** Absolute path of the cgroup's directory. */
  readonly path: string;
  readonly id: bigint;
}

/** Whether it is there: another cgroup may have its path by now. Ids are inode numbers of cgroupfs. */
export function isStill({ path, id }: CgroupPlace): boolean {
  return statSync(path, { bigint: true, throwIfNoEntry: false })?.ino === id;
}

export interface PinnedLink {
  readonly pin: string;
  readonly program: string;
  readonly cgroupId: bigint;
}

/** Where links of this version are pinned, and what to do with what is found there. */
export interface LinkPins {
  readonly bpffsRoot: string;
  readonly directory: string;
  /** Link directories of other versions. */
  readonly others: readonly string[];
  /** Is told in a sentence of what lay at a pin's place and is kept elsewhere. */
  readonly warn: (sentence: string) => void;
}

const pinName = (program: string, cgroupId: bigint): string => `${program}@${cgroupId}`;

/**
 * Makes `program` run for the processes of a cgroup and below. A link of this or,
 * where `takesOver`, of another version goes on with this program.
 * @param held descriptor of a link that this process made or took over before; pinned again where it is live and its pin is gone
 * @throws CgrouteError `EBPF`, `EPINFOREIGN`
 */
export function ensureLink(
  pins: LinkPins,
  program: Program,
  place: CgroupPlace,
  takesOver: boolean,
  held?: number,
): void {
  const name = pinName(program.name, place.id);
  const pin = `${pins.directory}/${name}`;
  const what = `${program.name} at ${place.path}`;
  const isThere = clearPin(pins, pin, program.name, place.id);
  if (isThere) replaceProgram(pin, program, what);
  let isTaken = isThere;
  for (const former of takesOver ? pins.others.map((directory) => `${directory}/${name}`) : []) {
    if (linkState(former, program.name, place.id) !== 'live') continue;
    if (isTaken) {
      unlinkSync(former);
      continue;
    }
    replaceProgram(former, program, what);
    renameSync(former, pin);
    isTaken = true;
  }
  if (isTaken) return;
  if (held !== undefined && linkFacts(held).cgroupId === place.id)
    checked(libbpf().objPin(held, pin), 'bpf_obj_pin', pin);
  else makeLink(pin, program, place, what);
}

/** Leaves a live link of that program there, or nothing. Returns whether there is one. */
export function clearPin(pins: LinkPins, pin: string, program: string, cgroupId: bigint): boolean {
  const state = linkState(pin, program, cgroupId);
  if (state === 'stray') unlinkSync(pin);
  if (state === 'foreign') {
    const what = `no link of ${program}'s`;
    pins.warn(`${pin} was ${what}; it is kept as ${moveAside(pins.bpffsRoot, pin, what)}`);
  }
  return state === 'live';
}

function makeLink(pin: string, program: Program, place: CgroupPlace, what: string): void {
  const cgroup = openSync(place.path, 'r');
  try {
    const link = checked(
      libbpf().linkCreate(program.fd, cgroup, program.attachType, null),
      'bpf_link_create',
      what,
    );
    try {
      checked(libbpf().objPin(link, pin), 'bpf_obj_pin', pin);
    } finally {
      closeSync(link);
    }
  } finally {
    closeSync(cgroup);
  }
}

function replaceProgram(pin: string, program: Program, what: string): void {
  const link = checked(libbpf().objGet(pin), 'bpf_obj_get', pin);
  try {
    checked(libbpf().linkUpdate(link, program.fd, null), 'bpf_link_update', what);
  } finally {
    closeSync(link);
  }
}

/** True while the link holds its program at its cgroup. */
export function isLive(directory: string, program: string, cgroupId: bigint): boolean {
  return linkState(`${directory}/${pinName(program, cgroupId)}`, program, cgroupId) === 'live';
}

/** The links of programs of ours that are pinned in a directory, live or not. */
export function pinnedLinks(directory: string): PinnedLink[] {
  if (!existsSync(directory)) return [];
  return readdirSync(directory).flatMap((name) => {
    const [, program, id] = /^(\w+)@(\d+)$/.exec(name) ?? [];
    if (program === undefined || id === undefined) return [];
    const link = { pin: `${directory}/${name}`, program, cgroupId: BigInt(id) };
    return linkState(link.pin, program, link.cgroupId) === 'foreign' ? [] : [link];
  });
}

/** Removes the pin, which was the last thing that held the link. */
export function dropLink(link: PinnedLink): void {
  unlinkSync(link.pin);
}

/** The same by its name, if it is still there. */
export function dropLinkAt(directory: string, program: string, cgroupId: bigint): void {
  const pin = `${directory}/${pinName(program, cgroupId)}`;
  const state = linkState(pin, program, cgroupId);
  if (state === 'live' || state === 'stray') unlinkSync(pin);
}
