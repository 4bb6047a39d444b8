/** One agent at a time: an advisory lock on a directory, which ends with the process that holds it. */
import { closeSync, fstatSync, openSync, readFileSync, statSync } from 'node:fs';
import { CgrouteError, errnoOf, refusalOf } from '../error.ts';
import { LOCK_EX, LOCK_SH, tryFlock } from './libc.ts';
import { hostNamespaces } from './privilege.ts';

export interface DirectoryLock extends Disposable {
  /** Locks what is at the path now, where that was removed and made again. @throws CgrouteError `ELOCKED` */
  renew(): void;
  /** A sentence, where an ordinary user holds a lock that only root could mean: it is passed over. */
  readonly note?: string;
}

const TRIES = 5;

/**
 * Locks a directory (of cgroupfs or bpffs, where no file could be made) until
 * disposed of, or until the process ends in whatever way.
 *
 * Anybody who may read a directory may lock it, so a holder that is not root does
 * not count: no user of the host shall keep the agent from starting.
 *
 * @param purpose the flag that names it
 * @param tries how often it is tried, some 40 ms apart: `status` holds the lock for an instant to see whether it is held
 * @throws CgrouteError `ELOCKED` when another agent holds it, `EUNSEEN` when it cannot be opened
 */
export function lockDirectory(path: string, purpose: string, tries = TRIES): DirectoryLock {
  let fd = openDirectory(path, purpose);
  try {
    const unlock = {
      renew() {
        const now = statSync(path, { throwIfNoEntry: false });
        const { dev, ino } = fstatSync(fd);
        if (now === undefined || (now.dev === dev && now.ino === ino)) return;
        const next = openDirectory(path, purpose);
        if (!lockSoon(next, path)) {
          closeSync(next);
          throw new CgrouteError(
            'ELOCKED',
            `${purpose} ${path} was removed and made again, and is locked by another cgroute: stop that one`,
          );
        }
        closeSync(fd);
        fd = next;
      },
      [Symbol.dispose]: () => closeSync(fd),
    };
    if (lockSoon(fd, path, tries)) return unlock;
    const holders = holdersOf(fd);
    // An agent lives as long as its lock, and from the host's PID namespace it can be seen.
    const seesAll = hostNamespaces().pid === true;
    if ((holders.length > 0 || seesAll) && holders.every(({ uid }) => uid !== 0)) {
      const who =
        holders.map(({ pid, uid }) => `process ${pid} of user ${uid}`).join(', ') ||
        'a process that has ended';
      return {
        ...unlock,
        note: `${purpose} ${path} is locked by ${who}, which is no agent; the lock is passed over`,
      };
    }
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  closeSync(fd);
  throw new CgrouteError(
    'ELOCKED',
    `another cgroute agent runs with ${purpose} ${path}: expected to be the only one; stop it, or choose another`,
  );
}

function openDirectory(path: string, purpose: string): number {
  try {
    return openSync(path, 'r');
  } catch (cause) {
    throw new CgrouteError('EUNSEEN', `${purpose} ${path} cannot be opened: ${refusalOf(cause)}`, {
      cause,
      errno: errnoOf(cause),
    });
  }
}

function lockSoon(fd: number, path: string, tries = TRIES): boolean {
  for (let left = tries; ; ) {
    if (tryFlock(fd, LOCK_EX, path)) return true;
    if (--left <= 0) return false;
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 40);
  }
}

/** Processes that hold a flock on the file, as far as /proc shows them. Format: proc_locks(5). */
function holdersOf(fd: number): { readonly pid: number; readonly uid: number }[] {
  const { dev, ino } = fstatSync(fd);
  const hex = (number: number): string => number.toString(16).padStart(2, '0');
  // The kernel's encoding of a device number in st_dev, <sys/sysmacros.h>.
  const major = (dev >>> 8) & 0xfff;
  const minor = (dev & 0xff) | ((dev >>> 12) & 0xfff00);
  const file = `${hex(major)}:${hex(minor)}:${ino}`;
  return readFileSync('/proc/locks', 'utf8')
    .split('\n')
    .flatMap((line) => {
      const [, kind, , , pid, place] = line.trim().split(/\s+/);
      if (kind !== 'FLOCK' || place !== file) return [];
      const uid = realUid(Number(pid));
      return uid === undefined ? [] : [{ pid: Number(pid), uid }];
    });
}

/**
 * Who started it, whatever it has become by a set-user-ID program; undefined when it
 * has ended. Of one that may not be looked at, or that /proc hides (hidepid), root's.
 */
function realUid(pid: number): number | undefined {
  try {
    return Number(/^Uid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
  } catch {
    return isAlive(pid) ? 0 : undefined;
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return errnoOf(error) !== 'ESRCH';
  }
}

/** True when an agent holds the directory's lock. @throws CgrouteError `EUNSEEN` when it cannot be opened */
export function isLocked(path: string): boolean {
  const fd = openDirectory(path, 'the directory');
  try {
    return !tryFlock(fd, LOCK_SH, path);
  } finally {
    closeSync(fd);
  }
}
