/**
 * How deep the watched root lies in the kernel's own cgroup hierarchy.
 *
 * The programs find a pod by the ancestors of the current cgroup, and the kernel
 * counts those from its own root. Where a cgroup namespace hides the levels above,
 * as in a kind node or in a pod, paths alone don't tell how many there are.
 */
import { readFileSync, statSync } from 'node:fs';
import { ownCgroups } from '../native/bpf/cgroup-level.ts';
import { CgrouteError, messageOf } from '../native/error.ts';
import { findCgroupMount, isWholeHierarchy, levelsAbove, realCgroupRoot } from './host.ts';
import { unifiedPath } from './proc.ts';

/**
 * The level of the watched root as bpf_get_current_ancestor_cgroup_id() counts:
 * 0 is the kernel's root.
 *
 * Told by the path where the mount begins at the kernel's root. Else by the ids
 * of the cgroups that this process is in, if the mount's root is one of them. Else
 * (a process that entered the namespaces from outside, a mount of a part beside
 * its own) by this process's level and the two paths, which begin at one place.
 *
 * @param own ids from the kernel's root to this process's cgroup; for tests
 * @throws CgrouteError `ECGROUPLEVEL` when the kernel doesn't tell, for want of
 *   CAP_BPF for instance; and as {@link findCgroupMount}
 */
export function levelOf(
  cgroupRoot: string,
  procRoot = '/proc',
  own: () => readonly bigint[] = ownCgroups,
): number {
  const mount = findCgroupMount(procRoot, cgroupRoot);
  const below = depthOf(realCgroupRoot(cgroupRoot).slice(mount.mountPoint.length));
  if (isWholeHierarchy(mount)) return below;
  let ids: readonly bigint[];
  try {
    ids = own();
  } catch (cause) {
    throw untold(cgroupRoot, messageOf(cause), cause);
  }
  const at = ids.indexOf(statSync(mount.mountPoint, { bigint: true }).ino);
  if (at >= 0) return at + below;
  const ownPath = unifiedPath(readFileSync(`${procRoot}/self/cgroup`, 'utf8'));
  if (ownPath === undefined) throw untold(cgroupRoot, `${procRoot}/self/cgroup has no line of cgroup2`);
  const level = mountLevel(mount.root, ownPath, ids.length - 1) + below;
  if (level < 1)
    throw untold(
      cgroupRoot,
      `${mount.root} is mounted there, and this process is in ${ownPath}, ${ids.length - 1} levels deep, which does not fit`,
    );
  return level;
}

/**
 * The level of a mount's root.
 *
 * @param mountRoot as /proc/self/mountinfo writes it, `/../..`
 * @param ownPath of this process, as /proc/self/cgroup writes it; both begin at
 *   the root of the cgroup namespace, wherever that is
 * @param ownLevel of this process's cgroup
 */
export function mountLevel(mountRoot: string, ownPath: string, ownLevel: number): number {
  return ownLevel - depthOf(ownPath) + depthOf(mountRoot);
}

/** How far a path leads down from where it begins; up counts as less than nothing: 1 for `/a`, -2 for `/../..`, -1 for `/../../b`. */
function depthOf(path: string): number {
  return path.split('/').filter((name) => name !== '').length - 2 * levelsAbove(path);
}

function untold(cgroupRoot: string, why: string, cause?: unknown): CgrouteError {
  return new CgrouteError(
    'ECGROUPLEVEL',
    `--cgroup-root ${cgroupRoot} is seen from inside a cgroup namespace, and its depth on this host could not be told (${why}): expected CAP_BPF and Linux 5.15 or later, or a mount of the host's whole cgroup2 hierarchy`,
    { cause },
  );
}
