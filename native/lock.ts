/** One agent at a time: an advisory lock on a directory, which ends with the process that holds it. */
import { closeSync, openSync } from 'node:fs';
import { CgrouteError } from './error.ts';
import { LOCK_EX, LOCK_SH, tryFlock } from './libc.ts';

/**
 * Locks a directory (of cgroupfs or bpffs, where no file could be made) until
 * disposed of, or until the process ends in whatever way.
 * @throws CgrouteError `ELOCKED` when another process holds it
 */
export function lockDirectory(path: string, purpose: string): Disposable {
  const fd = openSync(path, 'r');
  let locked = false;
  try {
    locked = tryFlock(fd, LOCK_EX, path);
  } finally {
    if (!locked) closeSync(fd);
  }
  if (!locked) throw new CgrouteError('ELOCKED', `another cgroute agent runs with ${purpose} ${path}: expected to be the only one; stop it, or choose another`);
  return { [Symbol.dispose]: () => closeSync(fd) };
}

/** True when an agent holds the directory's lock. */
export function isLocked(path: string): boolean {
  const fd = openSync(path, 'r');
  try {
    return !tryFlock(fd, LOCK_SH, path);
  } finally {
    closeSync(fd);
  }
}
