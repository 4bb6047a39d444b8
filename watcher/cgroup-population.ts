/**
 * Whether any process lives in a cgroup or below it, by the kernel's `cgroup.events`:
 * that counts those too of other PID namespaces, which `cgroup.procs` shows as 0.
 */
import { readFileSync } from 'node:fs';

/** False too for a cgroup that is gone. A process that has ended and waits for its parent counts as none. */
export function isPopulated(cgroupDirectory: string): boolean {
  try {
    return /^populated 1$/m.test(readFileSync(`${cgroupDirectory}/cgroup.events`, 'utf8'));
  } catch {
    return false;
  }
}
