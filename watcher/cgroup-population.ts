/**
 * Whether any process lives in a cgroup or below it, by the kernel's `cgroup.events`:
 * that counts those too of other PID namespaces, which `cgroup.procs` shows as 0.
 */
import { readFileSync } from 'node:fs';
import { errnoOf } from '../native/error.ts';

/** What reading says of a cgroup that is gone. */
const GONE: ReadonlySet<string> = new Set(['ENOENT', 'ENODEV', 'ENOTDIR']);

/** False too for a cgroup that is gone; true where it cannot be told, as nobody shall be taken for gone. A process that has ended and waits for its parent counts as none. */
export function isPopulated(cgroupDirectory: string): boolean {
  try {
    return /^populated 1$/m.test(readFileSync(`${cgroupDirectory}/cgroup.events`, 'utf8'));
  } catch (error) {
    return !GONE.has(errnoOf(error));
  }
}
