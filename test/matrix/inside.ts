/**
 * Runs in the guest: tries the kernel's features, then the test files that it is
 * given, then with `--leak N` the leak test with N new cgroups, and reports on the
 * second serial line.
 */
import { spawnSync } from 'node:child_process';
import { openSync, readFileSync, writeSync } from 'node:fs';
import { release } from 'node:os';
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { probeFeatures } from '../../native/survey/capability.ts';
import { runTestFile } from '../runner/test-file.ts';
import type { FileResult, LeakFigures, LeakResult, Report } from './report.ts';

const root = resolve(import.meta.dirname, '../..');
const serial = openSync('/dev/ttyS1', 'w');
/** Stretches with how slow the guest is, and with its load: see deploy/stage/deadline.ts. */
const FILE_MS = 60_000;
const LEAK_TIMEOUT_MS = 1_200_000;
/** The same each time; what is random otherwise is tested by the leak test itself. */
const LEAK_SEED = '4';
const LEAK_FIGURES = '/tmp/leak.json';
/** Of one failure; a serial line is slow. */
const MESSAGE_CHARACTERS = 2000;

function tell(report: Report): void {
  const bytes = Buffer.from(`${JSON.stringify(report)}\n`);
  for (let at = 0; at < bytes.length; ) at += writeSync(serial, bytes, at);
}

async function runFile(file: string): Promise<FileResult> {
  const { passed, failures, skips, seconds } = await runTestFile({
    file: resolve(root, 'test', file),
    cwd: root,
    limitMs: FILE_MS,
    onOutput: () => {},
  });
  const shown = failures.map(({ name, message }) => ({
    name,
    message: message.slice(0, MESSAGE_CHARACTERS),
  }));
  return { file, passed, failures: shown, skips, seconds };
}

function figuresOf(file: string): LeakFigures | undefined {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as LeakFigures;
  } catch {
    return undefined;
  }
}

function runLeakTest(count: string): LeakResult {
  const began = performance.now();
  const { stdout, stderr, error } = spawnSync(
    process.execPath,
    ['test/leak/leaktest.ts', '--count', count, '--seed', LEAK_SEED, '--json', LEAK_FIGURES],
    {
      cwd: root,
      encoding: 'utf8',
      timeout: LEAK_TIMEOUT_MS,
      killSignal: 'SIGKILL',
      maxBuffer: 16 << 20,
    },
  );
  const lines = `${stdout ?? ''}\n${stderr ?? ''}\n${error?.message ?? ''}`.trim().split('\n');
  return {
    figures: figuresOf(LEAK_FIGURES),
    tail: lines
      .slice(-25)
      .join('\n')
      .slice(-2 * MESSAGE_CHARACTERS),
    seconds: (performance.now() - began) / 1000,
  };
}

const { values, positionals } = parseArgs({ options: { leak: { type: 'string' } }, allowPositionals: true });
tell({
  type: 'host',
  release: release(),
  cgroups: readFileSync('/sys/fs/cgroup/cgroup.controllers', 'utf8').trim(),
  features: probeFeatures(),
});
for (const file of positionals) {
  tell({ type: 'begin', file });
  const result = await runFile(file);
  tell({
    type: 'file',
    result: result.failures.length === 0 ? result : { ...(await runFile(file)), before: result.failures },
  });
}
if (values.leak !== undefined) {
  tell({ type: 'begin', file: 'the leak test' });
  tell({ type: 'leak', result: runLeakTest(values.leak) });
}
tell({ type: 'end' });
