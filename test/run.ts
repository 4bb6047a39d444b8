/**
 * Runs the tests: `npm test`, or parts of them by name and by file:
 * `npm test -- unit`, `npm test -- kernel connect`, `npm test -- verdict`.
 *
 * Ends with one plain line of sums, and with exit code 1 when a test failed or
 * none ran.
 */
import { readdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, join, relative, resolve } from 'node:path';
import { finished } from 'node:stream/promises';
import { run } from 'node:test';
import { spec } from 'node:test/reporters';
import { HELM_MISSING, helmProgram } from '../deploy/build/helm.ts';
import { KUBE_MISSING, kubeTools } from './harness/kube-tools.ts';

const root = resolve(import.meta.dirname, '..');

interface Part {
  readonly name: string;
  /** Files at once. Files with live cgroups and namespaces share two CPUs well in pairs. */
  readonly concurrency: number;
  /** Milliseconds that one file may take. */
  readonly timeout: number;
  /** Makes what its files need, once for all of them; an error fails the part. */
  readonly prepare?: () => Promise<void>;
}

const PARTS: readonly Part[] = [
  { name: 'unit', concurrency: availableParallelism(), timeout: 120_000 },
  { name: 'kernel', concurrency: 2, timeout: 300_000 },
  { name: 'kube', concurrency: 2, timeout: 600_000, prepare: prepareKube },
  { name: 'e2e', concurrency: 1, timeout: 600_000 },
];

/** Builds the API server where that is needed, with the progress in sight, and tells the files where it is. */
async function prepareKube(): Promise<void> {
  if (KUBE_MISSING !== false) return console.log(`\n!!! kube: SKIPPED: ${KUBE_MISSING} !!!`);
  process.env['KUBEBUILDER_ASSETS'] = (await kubeTools(console.log)).directory;
  if (HELM_MISSING === false) process.env['HELM'] = await helmProgram(console.log);
}

interface Sums {
  passed: number;
  failed: number;
  skipped: number;
  /** `file: name (why)` of each skipped test. */
  readonly skips: string[];
}

function filesOf(part: Part, words: readonly string[]): string[] {
  const directory = join(root, 'test', part.name);
  return readdirSync(directory, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.test.ts'))
    .filter((name) => words.length === 0 || words.some((word) => basename(name).includes(word)))
    .sort()
    .map((name) => join(directory, name));
}

async function runPart(part: Part, files: string[], sums: Sums): Promise<void> {
  console.log(`\n${part.name}: ${files.length} ${files.length === 1 ? 'file' : 'files'}`);
  try {
    await part.prepare?.();
  } catch (error) {
    sums.failed++;
    return console.error(
      `${part.name} could not be prepared, so none of its files ran: ${error instanceof Error ? error.message : String(error)}`,
    );
  }
  const stream = run({ files, cwd: root, concurrency: part.concurrency, timeout: part.timeout });
  stream.on('test:summary', ({ file, counts }) => {
    if (file !== undefined) return; // one file's; the whole comes last
    sums.passed += counts.passed;
    sums.failed += counts.tests - counts.passed - counts.skipped - counts.todo;
    sums.skipped += counts.skipped + counts.todo;
  });
  stream.on('test:pass', ({ name, file, skip, todo, details }) => {
    const why = skip ?? todo;
    if (why === undefined || why === false) return;
    // The sums count tests, and those of a suite that is skipped are not heard of.
    if (details.type === 'suite') sums.skipped++;
    const where = file === undefined ? part.name : relative(root, file);
    sums.skips.push(`${where}: ${name}${typeof why === 'string' ? ` (${why})` : ''}`);
  });
  const report = stream.compose(new spec());
  report.pipe(process.stdout, { end: false });
  await finished(report);
}

async function main(words: readonly string[]): Promise<void> {
  const names = PARTS.map((part) => part.name);
  const wantedParts = words.filter((word) => names.includes(word));
  const wantedFiles = words.filter((word) => !names.includes(word)).map((word) => basename(word));
  const sums: Sums = { passed: 0, failed: 0, skipped: 0, skips: [] };
  // A shell that came by `su` may not have them; ip, iptables and others are there.
  process.env['PATH'] += ':/usr/local/sbin:/usr/sbin:/sbin';
  for (const part of PARTS) {
    if (wantedParts.length > 0 && !wantedParts.includes(part.name)) continue;
    const files = filesOf(part, wantedFiles);
    if (files.length > 0) await runPart(part, files, sums);
  }
  if (sums.skips.length > 0) {
    const title = process.env['CI'] ? '!!! SKIPPED, so not tested on this machine !!!' : 'skipped:';
    console.log(`\n${title}\n${sums.skips.map((skip) => `  ${skip}`).join('\n')}`);
  }
  console.log(`\n${sums.passed} passed, ${sums.failed} failed, ${sums.skipped} skipped`);
  const none = sums.passed + sums.failed + sums.skipped === 0;
  if (none) console.error(`no test ran; parts are ${names.join(', ')}, other words are parts of file names`);
  process.exitCode = none || sums.failed > 0 ? 1 : 0;
}

await main(process.argv.slice(2));
