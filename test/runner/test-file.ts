/** One file of tests, in a process of its own, that ends whatever its tests do. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { beginWait, stretch } from '../../deploy/stage/deadline.ts';
import { clearMarked, commandOf, markedProcesses, newMark } from './descendants.ts';
import { FACTS_VARIABLE, type Failure, type Skip, type Told, readFacts } from './facts.ts';

const REPORTER = resolve(import.meta.dirname, 'reporter.ts');
const LOOK_MS = 500;
/** What is left of its output when it has ended is read at once. */
const OUTPUT_MS = 1000;

export interface TestFile {
  /** Its absolute path. */
  readonly file: string;
  readonly cwd: string;
  /** Milliseconds that it may take, on a machine that is not slow and has nothing else to do: see deadline.ts. */
  readonly limitMs: number;
  /** Added to this process's environment. */
  readonly env?: Readonly<Record<string, string>>;
  /** All that it prints, its reporter's lines among it. */
  readonly onOutput: (text: string) => void;
}

export interface Outcome {
  readonly passed: number;
  /** Of tests, then of the file as a whole: that it ran out of time, say. */
  readonly failures: readonly Failure[];
  readonly skips: readonly Skip[];
  readonly seconds: number;
}

interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** Settles when it has exited, or could not be started. */
function exitOf(child: ChildProcess): Promise<Ended> {
  return new Promise((done) => {
    child.once('exit', (code, signal) => done({ code, signal }));
    child.once('error', () => done({ code: 127, signal: null }));
  });
}

/** Which tests had begun; one that never lets go of the processor has told nothing. */
function whereIn({ unfinished, hasEnded }: Told): string {
  if (hasEnded) return 'when all its tests were over';
  return unfinished.length === 0 ? 'between its tests, or in one that spins' : `in: ${unfinished.join('; ')}`;
}

/** What is wrong with the file as a whole; undefined when its tests speak for themselves. */
function fault({ code, signal }: Ended, told: Told): string | undefined {
  if (signal !== null) return `was killed by ${signal}, ${whereIn(told)}`;
  const count = told.passed + told.failures.length + told.skips.length;
  if (code === 0 && count + told.unfinished.length === 0)
    return 'has no test, or one that ends the process at once';
  if (!told.hasEnded) return `exited with ${code}, ${whereIn(told)}`;
  if (code !== 0 && told.failures.length === 0) return `exited with ${code}, and no test of it has failed`;
  return undefined;
}

/**
 * Runs a file to its end. When its time is up it is killed with all that it has
 * started, and that is a failure; what it has started and left is killed in any case.
 */
export async function runTestFile({ file, cwd, limitMs, env, onOutput }: TestFile): Promise<Outcome> {
  const began = performance.now();
  const directory = mkdtempSync(join(tmpdir(), 'cgroute-runner-'));
  const facts = join(directory, 'facts');
  writeFileSync(facts, '');
  const marked = newMark();
  // node:test would take itself for a part of the test that this process runs.
  const { NODE_TEST_CONTEXT: _, ...own } = process.env;
  const child = spawn(process.execPath, [`--test-reporter=${REPORTER}`, file], {
    cwd,
    env: { ...own, ...env, ...marked.env, [FACTS_VARIABLE]: facts },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const outputs = [child.stdout, child.stderr];
  for (const output of outputs) output.setEncoding('utf8').on('data', onOutput);
  const closed = Promise.all(
    outputs.map((output) => new Promise<void>((done) => output.once('close', () => done()))),
  );
  try {
    const exit = exitOf(child);
    let ended: Ended | undefined;
    const wait = beginWait(limitMs);
    while (ended === undefined && !wait.isOver())
      ended = await Promise.race([exit, delay(LOOK_MS, undefined, { ref: false })]);
    const problems: string[] = [];
    if (ended === undefined) {
      problems.push(
        `ran out of time, ${whereIn(readFacts(facts))}; ${wait.passed()}`,
        ...(await clearMarked(marked.mark)),
      );
      // What cannot be killed is not waited for.
      ended = await Promise.race([exit, delay(OUTPUT_MS * stretch(), undefined)]);
    } else {
      const left = markedProcesses(marked.mark).map(commandOf);
      if (left.length > 0) {
        onOutput(`left behind, and killed:\n${left.map((command) => `  ${command}\n`).join('')}`);
        problems.push(...(await clearMarked(marked.mark)));
      }
      const problem = fault(ended, readFacts(facts));
      if (problem !== undefined) problems.push(problem);
    }
    await Promise.race([closed, delay(OUTPUT_MS * stretch())]);
    const { passed, failures, skips } = readFacts(facts);
    return {
      passed,
      failures: [...failures, ...problems.map((problem) => ({ name: 'the file', message: problem }))],
      skips,
      seconds: (performance.now() - began) / 1000,
    };
  } finally {
    // Somebody who does not die may hold the other end.
    for (const output of outputs) output.destroy();
    child.unref();
    rmSync(directory, { recursive: true, force: true });
  }
}
