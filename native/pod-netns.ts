/**
 * Programs of this host run inside a pod's network namespace. Only that namespace
 * is entered: the program, its libraries and its files are the host's, and nothing
 * of the pod's is executed.
 */
import { spawn } from 'node:child_process';
import { accessSync, closeSync, constants, fstatSync, openSync } from 'node:fs';
import { CgrouteError, messageOf } from './error.ts';

/** An open network namespace. It lives on while this is open, so don't keep it. */
export interface PodNetns extends Disposable {
  /** As `/proc/PID/ns/net` shows it. */
  readonly inode: number;
  readonly fd: number;
}

export interface Ran {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Longer than a program waits for a lock. */
const TIMEOUT_MS = 10_000;
/** A pod may have put any number of rules there. */
const MOST_OUTPUT = 4 * 1024 * 1024;
/** Out of the way of those that the program gets. */
const NETNS_FD = 40;
const SYSTEM_PATH = '/usr/sbin:/usr/bin:/sbin:/bin';

/**
 * Opens the network namespace that a process is in; undefined when it has gone.
 * The caller must look afterwards whether the PID was still the pod's.
 * @throws CgrouteError `ENETNS` when it may not be opened
 */
export function openPodNetns(pid: number, procRoot = '/proc'): PodNetns | undefined {
  let fd: number;
  try {
    fd = openSync(`${procRoot}/${pid}/ns/net`, 'r');
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ESRCH') return undefined;
    throw new CgrouteError('ENETNS', `the network namespace of process ${pid} cannot be opened (${code ?? messageOf(cause)}): the agent needs CAP_SYS_PTRACE and CAP_SYS_ADMIN`, { cause });
  }
  return { fd, inode: fstatSync(fd).ino, [Symbol.dispose]: () => closeSync(fd) };
}

/** The absolute path of a program of this host; undefined when it is not installed. */
export function findProgram(name: string, path = `${process.env['PATH'] ?? ''}:${SYSTEM_PATH}`): string | undefined {
  return path.split(':').filter((directory) => directory.startsWith('/')).map((directory) => `${directory}/${name}`).find((file) => {
    try {
      accessSync(file, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/**
 * Runs a program to its end, with nothing on its standard input.
 * @param moreDescriptors so many from 3 on are taken when it starts
 * @throws CgrouteError `ENOPROGRAM` when it or nsenter is not installed, `ETIMEDOUT`
 *   when it took too long and was killed, `ENETNS` when it could not be run
 */
export async function runInNetns(netns: PodNetns, program: string, args: readonly string[], moreDescriptors = 0): Promise<Ran> {
  const nsenter = required('nsenter', 'util-linux');
  const file = required(program, 'iptables');
  const { promise, resolve, reject } = Promise.withResolvers<Ran>();
  const descriptors = Array.from({ length: NETNS_FD - 3 }, (_, at) => (at < moreDescriptors ? netns.fd : ('ignore' as const)));
  // The descriptor, not the PID: that may be another process's by now.
  const child = spawn(nsenter, [`--net=/proc/self/fd/${NETNS_FD}`, '--', file, ...args], {
    stdio: ['ignore', 'pipe', 'pipe', ...descriptors, netns.fd],
    env: environment(),
    timeout: TIMEOUT_MS,
    killSignal: 'SIGKILL',
  });
  const output = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name]?.setEncoding('utf8').on('data', (text: string) => {
      output[name] += text;
      if (output[name].length > MOST_OUTPUT) child.kill('SIGKILL');
    });
  }
  child.once('error', (cause) => reject(new CgrouteError('ENETNS', `${program} could not be started: ${messageOf(cause)}`, { cause })));
  child.once('close', (code, signal) => {
    if (code !== null) resolve({ code, ...output });
    else if (output.stdout.length > MOST_OUTPUT) reject(new CgrouteError('ENETNS', `${program} said more than ${MOST_OUTPUT} bytes and was killed`));
    else reject(new CgrouteError('ETIMEDOUT', `${program} ended by ${signal ?? 'nothing'}: expected an answer within ${TIMEOUT_MS / 1000} s`));
  });
  return promise;
}

function required(name: string, packageName: string): string {
  const file = findProgram(name);
  if (file === undefined) throw new CgrouteError('ENOPROGRAM', `the program ${name} is not installed where the agent runs: install the package ${packageName}`);
  return file;
}

function environment(): NodeJS.ProcessEnv {
  // iptables finds its lock there, if the host keeps it elsewhere.
  const lock = process.env['XTABLES_LOCKFILE'];
  return { PATH: SYSTEM_PATH, LC_ALL: 'C', ...(lock === undefined ? {} : { XTABLES_LOCKFILE: lock }) };
}
