/** The cgroup2 tree of this machine, as a test uses it: find, make, kill, remove. */
import { mkdirSync, readFileSync, readdirSync, rmdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface Cgroup {
  /** From the sandbox's root, with a leading slash: `/kubepods/pod1`. */
  readonly path: string;
  /** Its directory. */
  readonly absolute: string;
  /** What `bpf_get_current_cgroup_id()` returns for a process in it. */
  readonly id: bigint;
}

/** Sleeps without returning to the event loop, so that it works at exit too. */
function sleep(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

/**
 * The directory where cgroup2 is mounted, of the whole tree.
 * Format: proc_pid_mountinfo(5).
 */
export function cgroup2Mount(): string {
  for (const line of readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) {
    const [mount = '', source = ''] = line.split(' - ');
    if (source.startsWith('cgroup2 ')) return mount.split(' ')[4] ?? '';
  }
  throw new Error('no cgroup2 mount in /proc/self/mountinfo; the tests need cgroup v2, unified or hybrid');
}

/** Makes a cgroup and its parents below `root`; one that exists is fine. */
export function makeCgroup(root: string, path: string): Cgroup {
  const absolute = join(root, path);
  mkdirSync(absolute, { recursive: true });
  const { ino } = statSync(absolute, { bigint: true });
  return { path: join('/', path), absolute, id: ino };
}

/** The directory and all below it, the deepest first; empty when it is gone. */
function tree(absolute: string): string[] {
  try {
    const below = readdirSync(absolute, { withFileTypes: true }).filter((entry) => entry.isDirectory());
    return [...below.flatMap((entry) => tree(join(absolute, entry.name))), absolute];
  } catch {
    return [];
  }
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

/** PIDs in a cgroup and below it. */
export function processesBelow(absolute: string): number[] {
  return tree(absolute).flatMap((directory) =>
    read(join(directory, 'cgroup.procs')).split('\n').filter(Boolean).map(Number),
  );
}

/** Kills what runs in a cgroup and below it, and waits until it is dead. */
export function killBelow(absolute: string): void {
  for (let tries = 0; tries < 500; tries++) {
    if (!read(join(absolute, 'cgroup.events')).includes('populated 1')) return;
    try {
      writeFileSync(join(absolute, 'cgroup.kill'), '1');
    } catch {
      // Before Linux 5.14 there is no cgroup.kill.
      for (const pid of processesBelow(absolute)) {
        try {
          process.kill(pid, 'SIGKILL');
        } catch {
          // Dead already.
        }
      }
    }
    sleep(tries < 20 ? 2 : 10);
  }
  throw new Error(`processes in ${absolute} do not die: ${processesBelow(absolute).join(', ')}`);
}

/** Kills what runs in a cgroup and removes it with all below it. */
export function removeCgroup(absolute: string): void {
  killBelow(absolute);
  for (const directory of tree(absolute)) {
    for (let tries = 0; ; tries++) {
      try {
        rmdirSync(directory);
        break;
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        if (code === 'ENOENT') break;
        if (code !== 'EBUSY' || tries === 200) throw error;
        // A program that was being started has come in only now.
        killBelow(directory);
        sleep(5);
      }
    }
  }
}
