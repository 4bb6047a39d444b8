/**
 * All that a process has started, found again whatever became of it: everything
 * inherits a mark in its environment, also what has a session of its own, is
 * nobody's child any more, or has left its cgroup for a sandbox's.
 */
import { randomUUID } from 'node:crypto';
import { readFileSync, readdirSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { messageOf } from '../../native/error.ts';
import { beginWait } from '../../deploy/stage/deadline.ts';
import { sweep } from '../../deploy/stage/sandbox.ts';

/** The variable that holds the marks: of the run, then of the file, as a test may run a runner. */
const VARIABLE = 'CGROUTE_TEST_MARKS';
const KILL_MS = 10_000;

export interface Mark extends Disposable {
  readonly mark: string;
  /** For the environment of what is to have it, beside those of this process. */
  readonly env: Readonly<Record<string, string>>;
}

/** A mark for one process that is going to be started. */
export function newMark(): Omit<Mark, typeof Symbol.dispose> {
  const mark = randomUUID();
  return { mark, env: { [VARIABLE]: `${process.env[VARIABLE] ?? ''} ${mark}`.trim() } };
}

/** A mark for all that this process starts, until it is disposed of. */
export function markChildren(): Mark {
  const before = process.env[VARIABLE] ?? '';
  const { mark, env } = newMark();
  Object.assign(process.env, env);
  return { mark, env, [Symbol.dispose]: () => void (process.env[VARIABLE] = before) };
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return ''; // gone meanwhile, or somebody else's
  }
}

/** The parent of a process, field 4 of proc_pid_stat(5); a name may have spaces and brackets. */
function parentOf(pid: number): number {
  const stat = read(`/proc/${pid}/stat`);
  return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
}

/** Processes with this mark, and their children, who may have emptied their environment. Not this process, and none that is dead. */
export function markedProcesses(mark: string): number[] {
  const pids = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => pid !== process.pid);
  const found = new Set(pids.filter((pid) => read(`/proc/${pid}/environ`).includes(mark)));
  const parents = new Map(pids.map((pid) => [pid, parentOf(pid)] as const));
  for (let size = -1; size !== found.size; ) {
    size = found.size;
    for (const [pid, parent] of parents) if (found.has(parent)) found.add(pid);
  }
  return [...found].filter((pid) => !/\) [ZX] /.test(read(`/proc/${pid}/stat`)));
}

/** How a process was called, for people. */
export function commandOf(pid: number): string {
  return read(`/proc/${pid}/cmdline`).split('\0').join(' ').trim() || `process ${pid}`;
}

/** Kills all processes with this mark. Returns the commands of those that do not die. */
export async function killMarked(mark: string): Promise<readonly string[]> {
  for (const wait = beginWait(KILL_MS); ; await delay(20)) {
    const pids = markedProcesses(mark);
    for (const pid of pids) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // Dead already.
      }
    }
    if (pids.length === 0 || wait.isOver()) return pids.map(commandOf);
  }
}

/**
 * Kills all processes with this mark, and removes what sandboxes of dead processes
 * have left behind. Returns sentences for what does not work.
 */
export async function clearMarked(mark: string): Promise<string[]> {
  const problems = (await killMarked(mark)).map((command) => `does not die: ${command}`);
  try {
    // Containers have no environment but their own, and die with their cgroups.
    if (process.getuid?.() === 0) sweep();
  } catch (error) {
    problems.push(messageOf(error));
  }
  return problems;
}
