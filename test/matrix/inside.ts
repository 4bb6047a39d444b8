/**
 * Runs in the guest: tries the kernel's features, then the test files that it is
 * given, then with `--leak N` the leak test with N new cgroups, and reports on the
 * second serial line.
 */
import { spawnSync } from 'node:child_process';
import { openSync, readFileSync, writeSync } from 'node:fs';
import { release } from 'node:os';
import { resolve } from 'node:path';
import { run } from 'node:test';
import { parseArgs } from 'node:util';
import { probeFeatures } from '../../native/survey/capability.ts';
import type { FileResult, LeakFigures, LeakResult, Report } from './report.ts';

const root = resolve(import.meta.dirname, '../..');
const serial = openSync('/dev/ttyS1', 'w');
const FILE_TIMEOUT_MS = 600_000;
const LEAK_TIMEOUT_MS = 600_000;
/** The same each time; what is random otherwise is tested by the leak test itself. */
const LEAK_SEED = '4';
const LEAK_FIGURES = '/tmp/leak.json';
/** Of one failure; a serial line is slow. */
const MESSAGE_CHARACTERS = 2000;

function tell(report: Report): void {
  const bytes = Buffer.from(`${JSON.stringify(report)}\n`);
  for (let at = 0; at < bytes.length; ) at += writeSync(serial, bytes, at);
}

/** An error's own words and the causes below it, which node:test wraps. */
function messageOf(error: unknown): string {
  const parts: string[] = [];
  for (let at = error; at instanceof Error; at = at.cause) parts.push(at.stack ?? at.message);
  return (parts.at(-1) ?? String(error)).slice(0, MESSAGE_CHARACTERS);
}

async function runFile(file: string): Promise<FileResult> {
  const began = performance.now();
  const failures: { name: string; message: string }[] = [];
  const skips: { name: string; why: string }[] = [];
  let passed = 0;
  for await (const { type, data } of run({
    files: [resolve(root, 'test', file)],
    cwd: root,
    concurrency: 1,
    timeout: FILE_TIMEOUT_MS,
  })) {
    if (type === 'test:pass' && data.details.type !== 'suite') {
      const why = data.skip ?? data.todo;
      if (why === undefined || why === false) passed++;
      else skips.push({ name: data.name, why: typeof why === 'string' ? why : '' });
    } else if (type === 'test:pass' && typeof data.skip === 'string') {
      skips.push({ name: data.name, why: data.skip }); // a suite, of whose tests nothing is heard
    } else if (type === 'test:fail') {
      // A suite fails with its tests, which speak for themselves.
      const { error } = data.details;
      if (data.details.type === 'suite' && 'failureType' in error && error.failureType === 'subtestsFailed')
        continue;
      failures.push({ name: data.name, message: messageOf(error) });
    }
  }
  return { file, passed, failures, skips, seconds: (performance.now() - began) / 1000 };
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
