/** Programs of another cgroute on the cgroups that this agent watches. */
import { dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { cgrouteLinks, type CgrouteLink } from '../../native/survey/cgroute-links.ts';
import {
  ownPrograms,
  programsAlong,
  type HookOrder,
  type PinnedPrograms,
} from '../../native/survey/cgroup-query.ts';
import { CgrouteError, isForbidden } from '../../native/error.ts';
import { openCgroupTree } from '../../watcher/cgroup-tree.ts';

export interface WatchedPlace {
  readonly cgroupRoot: string;
  /** Of the cgroup2 file system that it is in. */
  readonly mountPoint: string;
  readonly bpffsRoot: string;
  readonly procRoot: string;
  readonly logger: Logger;
}

/** The kernel lets go of programs a moment after their pins are removed: so long a start waits for that. */
const PATIENCE_MS = 2000;
const RETRY_MS = 50;

/**
 * Two sets of programs on one socket would each take the other's redirection for
 * a loop. Whose a program is the kernel tells to CAP_SYS_ADMIN only; without it,
 * another cgroute is known by its pins, where they are in sight.
 * @throws CgrouteError `ELOCKED` when another cgroute's programs are at the root, above or below, and stay there;
 *   `EPINS`, `EBPF`, `ECGROUPROOT` where that cannot be looked for
 */
export async function refuseOthers(watched: WatchedPlace): Promise<void> {
  const until = performance.now() + PATIENCE_MS;
  let place = await rivalPlace(watched);
  while (place !== undefined && performance.now() < until) {
    await delay(RETRY_MS);
    place = await rivalPlace(watched);
  }
  if (place === undefined) return;
  throw new CgrouteError(
    'ELOCKED',
    `programs of another cgroute are attached at ${place}: expected none at --cgroup-root, above it or below; stop that agent and run \`cgroute cleanup\` with its --bpffs-root`,
  );
}

/** A cgroup that has such programs. */
async function rivalPlace(watched: WatchedPlace): Promise<string | undefined> {
  const own = ownPrograms(watched.bpffsRoot);
  const others = cgrouteLinks(watched.procRoot).filter(({ programId }) => !own.has(programId));
  return (
    placeAbove(watched, own, others) ?? (others.length === 0 ? undefined : await placeBelow(watched, others))
  );
}

function placeAbove(
  { cgroupRoot, mountPoint }: WatchedPlace,
  own: PinnedPrograms,
  others: readonly CgrouteLink[],
): string | undefined {
  const places = [cgroupRoot];
  for (let place = cgroupRoot; place !== mountPoint && place !== '/'; ) places.push((place = dirname(place)));
  let hooks: readonly HookOrder[];
  try {
    hooks = programsAlong(places, own);
  } catch (error) {
    // Without the privilege to ask there is none to attach either, which has its own sentence.
    if (error instanceof CgrouteError && error.code === 'EBPF' && isForbidden(error)) return undefined;
    throw error;
  }
  const theirs = new Set(others.map(({ programId }) => programId));
  const programs = hooks.flatMap(({ runs, hidden }) => [...runs, ...hidden]);
  return programs.find(({ owner, id }) => owner === 'unpinned' || theirs.has(id))?.place;
}

async function placeBelow(
  { cgroupRoot, logger }: WatchedPlace,
  others: readonly CgrouteLink[],
): Promise<string | undefined> {
  const tree = openCgroupTree({ cgroupRoot, logger, onAppeared: () => {}, onGone: () => {} });
  await tree.sweep();
  const path = others
    .map(({ cgroupId }) => tree.cgroups.get(cgroupId)?.path)
    .find((found) => found !== undefined);
  return path === undefined ? undefined : cgroupRoot + path;
}
