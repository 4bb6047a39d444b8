/**
 * What a test makes on this machine, and the promise that all of it goes away:
 * a cgroup subtree, a bpffs mount, a directory, network namespaces.
 *
 * Every name carries its owner's token, PID and start time. Whatever is found
 * with the token of a process that is dead is swept away by the next test.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, readdirSync, rmSync, unlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Cgroup, cgroup2Mount, makeCgroup, removeCgroup } from './cgroup.ts';
import { must, type Program, type Running, spawnIn } from './process.ts';

const CGROUP_PREFIX = 'cgroute-test-';
const NETNS_PREFIX = 'cgrt-';
const NETNS_DIRECTORY = '/run/netns';
const PROC = 'proc-';
/** Private, as else what is mounted on /proc/1 of the one would be so on that of the other. */
const MOUNT_PROC =
  'mkdir "$1" && mount --bind /proc "$1" && mount --make-private "$1" && mount --bind "/proc/$2" "$1/1"';

export interface Sandbox extends AsyncDisposable {
  /** Unique among all sandboxes that live: `<pid>-<start time>-<number>`. */
  readonly token: string;
  /** The absolute path of its cgroup, for `--cgroup-root`. */
  readonly cgroupRoot: string;
  /** A bpffs mount of its own. */
  readonly bpffs: string;
  /** A /proc whose PID 1 is in the network that {@link Sandbox.hostIn} named, for `--proc-root`; undefined before that. */
  readonly procRoot: string | undefined;
  /** An empty directory for files. */
  readonly directory: string;
  /** Where {@link Sandbox.spawn} starts programs: "host processes", a leaf below the root. */
  readonly hostCgroup: Cgroup;
  /** Makes a cgroup, and its parents, below the sandbox's root. */
  cgroup(path: string): Cgroup;
  /** The path of a file in the sandbox's directory. */
  file(name: string): string;
  /** A name for a network namespace, which is deleted with the sandbox. */
  netnsName(name: string): string;
  /** From now on a network namespace passes for the host's. */
  hostIn(netns: string): Promise<void>;
  /** A /proc whose PID 1 is in this network namespace: a node's of several in one sandbox. */
  procIn(netns: string): Promise<string>;
  /** Starts a program, in {@link Sandbox.hostCgroup} unless told otherwise. */
  spawn(program: Program): Running;
}

interface Remains {
  readonly cgroups: readonly string[];
  readonly netns: readonly string[];
  readonly directories: readonly string[];
}

const live = new Set<string>();
let made = 0;

/** The start time of a process in clock ticks, field 22 of proc_pid_stat(5). */
function startTime(pid: number | 'self'): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return undefined;
  }
}

function listing(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

/** Everything on the machine whose name has a token that `isMine` accepts. */
function find(isMine: (pid: number, start: string, token: string) => boolean): Remains {
  const matching = (directory: string, prefix: string): string[] =>
    listing(directory)
      .filter((name) => {
        const [token, pid, start] = /(\d+)-(\d+)-\d+$/.exec(name) ?? [];
        return name.startsWith(prefix) && token !== undefined && isMine(Number(pid), start ?? '', token);
      })
      .map((name) => join(directory, name));
  return {
    cgroups: matching(cgroup2Mount(), CGROUP_PREFIX),
    netns: matching(NETNS_DIRECTORY, NETNS_PREFIX),
    directories: matching(tmpdir(), CGROUP_PREFIX),
  };
}

function isMounted(directory: string): boolean {
  return readFileSync('/proc/self/mountinfo', 'utf8').includes(` ${directory} `);
}

/** Removes all of it, in the order that works; a part that is gone is fine. */
function remove(remains: Remains): void {
  const failures: unknown[] = [];
  const attempt = (step: () => void): void => {
    try {
      step();
    } catch (error) {
      failures.push(error);
    }
  };
  for (const cgroup of remains.cgroups) attempt(() => removeCgroup(cgroup));
  for (const netns of remains.netns) {
    attempt(() => {
      spawnSync('umount', ['--lazy', netns]);
      unlinkSync(netns);
    });
  }
  for (const directory of remains.directories) {
    attempt(() => {
      const mounts = listing(directory).filter((name) => name === 'bpffs' || name.startsWith(PROC));
      for (const mount of mounts.map((name) => join(directory, name))) {
        while (isMounted(mount)) {
          const { status, stderr } = spawnSync('umount', ['--recursive', mount], { encoding: 'utf8' });
          if (status !== 0) throw new Error(stderr);
        }
      }
      rmSync(directory, { recursive: true, force: true });
    });
  }
  const real = failures.filter((error) => (error as NodeJS.ErrnoException).code !== 'ENOENT');
  if (real.length > 0) throw new AggregateError(real, `a sandbox left something behind: ${String(real[0])}`);
}

/** Removes what dead test processes left on the machine. */
export function sweep(): void {
  remove(find((pid, start) => startTime(pid) !== start));
}

function removeToken(token: string): void {
  if (!live.delete(token)) return;
  remove(find((_pid, _start, other) => other === token));
}

function removeAll(): void {
  for (const token of live) removeToken(token);
}

function guardExit(): void {
  process.on('exit', removeAll);
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.once(signal, () => {
      removeAll();
      process.kill(process.pid, signal);
    });
  }
}

/**
 * Makes a sandbox. Dispose of it with `await using`: processes in its cgroups
 * are killed, and everything is removed, also when the test fails or is ended
 * by a signal.
 */
export async function makeSandbox(name: string): Promise<Sandbox> {
  if (process.getuid?.() !== 0)
    throw new Error('the live tests need root: they make cgroups, namespaces and mounts');
  if (made++ === 0) {
    sweep();
    guardExit();
  }
  const token = `${process.pid}-${startTime('self')}-${made}`;
  live.add(token);
  const cgroupRoot = join(cgroup2Mount(), `${CGROUP_PREFIX}${name}-${token}`);
  const directory = join(tmpdir(), `${CGROUP_PREFIX}${name}-${token}`);
  const bpffs = join(directory, 'bpffs');
  mkdirSync(bpffs, { recursive: true });
  const { status, stderr } = spawnSync('mount', ['-t', 'bpf', 'cgroute-test', bpffs], { encoding: 'utf8' });
  if (status !== 0) {
    removeToken(token);
    throw new Error(`mount -t bpf: ${stderr.trim()}`);
  }
  const hostCgroup = makeCgroup(cgroupRoot, 'host');
  const stands: Running[] = [];
  let procRoot: string | undefined;
  async function procIn(netns: string): Promise<string> {
    const path = join(directory, `${PROC}${netns}`);
    // In no cgroup of the sandbox: it ends with its standard input.
    const stand = spawnIn({ cmd: 'sh', args: ['-c', 'echo here; exec cat'], netns });
    stands.push(stand);
    await stand.line(/^here$/);
    await must({ cmd: 'sh', args: ['-ec', MOUNT_PROC, 'sh', path, String(stand.pid)] });
    return path;
  }
  return {
    token,
    cgroupRoot,
    bpffs,
    get procRoot() {
      return procRoot;
    },
    async hostIn(netns) {
      if (procRoot !== undefined) throw new Error('a sandbox has one host');
      procRoot = await procIn(netns);
    },
    procIn,
    directory,
    hostCgroup,
    cgroup: (path) => makeCgroup(cgroupRoot, path),
    file: (file) => join(directory, file),
    netnsName: (host) => `${NETNS_PREFIX}${host}-${token}`,
    spawn: (program) => spawnIn({ cgroup: hostCgroup, ...program }),
    async [Symbol.asyncDispose]() {
      try {
        removeToken(token);
      } finally {
        await Promise.all(stands.map((stand) => stand.stop('SIGKILL')));
      }
    },
  };
}

/** Builds something in a new sandbox, which it disposes of itself; when that fails, the sandbox goes at once. */
export async function inSandbox<T>(name: string, build: (sandbox: Sandbox) => Promise<T>): Promise<T> {
  const sandbox = await makeSandbox(name);
  try {
    return await build(sandbox);
  } catch (error) {
    await sandbox[Symbol.asyncDispose]();
    throw error;
  }
}
