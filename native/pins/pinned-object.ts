/** What lies at a path of bpffs: a map, a link, or something else, and what the kernel says of it. */
import { closeSync, lstatSync, readlinkSync, type Stats } from 'node:fs';
import { parseBtf, type Types } from '../layout/btf.ts';
import { shapeOf, type Shape } from '../layout/btf-shape.ts';
import { cString } from '../layout/elf.ts';
import { checked, libbpf } from '../boundary/libbpf.ts';
import { CgrouteError, errnoOf, isAbsent, refusalOf } from '../error.ts';
import { addressOf, errnoName } from '../boundary/libc.ts';
import { NO_CGROUP } from './link-pin.ts';

export type PinKind = 'map' | 'link' | 'program' | 'other';

/** Failures that say nothing of what is there: no room, or no right. */
const UNTOLD: ReadonlySet<string> = new Set(['EMFILE', 'ENFILE', 'ENOMEM', 'EPERM', 'EROFS']);

/**
 * Opens what is pinned and passes it on; undefined where nothing is. `other`, without a descriptor, is what is no object of BPF's.
 * @throws CgrouteError `EBPF`, `EPINS` where it cannot be told what is there, for want of rights or of descriptors
 */
export function withPin<T>(path: string, use: (kind: PinKind, fd: number) => T): T | undefined {
  // A symbolic link that leads nowhere is something, too.
  const found = atPin(path);
  if (found === undefined) return undefined;
  const fd = libbpf().objGet(path);
  if (fd < 0) {
    const errno = errnoName(-fd);
    // The kernel says EACCES of a directory as well as of a pin that this process may not open.
    if (UNTOLD.has(errno) || (errno === 'EACCES' && found.isFile())) checked(fd, 'bpf_obj_get', path);
    return use('other', fd);
  }
  try {
    return use(kindOf(fd), fd);
  } finally {
    closeSync(fd);
  }
}

/** Undefined where nothing is. @throws CgrouteError `EPINS` */
function atPin(path: string): Stats | undefined {
  try {
    return lstatSync(path);
  } catch (cause) {
    if (isAbsent(cause)) return undefined;
    throw new CgrouteError('EPINS', `what is pinned at ${path} cannot be told: ${refusalOf(cause)}`, {
      cause,
      errno: errnoOf(cause),
    });
  }
}

/** By the name that the kernel gives the descriptor's inode, as "anon_inode:bpf-map"; there is no call that asks. */
function kindOf(fd: number): PinKind {
  const [, kind] = /bpf[-_](map|prog|link)/.exec(readlinkSync(`/proc/self/fd/${fd}`)) ?? [];
  return kind === 'prog' ? 'program' : kind === 'map' || kind === 'link' ? kind : 'other';
}

/** `struct bpf_map_info` of <linux/bpf.h>, as far as it is of use here. */
export interface MapFacts {
  readonly type: number;
  readonly id: number;
  readonly keySize: number;
  readonly valueSize: number;
  readonly maxEntries: number;
  readonly flags: number;
  /** At most 15 characters. */
  readonly name: string;
  readonly btfId: number;
  readonly keyTypeId: number;
  readonly valueTypeId: number;
}

const INFO_BYTES = 256;

/** Fills `info`, which may hold addresses of buffers to be filled, too. @throws CgrouteError `EBPF` */
function objectInfo(fd: number, what: string, info: Buffer = Buffer.alloc(INFO_BYTES)): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32LE(info.length);
  checked(libbpf().objGetInfo(fd, info, length), 'bpf_obj_get_info_by_fd', what);
  return info;
}

export function mapFacts(fd: number, name: string): MapFacts {
  const info = objectInfo(fd, `the map ${name}`);
  const word = (at: number): number => info.readUInt32LE(at);
  return {
    type: word(0),
    id: word(4),
    keySize: word(8),
    valueSize: word(12),
    maxEntries: word(16),
    flags: word(20),
    name: cString(info.subarray(0, 40), 24),
    btfId: word(64),
    keyTypeId: word(68),
    valueTypeId: word(72),
  };
}

/** A map's key and value. */
export interface MapShape {
  readonly key: Shape;
  readonly value: Shape;
}

/** Undefined where the map has no types, or the kernel tells them to CAP_SYS_ADMIN only. */
export function mapShape({ btfId, keyTypeId, valueTypeId }: MapFacts): MapShape | undefined {
  const types = btfId === 0 ? undefined : kernelTypes(btfId);
  const key = types && shapeOf(types, keyTypeId);
  const value = types && shapeOf(types, valueTypeId);
  return key === undefined || value === undefined ? undefined : { key, value };
}

/** `struct bpf_btf_info` of <linux/bpf.h>: address and size of a buffer for the types. */
function kernelTypes(btfId: number): Types | undefined {
  const fd = libbpf().btfFdById(btfId);
  if (fd < 0) return undefined;
  try {
    const what = `the kernel's BTF ${btfId}`;
    const info = objectInfo(fd, what, Buffer.alloc(32));
    const types = Buffer.alloc(info.readUInt32LE(8));
    info.fill(0);
    info.writeBigUInt64LE(addressOf(types), 0);
    info.writeUInt32LE(types.length, 8);
    objectInfo(fd, what, info);
    return parseBtf(types, what);
  } finally {
    closeSync(fd);
  }
}

/** `struct bpf_link_info` of <linux/bpf.h>. */
export interface LinkFacts {
  readonly type: 'cgroup' | 'tracing' | 'other';
  readonly programId: number;
  /** Of a link at a cgroup; 0 once the cgroup is gone or somebody detached it. */
  readonly cgroupId: bigint;
}

export function linkFacts(fd: number): LinkFacts {
  // A program of BPF_TRACE_RAW_TP is attached by the first kind or by the second, as the kernel is older or newer.
  const TRACING: readonly number[] = [1, 2]; // BPF_LINK_TYPE_RAW_TRACEPOINT, BPF_LINK_TYPE_TRACING
  const BPF_LINK_TYPE_CGROUP = 3;
  const info = objectInfo(fd, 'a link');
  const type = info.readUInt32LE(0);
  return {
    type: type === BPF_LINK_TYPE_CGROUP ? 'cgroup' : TRACING.includes(type) ? 'tracing' : 'other',
    programId: info.readUInt32LE(8),
    cgroupId: type === BPF_LINK_TYPE_CGROUP ? info.readBigUInt64LE(16) : 0n,
  };
}

export interface ProgramFacts {
  /** At most 15 characters. */
  readonly name: string;
  readonly mapIds: readonly number[];
}

/** `struct bpf_prog_info` of <linux/bpf.h>. Undefined for one that is gone, and without CAP_SYS_ADMIN. */
export function programFacts(id: number): ProgramFacts | undefined {
  const fd = libbpf().progFdById(id);
  if (fd < 0) return undefined;
  try {
    const maps = Buffer.alloc(4 * 64);
    const info = Buffer.alloc(INFO_BYTES);
    info.writeUInt32LE(64, 52);
    info.writeBigUInt64LE(addressOf(maps), 56);
    objectInfo(fd, `the program ${id}`, info);
    const count = Math.min(64, info.readUInt32LE(52));
    return {
      name: cString(info.subarray(0, 80), 64),
      mapIds: Array.from({ length: count }, (_, i) => maps.readUInt32LE(4 * i)),
    };
  } finally {
    closeSync(fd);
  }
}

/** A link's pin, beside what its name says. */
export type LinkState =
  /** Nothing is there. */
  | 'none'
  /** Of that program, at that place. */
  | 'live'
  /** Of a program of ours, and detached, or another one or at another place than its name says. */
  | 'stray'
  /** Something that others have put there. */
  | 'foreign';

/**
 * Names of programs are only told with CAP_SYS_ADMIN; without it, a link is believed to be of the program that it is named after.
 * @param cgroupId {@link NO_CGROUP} for a tracepoint
 * @param isOurs whether a program of that name is one of ours
 */
export function linkState(
  pin: string,
  program: string,
  cgroupId: bigint,
  isOurs: (program: string) => boolean,
): LinkState {
  return (
    withPin(pin, (kind, fd): LinkState => {
      if (kind !== 'link') return 'foreign';
      const facts = linkFacts(fd);
      const name = programFacts(facts.programId)?.name;
      if (name === undefined ? facts.type === 'other' : name !== program && !isOurs(name)) return 'foreign';
      if (
        facts.type !== (cgroupId === NO_CGROUP ? 'tracing' : 'cgroup') ||
        (name !== undefined && name !== program)
      )
        return 'stray';
      return facts.cgroupId === cgroupId ? 'live' : 'stray';
    }) ?? 'none'
  );
}

/** Whether a pin is a link that holds that program at that place; see {@link linkState}. */
export const isLiveLink = (pin: string, program: string, cgroupId: bigint): boolean =>
  linkState(pin, program, cgroupId, () => false) === 'live';
