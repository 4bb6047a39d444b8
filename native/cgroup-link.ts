/**
 * Programs attached to cgroups by links that are pinned, so that they outlive
 * the agent. A link that is there already gets the new program in place, with
 * no moment in between.
 */
import { closeSync, existsSync, openSync, readdirSync, unlinkSync } from 'node:fs';
import type { Program } from './bpf-object.ts';
import { checked, libbpf } from './libbpf.ts';

export interface CgroupPlace {
  /** Absolute path of the cgroup's directory. */
  readonly path: string;
  readonly id: bigint;
}

export interface PinnedLink {
  readonly pin: string;
  readonly program: string;
  readonly cgroupId: bigint;
}

interface LinkInfo {
  readonly programId: number;
  /** 0 once the cgroup is gone or somebody detached it. */
  readonly cgroupId: bigint;
}

const pinName = (program: string, cgroupId: bigint): string => `${program}@${cgroupId}`;

/**
 * Makes `program` run for the processes of a cgroup and below.
 * Returns what it did: `kept` a live link (with the program replaced), `made` one.
 * @throws CgrouteError `EBPF`
 */
export function ensureLink(directory: string, program: Program, place: CgroupPlace): 'kept' | 'made' {
  const pin = `${directory}/${pinName(program.name, place.id)}`;
  const what = `${program.name} at ${place.path}`;
  if (existsSync(pin)) {
    if (replaceProgram(pin, program, place, what)) return 'kept';
    unlinkSync(pin);
  }
  const cgroup = openSync(place.path, 'r');
  try {
    const link = checked(libbpf().linkCreate(program.fd, cgroup, program.attachType, null), 'bpf_link_create', what);
    try {
      checked(libbpf().objPin(link, pin), 'bpf_obj_pin', pin);
    } finally {
      closeSync(link);
    }
  } finally {
    closeSync(cgroup);
  }
  return 'made';
}

/** False when the pin is no live link to that cgroup. */
function replaceProgram(pin: string, program: Program, place: CgroupPlace, what: string): boolean {
  const link = libbpf().objGet(pin);
  if (link < 0) return false;
  try {
    if (linkInfo(link)?.cgroupId !== place.id) return false;
    checked(libbpf().linkUpdate(link, program.fd, null), 'bpf_link_update', what);
    return true;
  } finally {
    closeSync(link);
  }
}

/** `struct bpf_link_info` of <linux/bpf.h>: type, id, prog_id, then cgroup.cgroup_id. Undefined for another kind of object. */
function linkInfo(fd: number): LinkInfo | undefined {
  const BPF_LINK_TYPE_CGROUP = 3;
  const info = Buffer.alloc(64);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(info.length);
  if (libbpf().objGetInfo(fd, info, length) < 0 || info.readUInt32LE(0) !== BPF_LINK_TYPE_CGROUP) return undefined;
  return { programId: info.readUInt32LE(8), cgroupId: info.readBigUInt64LE(16) };
}

/** True while the link holds its program at its cgroup. */
export function isLive(directory: string, program: string, cgroupId: bigint): boolean {
  const pin = `${directory}/${pinName(program, cgroupId)}`;
  if (!existsSync(pin)) return false;
  const link = libbpf().objGet(pin);
  if (link < 0) return false;
  try {
    return linkInfo(link)?.cgroupId === cgroupId;
  } finally {
    closeSync(link);
  }
}

/** The links that are pinned in a directory, live or not. */
export function pinnedLinks(directory: string): PinnedLink[] {
  if (!existsSync(directory)) return [];
  return readdirSync(directory).flatMap((name) => {
    const [, program, id] = /^(\w+)@(\d+)$/.exec(name) ?? [];
    return program === undefined || id === undefined ? [] : [{ pin: `${directory}/${name}`, program, cgroupId: BigInt(id) }];
  });
}

/** Removes the pin, which was the last thing that held the link. */
export function dropLink(link: PinnedLink): void {
  unlinkSync(link.pin);
}

/** The same by its name, if its pin is still there. */
export function dropLinkAt(directory: string, program: string, cgroupId: bigint): void {
  const pin = `${directory}/${pinName(program, cgroupId)}`;
  if (existsSync(pin)) unlinkSync(pin);
}
