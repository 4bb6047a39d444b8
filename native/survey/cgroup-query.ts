/** Which programs are attached to the hooks of a cgroup, whose they are, and in which order they run. */
import { closeSync, openSync, statSync } from 'node:fs';
import { cString } from '../layout/elf.ts';
import { CgrouteError, refusalOf } from '../error.ts';
import { checked, libbpf } from '../boundary/libbpf.ts';
import { errnoValue } from '../boundary/libc.ts';
import { parseLinkPin } from '../pins/link-pin.ts';
import { hasPinDirectory, linkDirectories, pinsIn } from '../pins/pin-directory.ts';
import { linkFacts, withPin } from '../pins/pinned-object.ts';
import { cgroupHooks, type CgroupHook, type Hook } from '../programs/hooks.ts';
import { isOurName } from '../programs/programs.ts';

/**
 * How a cgroup's programs on one hook were attached, which the kernel keeps for
 * all of them together, bpf_prog_attach(2)'s flags:
 * - `exclusive` (0): no program may be attached here beside it, nor below;
 * - `override` (BPF_F_ALLOW_OVERRIDE): one attached below replaces it there;
 * - `multi` (BPF_F_ALLOW_MULTI, as links are): all of them run.
 */
export type AttachMode = 'exclusive' | 'override' | 'multi';

export interface AttachedProgram {
  readonly id: number;
  /** At most 15 characters; undefined where the kernel doesn't tell it, which takes CAP_SYS_ADMIN. */
  readonly name: string | undefined;
  readonly mode: AttachMode;
  /** `cgroute`: one of the pins is its link. `unpinned`: ours by name, and held by nothing that was asked about. */
  readonly owner: 'cgroute' | 'unpinned' | 'other';
}

export interface PlacedProgram extends AttachedProgram {
  /** The cgroup's directory; words, where a cgroup namespace hides it. */
  readonly place: string;
}

/** Programs on one hook, as a process in the nearest cgroup meets them. */
export interface HookOrder {
  readonly hook: CgroupHook;
  /** In the order in which the kernel runs them. */
  readonly runs: readonly PlacedProgram[];
  /** Attached further up and not run there, since `override` lets a nearer one replace them. */
  readonly hidden: readonly PlacedProgram[];
}

/** Names of programs of pinned links, by program id. */
export type PinnedPrograms = ReadonlyMap<number, string>;

const BPF_F_QUERY_EFFECTIVE = 1;
const BPF_F_ALLOW_OVERRIDE = 1;
const BPF_F_ALLOW_MULTI = 2;
/** The kernel allows 64 for one cgroup and hook; a path has several cgroups. */
const MAX_PROGRAMS = 1024;
/** Inode number of the kernel's own root cgroup. */
const KERNEL_ROOT = 1n;

/**
 * The programs of the links that are pinned in directories, by their ids. A
 * directory that is not there has none.
 * @throws CgrouteError `EPINS`, `EBPF` when one cannot be read
 */
export function pinnedPrograms(...linkDirectories: readonly string[]): PinnedPrograms {
  const programs = new Map<number, string>();
  for (const pin of linkDirectories.flatMap(pinsIn)) {
    const id = linkedProgram(pin);
    if (id !== undefined) programs.set(id, parseLinkPin(pin)?.program ?? pin);
  }
  return programs;
}

/** Those of every version that has pins below `--bpffs-root`. @throws as {@link pinnedPrograms}, and `EBPFFS` */
export const ownPrograms = (bpffsRoot: string): PinnedPrograms =>
  pinnedPrograms(...(hasPinDirectory(bpffsRoot) ? linkDirectories(bpffsRoot) : []));

const linkedProgram = (pin: string): number | undefined =>
  withPin(pin, (kind, fd) => (kind === 'link' ? linkFacts(fd).programId : undefined));

function objectInfo(fd: number): Buffer | undefined {
  const info = Buffer.alloc(128);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(info.length);
  return libbpf().objGetInfo(fd, info, length) < 0 ? undefined : info;
}

/**
 * The programs attached to one cgroup, hook by hook, in the order of their
 * attachment. A hook that this kernel doesn't know has none.
 *
 * @throws CgrouteError `EBPF` when they cannot be asked for (CAP_NET_ADMIN),
 *   `ECGROUPROOT` when the directory cannot be opened
 */
export function programsAt(
  cgroupPath: string,
  pinned: PinnedPrograms,
): ReadonlyMap<CgroupHook, readonly AttachedProgram[]> {
  return inCgroup(
    cgroupPath,
    (fd) =>
      new Map(
        hooks.map(([hook, { attach }]) => {
          const { ids, mode } = query(fd, attach, 0, cgroupPath);
          return [hook, ids.map((id) => describe(id, mode, pinned))];
        }),
      ),
  );
}

/**
 * For each hook, the programs that a process in the first of `paths` meets, in
 * the kernel's own order: the nearest cgroup's first, but for those attached
 * with BPF_F_PREORDER (Linux 6.15). Those attached above the last of `paths`,
 * as seen from inside a cgroup namespace, are placed "a cgroup above" it.
 *
 * @param paths the cgroup and its ancestors, nearest first
 * @throws CgrouteError as {@link programsAt}
 */
export function programsAlong(paths: readonly string[], pinned: PinnedPrograms): HookOrder[] {
  const levels = paths.map((place) => ({ place, programs: programsAt(place, pinned) }));
  const nearest = paths[0];
  const top = paths.at(-1);
  if (nearest === undefined || top === undefined) return [];
  // What runs here and is attached nowhere in sight; at the kernel's root it is news of this instant.
  const hidesMore = statSync(top, { bigint: true }).ino !== KERNEL_ROOT;
  return inCgroup(nearest, (fd) =>
    hooks.map(([hook, { attach }]) => {
      const left = levels.flatMap(({ place, programs }) =>
        (programs.get(hook) ?? []).map((program) => ({ ...program, place })),
      );
      const runs = query(fd, attach, BPF_F_QUERY_EFFECTIVE, nearest).ids.flatMap((id) => {
        // One program may be attached at several levels: each is taken once, the nearest first.
        const at = left.findIndex((program) => program.id === id);
        if (at >= 0) return left.splice(at, 1);
        return hidesMore ? [{ ...describe(id, 'multi', pinned), place: `a cgroup above ${top}` }] : [];
      });
      return { hook, runs, hidden: left };
    }),
  );
}

const hooks = Object.entries(cgroupHooks) as [CgroupHook, Hook][];

function inCgroup<T>(path: string, ask: (fd: number) => T): T {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch (cause) {
    throw new CgrouteError(
      'ECGROUPROOT',
      `the cgroup ${path} cannot be opened to ask for its programs: ${refusalOf(cause)}`,
      { cause },
    );
  }
  try {
    return ask(fd);
  } finally {
    closeSync(fd);
  }
}

function query(
  cgroup: number,
  type: number,
  flags: number,
  path: string,
): { ids: number[]; mode: AttachMode } {
  const ids = Buffer.alloc(4 * MAX_PROGRAMS);
  const attachFlags = Buffer.alloc(4);
  const count = Buffer.alloc(4);
  count.writeUInt32LE(MAX_PROGRAMS);
  const result = libbpf().progQuery(cgroup, type, flags, attachFlags, ids, count);
  if (result === -errnoValue('EINVAL')) return { ids: [], mode: 'multi' };
  checked(result, 'bpf_prog_query', path);
  const bits = attachFlags.readUInt32LE();
  const mode = bits & BPF_F_ALLOW_MULTI ? 'multi' : bits & BPF_F_ALLOW_OVERRIDE ? 'override' : 'exclusive';
  return {
    ids: Array.from({ length: count.readUInt32LE() }, (_, index) => ids.readUInt32LE(4 * index)),
    mode,
  };
}

function describe(id: number, mode: AttachMode, pinned: PinnedPrograms): AttachedProgram {
  const pin = pinned.get(id);
  if (pin !== undefined) return { id, name: pin, mode, owner: 'cgroute' };
  const name = nameOf(id);
  return { id, name, mode, owner: name !== undefined && isOurName(name) ? 'unpinned' : 'other' };
}

/** `name` of `struct bpf_prog_info`, <linux/bpf.h>. */
function nameOf(id: number): string | undefined {
  const fd = libbpf().progFdById(id);
  if (fd < 0) return undefined;
  try {
    const info = objectInfo(fd);
    return info === undefined ? undefined : cString(info.subarray(0, 80), 64) || undefined;
  } finally {
    closeSync(fd);
  }
}
