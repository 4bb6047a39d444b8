/** What kind of host this is: where cgroup2 is mounted, and whether it can be used. */
import { readdirSync, readFileSync, realpathSync, statfsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { CgrouteError, isForbidden, refusalOf } from '../native/error.ts';

/** CGROUP2_SUPER_MAGIC, <linux/magic.h>. */
const CGROUP2_MAGIC = 0x63677270;

const HOW_TO_CHECK =
  '`stat -fc %T /sys/fs/cgroup` prints cgroup2fs on a host with cgroup v2; ' +
  'boot with systemd.unified_cgroup_hierarchy=1 to switch';

/** One line of /proc/<pid>/mountinfo, proc_pid_mountinfo(5), of type cgroup or cgroup2. */
export interface CgroupMount {
  readonly version: 1 | 2;
  readonly mountPoint: string;
  /**
   * The cgroup that is mounted there, as the reader's cgroup namespace names it:
   * `/` is the namespace's root, and `/../..` is two levels above it.
   */
  readonly root: string;
}

/** The cgroup mounts in the text of a mountinfo file, in its order. Lines that don't parse are skipped. */
export function parseMountinfo(text: string): CgroupMount[] {
  const mounts: CgroupMount[] = [];
  for (const line of text.split('\n')) {
    const [left, right] = line.split(' - ', 2);
    const type = right?.split(' ', 1)[0];
    if (left === undefined || (type !== 'cgroup' && type !== 'cgroup2')) continue;
    const fields = left.split(' ');
    const root = fields[3];
    const mountPoint = fields[4];
    if (root === undefined || mountPoint === undefined) continue;
    mounts.push({
      version: type === 'cgroup2' ? 2 : 1,
      root: unescape(root),
      mountPoint: unescape(mountPoint),
    });
  }
  return mounts;
}

/** Spaces, tabs, newlines and backslashes stand as \040 and so on. */
function unescape(field: string): string {
  return field.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}

/** The cgroup mounts of this process's mount namespace. Throws CgrouteError 'EPROC'. */
export function cgroupMounts(procRoot = '/proc'): CgroupMount[] {
  const file = join(procRoot, 'self/mountinfo');
  try {
    return parseMountinfo(readFileSync(file, 'utf8'));
  } catch (cause) {
    throw new CgrouteError(
      'EPROC',
      `--proc-root: ${file} could not be read (${refusalOf(cause)}); expected a proc file system`,
      { cause },
    );
  }
}

/**
 * The cgroup2 mount that holds `cgroupRoot`, or, without it, the one that shows
 * most of the hierarchy (in a container there may be the host's and its own).
 *
 * Throws CgrouteError 'ENOCGROUP2' where there is none, and 'ECGROUPROOT' when
 * `cgroupRoot` is no directory of a cgroup2 file system.
 */
export function findCgroupMount(procRoot = '/proc', cgroupRoot?: string): CgroupMount {
  const mounts = cgroupMounts(procRoot);
  const unified = mounts.filter((mount) => mount.version === 2);
  if (unified.length === 0) {
    const found = mounts.length > 0 ? 'cgroup v1 only' : 'no cgroup file system';
    throw new CgrouteError(
      'ENOCGROUP2',
      `this host has ${found}, and cgroute needs cgroup v2 (unified or hybrid); ${HOW_TO_CHECK}`,
    );
  }
  if (cgroupRoot === undefined) {
    return unified.reduce((best, mount) => (levelsAbove(mount.root) > levelsAbove(best.root) ? mount : best));
  }
  const real = realCgroupRoot(cgroupRoot);
  const holding = unified.filter((mount) => isBelow(real, mount.mountPoint));
  const mount = holding.reduce<CgroupMount | undefined>(
    // The longest mount point holds it; of two mounts on one place, the later one is on top.
    (best, each) => (best === undefined || each.mountPoint.length >= best.mountPoint.length ? each : best),
    undefined,
  );
  if (mount === undefined) {
    throw new CgrouteError(
      'ECGROUPROOT',
      `--cgroup-root: ${cgroupRoot} is not below any cgroup2 mount of ${join(procRoot, 'self/mountinfo')}`,
    );
  }
  return mount;
}

/** Does the mount begin at the kernel's own root, whose inode number is 1? False in a cgroup namespace of one's own. */
export function isWholeHierarchy({ mountPoint }: CgroupMount): boolean {
  return statSync(mountPoint, { bigint: true }).ino === 1n;
}

/** `cgroupRoot` without symbolic links, when it is a cgroup2 directory. Throws CgrouteError 'ECGROUPROOT'. */
export function realCgroupRoot(cgroupRoot: string): string {
  let real: string;
  let magic: number;
  try {
    real = realpathSync(cgroupRoot);
    magic = statfsSync(real).type;
  } catch (cause) {
    throw new CgrouteError(
      'ECGROUPROOT',
      `--cgroup-root: expected a cgroup2 directory, and ${cgroupRoot} could not be read (${refusalOf(cause)})`,
      { cause },
    );
  }
  if (magic !== CGROUP2_MAGIC) {
    throw new CgrouteError(
      'ECGROUPROOT',
      `--cgroup-root: expected a directory of a cgroup2 file system (magic 0x63677270), and ${cgroupRoot} is on another (0x${magic.toString(16)}); ${HOW_TO_CHECK}`,
    );
  }
  return real;
}

/**
 * Refuses a hybrid host whose containers were placed on cgroup v1 only: one of
 * `names` (directories that a container manager makes, `kubepods.slice`) stands
 * in a v1 hierarchy and in no v2 one. Throws CgrouteError 'ECGROUPV1'.
 *
 * It looks two levels deep, for kind keeps them below `kubelet.slice`.
 */
export function refuseV1Only(names: readonly string[], procRoot = '/proc'): void {
  const mounts = cgroupMounts(procRoot);
  const unseen: unknown[] = [];
  const find = (version: 1 | 2): string | undefined => {
    for (const mount of mounts) {
      const place =
        mount.version === version
          ? findDirectory(mount.mountPoint, names, 2, (cause) => version === 2 && unseen.push(cause))
          : undefined;
      if (place !== undefined) return place;
    }
    return undefined;
  };
  if (find(2) !== undefined) return;
  const place = find(1);
  if (place === undefined) return;
  if (unseen.length > 0)
    throw new CgrouteError(
      'ECGROUPV1',
      `${place} exists on cgroup v1, and whether there is the like on cgroup v2 cannot be told: ${refusalOf(unseen[0])}`,
      { cause: unseen[0] },
    );
  throw new CgrouteError(
    'ECGROUPV1',
    `this host places its containers on cgroup v1 only (${place} exists, and nothing like it on cgroup v2), and cgroute needs cgroup v2; ${HOW_TO_CHECK}`,
  );
}

function findDirectory(
  directory: string,
  names: readonly string[],
  levels: number,
  onForbidden: (cause: unknown) => void,
): string | undefined {
  let entries: string[];
  try {
    entries = readdirSync(directory, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name);
  } catch (cause) {
    if (isForbidden(cause)) onForbidden(cause);
    return undefined;
  }
  const name = entries.find((entry) => names.includes(entry));
  if (name !== undefined) return join(directory, name);
  if (levels <= 1) return undefined;
  for (const entry of entries) {
    const place = findDirectory(join(directory, entry), names, levels - 1, onForbidden);
    if (place !== undefined) return place;
  }
  return undefined;
}

/** Is `path` the directory `ancestor` or below it? Both absolute, without a trailing slash. */
export function isBelow(path: string, ancestor: string): boolean {
  return ancestor === '/' || path === ancestor || path.startsWith(`${ancestor}/`);
}

/** How many levels above the cgroup namespace's root a path starts: 2 for `/../..`. */
export function levelsAbove(path: string): number {
  return (/^(?:\/\.\.)*/.exec(path)?.[0].length ?? 0) / 3;
}

/**
 * Where this process's cgroup namespace begins, as a path below the mount, where
 * the mount starts above it (`/../..`): /proc tells no names of those levels, so
 * the cgroup that holds this process is searched for, once, at the start.
 *
 * Undefined where the mount starts at the namespace's own root, and where this
 * process is not below the mount.
 */
export function namespacePath(mount: CgroupMount, ownPath: string): string | undefined {
  const levels = levelsAbove(mount.root);
  if (levels === 0) return undefined;
  const found = findProcess(mount.mountPoint, String(process.pid));
  if (found === undefined) return undefined;
  // ownPath is what comes after the namespace's root, and usually '/'.
  const whole = found.slice(mount.mountPoint.length);
  const path = ownPath === '/' ? whole : whole.endsWith(ownPath) ? whole.slice(0, -ownPath.length) : '';
  return path.split('/').length - 1 === levels ? path : undefined;
}

function findProcess(directory: string, pid: string): string | undefined {
  try {
    if (readFileSync(join(directory, 'cgroup.procs'), 'utf8').split('\n').includes(pid)) return directory;
    for (const entry of readdirSync(directory, { withFileTypes: true })) {
      const found = entry.isDirectory() ? findProcess(join(directory, entry.name), pid) : undefined;
      if (found !== undefined) return found;
    }
  } catch {
    // It was removed meanwhile, or its processes are threads (EOPNOTSUPP).
  }
  return undefined;
}
