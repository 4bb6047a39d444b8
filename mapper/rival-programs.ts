/** Programs of another cgroute on the cgroups that this agent watches. */
import { dirname } from 'node:path';
import { ownPrograms, programsAlong } from '../native/cgroup-query.ts';
import { CgrouteError } from '../native/error.ts';

/**
 * Two sets of programs on one socket would each take the other's redirection for
 * a loop. Nothing is refused where the kernel doesn't tell the programs' names.
 * @throws CgrouteError `ELOCKED` when another cgroute's programs are at the root or above
 */
export function refuseOthers(cgroupRoot: string, mountPoint: string, bpffsRoot: string): void {
  const pinned = ownPrograms(bpffsRoot) ?? new Map();
  const places = [cgroupRoot];
  for (let place = cgroupRoot; place !== mountPoint && place !== '/'; ) places.push((place = dirname(place)));
  let programs;
  try {
    programs = programsAlong(places, pinned).flatMap(({ runs, hidden }) => [...runs, ...hidden]);
  } catch {
    return; // without the privilege to look there is none to attach either, which has its own sentence
  }
  const other = programs.find(({ owner }) => owner === 'unpinned');
  if (other === undefined) return;
  throw new CgrouteError('ELOCKED', `programs of another cgroute are attached at ${other.place}: expected none at --cgroup-root or above it; stop that agent and run \`cgroute cleanup\` with its --bpffs-root`);
}
