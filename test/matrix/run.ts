/**
 * `npm run test:matrix`: Debian's kernels, each booted in QEMU's emulation on a
 * host with cgroup v2 alone. As it is, the oldest and the newest, with the kernel
 * tests about programs; with `--all` all of them, with all kernel tests and a short
 * leak test in each, and a node of Kubernetes, see node/run.ts.
 * What came of all is docs/kernels.md: with `--write` that file is written, without
 * it the file must say the same of what was run. Exits with 1 when a test failed, a
 * guest did not come to its end, or the document says something else.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { messageOf } from '../../native/error.ts';
import { coveredDifferences } from './covered.ts';
import { documentAgrees, documentDifferences, writeDocument } from './document.ts';
import { makeImage } from './image.ts';
import { KERNELS, type KernelChoice, prepareKernel } from './kernel.ts';
import { runGuest } from './machine.ts';
import { isNodeGood, nodeLines, NODE_NAME, type NodeResult, runNode } from './node/run.ts';
import { installPackages } from './packages.ts';
import { beginResult, isGood, type KernelResult, renewed, resultLines, take } from './result.ts';
import { parseReport } from './report.ts';
import { guestScript, LEAK_CGROUPS, selectFiles } from './selection.ts';

const NAMES = [...KERNELS.map(({ name }) => name), NODE_NAME];
/** What CI has the time for. */
const SHORT = [KERNELS[0], KERNELS.at(-1)];
const USAGE = `usage: npm run test:matrix -- [--all] [--only KERNEL,...] [--from FILE,...] [--files WORD,...] [--keep] [--json FILE] [--write]
  --all          all guests with all files and the leak test; else ${SHORT.map((kernel) => kernel?.name).join(' and ')} with the files about programs
  --only KERNEL  some of the guests: ${NAMES.join(', ')}
  --from FILE    takes the results of other guests from what --json wrote, so that they need not be run again;
                 of several files, separated by commas, what is in a later one counts
  --files WORD   test files with one of these words in their names; "leak" is the leak test; with --from, the rest is taken from there
  --keep         leaves the consoles of the guests, and says where
  --json FILE    all results, with the failures' messages
  --write        writes docs/kernels.md; takes --all`;

const GUESTS_AT_ONCE = 2;
const GUEST = { memoryMib: 2048, cpus: 2, timeoutMs: 60 * 60_000 };

// Node's word on stripping types, which image.ts asks it to do.
process.removeAllListeners('warning');

class UsageError extends Error {}

interface Options {
  readonly kernels: readonly KernelChoice[];
  /** Of earlier runs. */
  readonly known: readonly KernelResult[];
  readonly knownNode: NodeResult | undefined;
  readonly node: boolean;
  readonly words: readonly string[] | undefined;
  readonly isAll: boolean;
  /** Whether it is all kernels, and all that can be run on them. */
  readonly isWhole: boolean;
  readonly keep: boolean;
  readonly json: string | undefined;
  readonly write: boolean;
}

function parseOptions(args: readonly string[]): Options {
  const { values } = parseArgs({
    args: [...args],
    options: {
      all: { type: 'boolean', default: false },
      only: { type: 'string' },
      from: { type: 'string' },
      files: { type: 'string' },
      keep: { type: 'boolean', default: false },
      json: { type: 'string' },
      write: { type: 'boolean', default: false },
    },
  });
  const only = values.only?.split(',');
  const unknown = only?.find((name) => !NAMES.includes(name));
  if (unknown !== undefined)
    throw new UsageError(`--only must name kernels (${NAMES.join(', ')}), not "${unknown}"`);
  const earlier =
    values.from
      ?.split(',')
      .flatMap((file) => JSON.parse(readFileSync(file, 'utf8')) as (KernelResult | NodeResult)[]) ?? [];
  const byName = new Map<string, KernelResult>();
  for (const result of earlier.filter((each) => 'files' in each)) {
    const before = byName.get(result.name);
    byName.set(result.name, before === undefined ? result : renewed(before, result));
  }
  const known = [...byName.values()];
  const knownNode = earlier.findLast((result) => 'rows' in result);
  const isKnown = (kernel: string): boolean => known.some(({ name }) => name === kernel);
  const isComplete = values.all && values.files === undefined;
  const kernels = KERNELS.filter(
    (kernel) =>
      only?.includes(kernel.name) ??
      ((values.all || SHORT.includes(kernel)) && (!isKnown(kernel.name) || values.files !== undefined)),
  );
  const node = only?.includes(NODE_NAME) ?? (isComplete && knownNode === undefined);
  const whole =
    (node || knownNode !== undefined) &&
    KERNELS.every((kernel) => isKnown(kernel.name) || (isComplete && kernels.includes(kernel)));
  if (values.write && !whole)
    throw new UsageError(
      '--write takes all guests and all files: --all, and neither --files nor --only without --from',
    );
  return {
    kernels,
    known,
    node,
    knownNode,
    isAll: values.all,
    isWhole: whole,
    words: values.files?.split(','),
    keep: values.keep,
    json: values.json,
    write: values.write,
  };
}

/** Boots one kernel, and puts together what its guest tells. */
async function runKernel(
  choice: KernelChoice,
  cache: string,
  image: string,
  consoleFile: string,
): Promise<KernelResult> {
  const say = (text: string): void => console.log(`${choice.name.padEnd(7)} ${text}`);
  const kernel = await prepareKernel(choice, cache);
  say(`boots Linux ${kernel.release} (${kernel.version})`);
  const result = beginResult(kernel);
  const ended = await runGuest({
    ...GUEST,
    kernel,
    image,
    console: consoleFile,
    kernelArguments: choice.kernelArguments ?? '',
    onLine(line) {
      const report = parseReport(line);
      const text = report === undefined ? undefined : take(result, report);
      if (text !== undefined) say(text);
    },
  });
  result.seconds = ended.seconds;
  if (ended.failure !== undefined || !result.ended) {
    result.problem = `${ended.failure ?? 'it switched itself off before all had run'}${result.running === undefined ? '' : `, in ${result.running}`}; the last of its console:\n${ended.tail}`;
    say(result.problem);
  }
  say(`${isGood(result) ? 'done' : 'FAILED'} after ${Math.round(result.seconds)} s`);
  return result;
}

async function main(options: Options): Promise<boolean> {
  if (process.arch !== 'x64')
    throw new Error(
      `the guests are x86_64 machines that run this machine's own programs, and this one is ${process.arch}`,
    );
  await installPackages(console.log);
  const { files, leftOut, leak } = selectFiles(options.words, options.isAll);
  const cache = join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'cgroute/kernels');
  const directory = mkdtempSync(join(tmpdir(), 'cgroute-kernels-'));
  process.on('exit', () => {
    if (options.keep) console.log(`the guests' consoles are in ${directory}`);
    else rmSync(directory, { recursive: true, force: true });
  });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => process.exit(1));
  const image = join(directory, 'root.ext4');
  const missing =
    options.kernels.length === 0 ? [] : makeImage(image, guestScript(files, leak ? LEAK_CGROUPS : undefined));
  if (missing.length > 0)
    throw new Error(
      `the guests would lack programs that this machine has not: ${missing.join(', ')}; \`npm run setup\` installs them`,
    );
  for (const { file, why } of leftOut) console.log(`left out: ${file}: ${why}`);

  const results = new Map(options.known.map((result) => [result.name, result]));
  let node = options.knownNode;
  const waiting: { readonly name: string; run(): Promise<void> }[] = options.kernels.map((choice) => ({
    name: choice.name,
    async run() {
      const now = await runKernel(choice, cache, image, join(directory, `${choice.name}.log`));
      const isPart = options.words !== undefined || !options.isAll;
      const earlier = isPart ? results.get(choice.name) : undefined;
      results.set(choice.name, earlier === undefined ? now : renewed(earlier, now));
    },
  }));
  if (options.node)
    waiting.push({
      name: NODE_NAME,
      run: async () =>
        void (node = await runNode({ cache, say: (text) => console.log(`${NODE_NAME.padEnd(7)} ${text}`) })),
    });
  const failures: string[] = [];
  const worker = async (): Promise<void> => {
    for (let guest = waiting.shift(); guest !== undefined; guest = waiting.shift()) {
      try {
        await guest.run();
      } catch (error) {
        failures.push(`${guest.name}: ${messageOf(error)}`);
        console.log(`${guest.name.padEnd(7)} ${messageOf(error)}`);
      }
    }
  };
  await Promise.all(Array.from({ length: GUESTS_AT_ONCE }, worker));
  rmSync(image, { force: true });
  const all = KERNELS.flatMap(({ name }) => results.get(name) ?? []);
  if (options.json !== undefined)
    writeFileSync(
      options.json,
      `${JSON.stringify([...all, ...(node === undefined ? [] : [node])], null, 2)}\n`,
    );
  console.log(
    ['', ...resultLines(all), ...(node === undefined ? [] : nodeLines(node)), ...failures].join('\n'),
  );
  const isWell =
    failures.length === 0 &&
    all.length + (node === undefined ? 0 : 1) > 0 &&
    all.every(isGood) &&
    (node === undefined || isNodeGood(node));
  // Somebody who names files is at work on them.
  if (!isWell || (!options.isWhole && options.words !== undefined)) return isWell;
  if (options.write) writeDocument(all, selectFiles(undefined, true).leftOut, node);
  return documentAgrees(
    (text) =>
      options.isWhole
        ? documentDifferences(text, all, selectFiles(undefined, true).leftOut, node)
        : coveredDifferences(text, all),
    console.log,
  );
}

try {
  process.exitCode = (await main(parseOptions(process.argv.slice(2)))) ? 0 : 1;
} catch (error) {
  const isUsage =
    error instanceof UsageError ||
    (error as NodeJS.ErrnoException).code?.startsWith('ERR_PARSE_ARGS') === true;
  console.error(`test:matrix: ${messageOf(error)}${isUsage ? `\n${USAGE}` : ''}`);
  process.exitCode = isUsage ? 2 : 1;
}
