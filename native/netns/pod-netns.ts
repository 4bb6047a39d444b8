/**
 * Things done inside a pod's network namespace. Only that namespace is entered: a
 * program that runs there, its libraries and its files are those of the agent's own
 * file system, and nothing of the pod's is executed.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { accessSync, closeSync, constants, fstatSync, openSync } from 'node:fs';
import { CgrouteError, messageOf } from '../error.ts';
import { setns } from '../boundary/libc.ts';

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
/** From <linux/sched.h>. */
const CLONE_NEWNET = 0x40000000;
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
    throw new CgrouteError(
      'ENETNS',
      `the network namespace of process ${pid} cannot be opened (${code ?? messageOf(cause)}): the agent needs CAP_SYS_PTRACE and CAP_SYS_ADMIN`,
      { cause },
    );
  }
  return { fd, inode: fstatSync(fd).ino, [Symbol.dispose]: () => closeSync(fd) };
}

/**
 * Calls `work` with this thread, which JavaScript runs on, in the namespace. It
 * must be synchronous: nothing else runs on the thread meanwhile, and the agent's
 * other threads stay where they are. What it starts or opens belongs to the
 * namespace.
 * @param fd of an open network namespace
 * @throws CgrouteError `ESYSCALL`, errno `EPERM` without CAP_SYS_ADMIN; and what `work` throws
 */
export function insideNetns<T>(fd: number, work: () => T): T {
  const own = openSync('/proc/thread-self/ns/net', 'r');
  try {
    setns(fd, CLONE_NEWNET, 'the network namespace of a pod');
    try {
      return work();
    } finally {
      goBack(own);
    }
  } finally {
    closeSync(own);
  }
}

/** In a pod's namespace nothing of the agent may go on. */
function goBack(own: number): void {
  try {
    setns(own, CLONE_NEWNET, "the agent's own network namespace");
  } catch {
    process.abort();
  }
}

/** The absolute path of a program of this host that this process may run; undefined when there is none. */
export function findProgram(
  name: string,
  path = `${process.env['PATH'] ?? ''}:${SYSTEM_PATH}`,
): string | undefined {
  return path
    .split(':')
    .filter((directory) => directory.startsWith('/'))
    .map((directory) => `${directory}/${name}`)
    .find((file) => {
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
 * @throws CgrouteError `ENOPROGRAM` when it is not installed, `ETIMEDOUT` when it
 *   took too long and was killed, `ENETNS` when it could not be run, and others of {@link insideNetns}
 */
export async function runInNetns(
  netns: PodNetns,
  program: string,
  args: readonly string[],
  moreDescriptors = 0,
): Promise<Ran> {
  const file = findProgram(program);
  if (file === undefined)
    throw new CgrouteError(
      'ENOPROGRAM',
      `the program ${program} is not installed where the agent runs: install the package iptables`,
    );
  const { promise, resolve, reject } = Promise.withResolvers<Ran>();
  // Node has forked when spawn() returns, and a child is born where its parent's thread is.
  const child = insideNetns(
    netns.fd,
    (): ChildProcess =>
      spawn(file, args, {
        stdio: ['ignore', 'pipe', 'pipe', ...Array.from({ length: moreDescriptors }, () => netns.fd)],
        env: environment(),
        timeout: TIMEOUT_MS,
        killSignal: 'SIGKILL',
      }),
  );
  const output = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name]?.setEncoding('utf8').on('data', (text: string) => {
      output[name] += text;
      if (output[name].length > MOST_OUTPUT) child.kill('SIGKILL');
    });
  }
  child.once('error', (cause) =>
    reject(new CgrouteError('ENETNS', `${program} could not be started: ${messageOf(cause)}`, { cause })),
  );
  child.once('close', (code, signal) => {
    if (code !== null) resolve({ code, ...output });
    else if (output.stdout.length > MOST_OUTPUT)
      reject(new CgrouteError('ENETNS', `${program} said more than ${MOST_OUTPUT} bytes and was killed`));
    else
      reject(
        new CgrouteError(
          'ETIMEDOUT',
          `${program} ended by ${signal ?? 'nothing'}: expected an answer within ${TIMEOUT_MS / 1000} s`,
        ),
      );
  });
  return promise;
}

function environment(): NodeJS.ProcessEnv {
  // iptables finds its lock there, if the host keeps it elsewhere.
  const lock = process.env['XTABLES_LOCKFILE'];
  return { PATH: SYSTEM_PATH, LC_ALL: 'C', ...(lock === undefined ? {} : { XTABLES_LOCKFILE: lock }) };
}
