/** The whole run: what is prepared for whom, what is printed, and that it ends. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { after, test } from 'node:test';
import { importsOf } from '../../runner/imports.ts';
import { makeOutlets } from '../../runner/outlet.ts';
import { PARTS, type Part, wantedFiles } from '../../runner/parts.ts';
import { PREPARATIONS, type Preparation, neededBy } from '../../runner/preparation.ts';
import { runTests } from '../../runner/run.ts';

const root = resolve(import.meta.dirname, '../../..');
const directory = mkdtempSync(join(tmpdir(), 'cgroute-runner-test-'));
after(() => rmSync(directory, { recursive: true, force: true }));

const PART: Part = { name: 'part', concurrency: 2, limitMs: 600_000 };

type Make = Preparation['make'];

interface RunOf {
  readonly part?: Part;
  /** What the file `a` needs. */
  readonly make?: Make;
  /** Why it cannot be made here. */
  readonly missing?: string;
  readonly preparationMs?: number;
}

/** Runs fixtures, sources by file, and gives what was printed and what came of it. */
async function runOf(
  files: Readonly<Record<string, string>>,
  { part = PART, make, missing, preparationMs = 600_000 }: RunOf = {},
): Promise<{ readonly printed: string; readonly text: string; readonly failed: number }> {
  const cwd = mkdtempSync(join(directory, 'run-'));
  const pathOf = (name: string): string => join(cwd, part.name, `${name}.test.ts`);
  mkdirSync(join(cwd, part.name));
  for (const [name, source] of Object.entries(files))
    writeFileSync(pathOf(name), `import { test } from 'node:test';\n${source}`);
  let printed = '';
  const print = (text: string): void => void (printed += text);
  const preparations: Preparation[] =
    make === undefined
      ? []
      : [
          {
            name: 'the thing',
            module: relative(root, pathOf('a')),
            parts: [part.name],
            missing: missing ?? false,
            make,
          },
        ];
  const sums = await runTests(wantedFiles([], [part], cwd), { cwd, print, preparations, preparationMs });
  return { printed, text: sums.text(false), failed: sums.failed };
}

test('a run ends with the sums, and before them what was skipped and what has failed, file by file', async () => {
  const { printed, text, failed } = await runOf({
    a: `test('good', () => {}); test('not here', { skip: 'no such kernel' }, () => {});`,
    b: `test('bad', () => { throw new Error('wrong'); });`,
  });
  assert.equal(
    text,
    `
skipped:
  part/a.test.ts: not here (no such kernel)

failed:
  part/b.test.ts: bad: Error: wrong

1 passed, 1 failed, 1 skipped`,
  );
  assert.equal(failed, 1);
  assert.match(printed, /^\npart: 2 files\n\npart\/a\.test\.ts\n✔ good[^]*\npart\/b\.test\.ts\n✖ bad/);
});

test('a run with a file that hangs ends, and the others are run', async () => {
  const { text, printed } = await runOf(
    {
      a: `test('never ends', () => new Promise(() => setInterval(() => {}, 1000)));`,
      b: `test('good', () => {});`,
    },
    { part: { ...PART, concurrency: 1, limitMs: 1500 } },
  );
  assert.match(printed, /✖ part\/a\.test\.ts ran out of time, in: never ends/);
  assert.match(text, /1 passed, 1 failed, 0 skipped$/);
});

test('what was prepared is there for the files, and its progress is seen', async () => {
  const { printed, text } = await runOf(
    { a: `test('it ' + process.env.THE_THING, (t) => t.skip('it ' + process.env.THE_THING));` },
    {
      make: async (say) => {
        say('halfway');
        return { THE_THING: 'is here' };
      },
    },
  );
  assert.match(printed, /^prepare the thing, for part\/a\.test\.ts\n {2}halfway\n {2}there after/);
  assert.match(text, /it is here \(it is here\)/);
  delete process.env['THE_THING'];
});

test('a preparation that fails fails the files that need it, which do not run, and no others', async () => {
  const ran = join(directory, 'ran');
  const { printed, text } = await runOf(
    {
      a: `import { writeFileSync } from 'node:fs'; writeFileSync('${ran}', ''); test('good', () => {});`,
      b: `test('good', () => {});`,
    },
    { make: () => Promise.reject(new Error('no network')) },
  );
  assert.match(printed, /the thing could not be prepared: no network/);
  assert.match(text, /part\/a\.test\.ts: the file: not run, as the thing could not be prepared/);
  assert.match(text, /1 passed, 1 failed, 0 skipped$/);
  assert.ok(!existsSync(ran));
});

test('a preparation that does not come to its end is ended, with what it has started, and has failed', async () => {
  let child: ChildProcess | undefined;
  const { text } = await runOf(
    { a: `test('good', () => {});`, b: `test('good', () => {});` },
    {
      preparationMs: 1000,
      make: async () => {
        child = spawn('sh', ['-c', 'trap "" TERM; while :; do sleep 1; done'], { detached: true });
        await delay(2 ** 31 - 1, undefined, { ref: false });
        return {};
      },
    },
  );
  assert.match(text, /1 passed, 1 failed, 0 skipped$/);
  assert.equal(child?.signalCode, 'SIGKILL');
});

test('what cannot be made on this machine is said, and left to the tests, which skip', async () => {
  const { printed, text } = await runOf(
    { a: `test('needs it', { skip: 'no Go' }, () => {});` },
    { make: () => Promise.reject(new Error('never called')), missing: 'no Go' },
  );
  assert.match(printed, /!!! the thing: SKIPPED: no Go !!!/);
  assert.match(text, /0 passed, 0 failed, 1 skipped$/);
});

test('files print one after the other, the first as it goes', () => {
  let printed = '';
  const newOutlet = makeOutlets((text) => (printed += text));
  const [a, b, c] = [newOutlet(), newOutlet(), newOutlet()];
  b.write('b');
  a.write('a');
  assert.equal(printed, 'a');
  c.write('c');
  c.end();
  a.write('a');
  a.end();
  assert.equal(printed, 'aab');
  b.write('b');
  b.end();
  assert.equal(printed, 'aabbc');
});

test('words choose parts and files; what a file imports, also through others, tells what it needs', () => {
  const paths = (...words: readonly string[]): string[] =>
    wantedFiles(words).flatMap(({ files }) => files.map((file) => relative(root, file)));
  assert.ok(paths('unit').every((path) => path.startsWith('test/unit/')));
  assert.ok(paths('connect').includes('test/kernel/connect.test.ts'));
  assert.deepEqual(paths('kernel', 'image-sidecar'), ['test/kernel/image-sidecar.test.ts']);
  assert.deepEqual(paths('no-such-file'), []);
  const needs = (...words: readonly string[]): string[] =>
    neededBy(wantedFiles(words)).map(({ preparation: { name } }) => name);
  assert.deepEqual(needs('kernel', 'image-sidecar'), ['Helm', 'the container image']);
  assert.deepEqual(needs('kernel', 'connect.test'), []);
  assert.deepEqual(needs('unit'), ['promtool']);
  assert.ok(importsOf('test/run.ts').has('deploy/build/go-programs.ts'));
});

test('a run of nothing is no success', () => {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['test/run.ts', 'no-such-file'], {
    cwd: root,
    encoding: 'utf8',
  });
  assert.deepEqual([status, stdout.trim()], [1, '0 passed, 0 failed, 0 skipped']);
  assert.match(stderr, /no test ran; parts are unit, kernel, kube, e2e/);
});

test('each preparation is for the parts that have files which import its module, and for no others', () => {
  for (const { name, module, parts } of PREPARATIONS) {
    const importing = PARTS.filter(({ name: part }) =>
      wantedFiles([part]).some(({ files }) => files.some((file) => importsOf(file).has(module))),
    ).map((part) => part.name);
    assert.ok(parts.length > 0 && parts.every((part) => importing.includes(part)), name);
    // Files of test/unit test what others do with it.
    assert.deepEqual(
      importing.filter((part) => part !== 'unit' && !parts.includes(part)),
      [],
      name,
    );
  }
});
