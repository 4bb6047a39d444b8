/**
 * Programs attached to cgroups by links that are pinned, so that they outlive
 * the agent. A link that is there already gets the new program in place, with
 * no moment in between.
 */
import { closeSync, openSync, renameSync, statSync, unlinkSync } from 'node:fs';
import type { Program } from './bpf-object.ts';
import { checked, libbpf } from '../boundary/libbpf.ts';
import { moveAside, pinsIn } from '../pins/pin-directory.ts';
import { linkPin, parseLinkPin } from '../pins/link-pin.ts';
import { isLiveLink, linkFacts, linkState } from '../pins/pinned-object.ts';

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
  /** Whether a program of that name is one of ours: what its link's pin says is not believed, and it may be removed. */
  readonly isOurs: (program: string) => boolean;
  /** Is told in a sentence of what lay at a pin's place and is kept elsewhere. */
  readonly warn: (sentence: string) => void;
}

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
  const name = linkPin(program.name, place.id);
  const pin = `${pins.directory}/${name}`;
  const what = `${program.name} at ${place.path}`;
  const isThere = clearPin(pins, pin, program.name, place.id);
  if (isThere) replaceProgram(pin, program, what);
  let isTaken = isThere;
  for (const former of takesOver ? pins.others.map((directory) => `${directory}/${name}`) : []) {
    if (!isLiveLink(former, program.name, place.id)) continue;
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
  const state = linkState(pin, program, cgroupId, pins.isOurs);
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
  return isLiveLink(`${directory}/${linkPin(program, cgroupId)}`, program, cgroupId);
}

/** The links of programs of ours that are pinned, live or not; those of former versions that were put by are not among them. */
export function pinnedLinks({ directory, isOurs }: Pick<LinkPins, 'directory' | 'isOurs'>): PinnedLink[] {
  return pinsIn(directory).flatMap((pin) => {
    const { program, cgroupId, suffix } = parseLinkPin(pin) ?? {};
    if (program === undefined || cgroupId === undefined || suffix !== '') return [];
    const link = { pin, program, cgroupId };
    return linkState(link.pin, program, cgroupId, isOurs) === 'foreign' ? [] : [link];
  });
}

/** Removes the pin, which was the last thing that held the link. */
export function dropLink(link: PinnedLink): void {
  unlinkSync(link.pin);
}

/** The same by its name, if it is still there. */
export function dropLinkAt(
  { directory, isOurs }: Pick<LinkPins, 'directory' | 'isOurs'>,
  program: string,
  cgroupId: bigint,
): void {
  const pin = `${directory}/${linkPin(program, cgroupId)}`;
  const state = linkState(pin, program, cgroupId, isOurs);
  if (state === 'live' || state === 'stray') unlinkSync(pin);
}
