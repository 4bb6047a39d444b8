/** The socket filter that the rules in pods with a sidecar name by its path. */
import { renameSync, rmSync, statfsSync, statSync, unlinkSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Program } from '../bpf/bpf-object.ts';
import { CgrouteError } from '../error.ts';
import type { FilterPin } from '../netns/iptables-rules.ts';
import { checked, libbpf } from '../boundary/libbpf.ts';
import { addressOf } from '../boundary/libc.ts';
import { isThere } from '../boundary/presence.ts';
import { withPin } from '../pins/pinned-object.ts';
import { programOf } from '../programs/programs.ts';

const BYPASS_PROGRAM = programOf('bypassFilter');
const BPF_FS_MAGIC = 0xcafe4a11;
/** The longest path that a rule has room for, XT_BPF_PATH_MAX in <linux/netfilter/xt_bpf.h>, with its zero. */
const LONGEST_PATH = 511;

/**
 * Pins the program as `bypass` beside `bpffsRoot`, `/sys/fs/bpf/bypass` by default,
 * or in it where that name is another's. One that an earlier agent pinned is
 * replaced in one step: rules in pods need the path at any time.
 * @param mapId of its IPv4 map, which tells this filter from another agent's
 * @throws CgrouteError `EBPF` when it cannot be pinned, `EBPFFS` for a path that no rule can name
 */
export function pinBypassFilter(bpffsRoot: string, program: Program, mapId: number): FilterPin {
  const path = bypassPaths(bpffsRoot).find((at) => !isThere(at) || isFilterOf(at, mapId));
  if (path === undefined || path.length > LONGEST_PATH || !/^[\w./-]+$/.test(path)) {
    throw new CgrouteError(
      'EBPFFS',
      `no name is free for the filter of sidecars at ${bypassPaths(bpffsRoot).join(' or ')}: expected a BPF file system, a path of letters, digits, dots, dashes and underscores, and no pin of somebody else`,
    );
  }
  const next = `${bpffsRoot}/bypass_next`;
  rmSync(next, { force: true });
  checked(libbpf().objPin(program.fd, next), 'bpf_obj_pin', next);
  renameSync(next, path);
  return { path, mapId };
}

/** Removes the pin, if it is of the filter with this map. Returns the number of pins. */
export function unpinBypassFilter(bpffsRoot: string, mapId: number): number {
  const pins = bypassPaths(bpffsRoot).filter((path) => isFilterOf(path, mapId));
  for (const path of pins) unlinkSync(path);
  return pins.length;
}

/** Where the pin is; undefined when there is none. */
export function findBypassFilter(bpffsRoot: string, mapId: number): FilterPin | undefined {
  const path = bypassPaths(bpffsRoot).find((at) => isFilterOf(at, mapId));
  return path === undefined ? undefined : { path, mapId };
}

function bypassPaths(bpffsRoot: string): string[] {
  const beside = dirname(bpffsRoot);
  // Own first, once it is used: rules name it.
  const own = `${bpffsRoot}/bypass`;
  if (
    isThere(own) ||
    statfsSync(beside).type >>> 0 !== BPF_FS_MAGIC ||
    statSync(beside).dev !== statSync(bpffsRoot).dev
  )
    return [own];
  return [`${beside}/bypass`, own];
}

/** @throws CgrouteError `EPINS`, `EBPF` where that cannot be told */
const isFilterOf = (path: string, map: number): boolean =>
  withPin(path, (kind, fd) => {
    if (kind !== 'program') return false;
    // struct bpf_prog_info, <linux/bpf.h>: nr_map_ids, map_ids, name.
    const ids = Buffer.alloc(4 * 8);
    const info = Buffer.alloc(80);
    info.writeUInt32LE(8, 52);
    info.writeBigUInt64LE(addressOf(ids), 56);
    const length = Buffer.alloc(4);
    length.writeUInt32LE(info.length);
    checked(libbpf().objGetInfo(fd, info, length), 'bpf_obj_get_info_by_fd', path);
    const name = info.toString('latin1', 64, 80).replace(/\0[^]*$/, '');
    const used = Array.from({ length: Math.min(8, info.readUInt32LE(52)) }, (_, at) =>
      ids.readUInt32LE(4 * at),
    );
    return name === BYPASS_PROGRAM && used.includes(map);
  }) ?? false;
