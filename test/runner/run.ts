/** A whole run: prepares, runs the files of one part after the other, and says what came of it. */
import { relative } from 'node:path';
import { messageOf } from '../../native/error.ts';
import { beginWait, whenOver } from '../../deploy/stage/deadline.ts';
import { clearMarked, markChildren } from './descendants.ts';
import { makeOutlets } from './outlet.ts';
import type { Wanted } from './parts.ts';
import { PREPARATIONS, type Preparation, neededBy } from './preparation.ts';
import { Sums } from './sums.ts';
import { runTestFile } from './test-file.ts';

/** A compilation of Kubernetes takes minutes; it must end at some time all the same. */
const PREPARATION_MS = 3_600_000;
/** After so long without a word, one that it goes on. */
const HEARTBEAT_MS = 30_000;

export interface RunOptions {
  readonly cwd: string;
  readonly print: (text: string) => void;
  readonly preparations?: readonly Preparation[];
  readonly preparationMs?: number;
}

/** Ends what was started by a preparation that does not come to its end, which makes it fail. */
async function within<T>(limitMs: number, mark: string, work: Promise<T>): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  const wait = beginWait(limitMs);
  const cancel = whenOver(wait, () => {
    void clearMarked(mark).finally(() => reject(new Error(`it has not come to its end: ${wait.passed()}`)));
  });
  return Promise.race([work, promise]).finally(cancel);
}

/** Makes what files need. Gives why a file cannot be run, where something could not be made for it. */
async function prepare(wanted: readonly Wanted[], options: RunOptions): Promise<ReadonlyMap<string, string>> {
  const { print, cwd, preparations = PREPARATIONS, preparationMs = PREPARATION_MS } = options;
  const unfit = new Map<string, string>();
  for (const { preparation, files: needing } of neededBy(wanted, preparations)) {
    const { name, missing } = preparation;
    if (missing !== false) {
      print(`\n!!! ${name}: SKIPPED: ${missing} !!!\n`);
      continue;
    }
    const began = performance.now();
    print(`prepare ${name}, for ${needing.map((file) => relative(cwd, file)).join(', ')}\n`);
    const passed = (): string => `${Math.round((performance.now() - began) / 1000)} s`;
    const heartbeat = setInterval(() => print(`  still at it, ${passed()}\n`), HEARTBEAT_MS);
    const say = (line: string): void => {
      heartbeat.refresh();
      print(`  ${line}\n`);
    };
    using marked = markChildren();
    try {
      Object.assign(process.env, await within(preparationMs, marked.mark, preparation.make(say)));
      print(`  there after ${passed()}\n`);
    } catch (error) {
      print(`${name} could not be prepared: ${messageOf(error)}\n`);
      for (const file of needing) unfit.set(file, `not run, as ${name} could not be prepared`);
    } finally {
      clearInterval(heartbeat);
    }
  }
  return unfit;
}

async function runPart(
  { part, files }: Wanted,
  unfit: ReadonlyMap<string, string>,
  { cwd, print }: RunOptions,
  sums: Sums,
): Promise<void> {
  print(`\n${part.name}: ${files.length} ${files.length === 1 ? 'file' : 'files'}\n`);
  const newOutlet = makeOutlets(print);
  const queue = files[Symbol.iterator]();
  const worker = async (): Promise<void> => {
    for (const file of queue) {
      const where = relative(cwd, file);
      const outlet = newOutlet();
      outlet.write(`\n${where}\n`);
      const message = unfit.get(file);
      const outcome =
        message === undefined
          ? await runTestFile({ file, cwd, limitMs: part.limitMs, onOutput: (text) => outlet.write(text) })
          : { passed: 0, failures: [{ name: 'the file', message }], skips: [], seconds: 0 };
      sums.add(where, outcome);
      for (const { name, message: why } of outcome.failures)
        if (name === 'the file') outlet.write(`✖ ${where} ${why}\n`);
      outlet.write(`${where}: ${outcome.seconds.toFixed(1)} s\n`);
      outlet.end();
    }
  };
  await Promise.all(Array.from({ length: part.concurrency }, worker));
}

/** Runs all that is wanted to its end. */
export async function runTests(wanted: readonly Wanted[], options: RunOptions): Promise<Sums> {
  const sums = new Sums();
  const unfit = await prepare(wanted, options);
  for (const each of wanted) await runPart(each, unfit, options, sums);
  return sums;
}
