/** The rules of the house for single files, kept by the machine; rooms.test.ts has those between them. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { basename, join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { read, root, sources } from './sources.ts';

const product = [
  'cgroute.ts',
  ...['mapper', 'watcher', 'native', 'deploy'].flatMap((room) => sources(room, /\.ts$/)),
];
const typescript = [...product, ...sources('test', /\.ts$/)];
const c = ['bpf', 'deploy', 'test'].flatMap((room) => sources(room, /\.[ch]$/));

const BANNED_NAMES = /(^|[-.])(utils?|helpers?|common|managers?)([-.]|$)/;

/** Lines of one concept: what is longer has a second one. Tests are tables, and may have some more. */
const MOST_LINES = { product: 350, test: 400 } as const;

/** What is wrong with a file's length or name; nothing for a generated one's length. */
function faults(path: string, text: string): string[] {
  const lines = text.split('\n').length - 1;
  const most = path.startsWith('test/') ? MOST_LINES.test : MOST_LINES.product;
  const isGenerated = /generated/i.test(text.slice(0, text.indexOf('\n')));
  return [
    ...(lines > most && !isGenerated ? [`${path} has ${lines} lines, over ${most}`] : []),
    ...(BANNED_NAMES.test(basename(path)) ? [`${path} has a name that says nothing`] : []),
  ];
}

test('no file is a cupboard, or named after nothing in particular', () => {
  assert.deepEqual(
    [...typescript, ...c].flatMap((path) => faults(path, read(path))),
    [],
  );
});

test('the check of files sees a long one, and a name that says nothing', () => {
  assert.match(faults('mapper/maps/a.ts', '\n'.repeat(351)).join(), /has 351 lines, over 350/);
  assert.match(faults('test/unit/a.test.ts', '\n'.repeat(401)).join(), /has 401 lines, over 400/);
  assert.match(faults('watcher/proc-utils.ts', '').join(), /says nothing/);
  assert.deepEqual(faults('native/layout/layouts.ts', `// Generated\n${'\n'.repeat(900)}`), []);
});

const RULES: readonly (readonly [RegExp, string])[] = [
  [/^export default\b/m, 'a default export'],
  [/(?::|<|\bas|[,|&(]) *any\b(?! [a-z])/m, 'an any'],
  [/@ts-(?:ignore|expect-error|nocheck)\b/, 'a suppressed error'],
];

/** What TypeScript code has that it may not have; comments and texts are left out. */
function forbidden(text: string): string[] {
  const code = text.replaceAll(/\/\*[^]*?\*\/|(?<=^|\s)\/\/(?! @ts-).*$|'[^'\n]*'/gm, '');
  return RULES.filter(([rule]) => rule.test(code)).map(([, what]) => what);
}

test('TypeScript has no default export, no any, no suppressed error', () => {
  const checked = typescript.filter((path) => !path.endsWith('house.test.ts'));
  assert.deepEqual(
    checked.flatMap((path) => forbidden(read(path)).map((what) => `${path} has ${what}`)),
    [],
  );
});

test('the check of TypeScript sees each of these', () => {
  assert.deepEqual(forbidden('export default 1;'), ['a default export']);
  assert.deepEqual(forbidden('let a: any;'), ['an any']);
  assert.deepEqual(forbidden('// @ts-ignore\nx();'), ['a suppressed error']);
  assert.deepEqual(forbidden("/** any */ const a = ': any'; // as any"), []);
});

const LICENCE = /^(?:\/\/|\/\*) SPDX-License-Identifier: GPL-2\.0-only OR BSD-2-Clause/;

test('every C file starts with its licence', () => {
  assert.ok(c.length > 20);
  assert.deepEqual(
    c.filter((path) => !LICENCE.test(read(path))),
    [],
  );
  assert.doesNotMatch('/* A program. */', LICENCE);
});

test('the lock file names no registry', () => {
  const lock = JSON.parse(read('package-lock.json')) as { packages: Record<string, { resolved?: string }> };
  const found = Object.values(lock.packages)
    .map(({ resolved }) => resolved)
    .filter((url) => url !== undefined);
  assert.deepEqual(found, []);
});

test('the TypeScript compiler has nothing to say', async () => {
  const tsc = join(root, 'node_modules/.bin/tsc');
  const { stdout } = await promisify(execFile)(tsc, ['--noEmit', '--pretty', 'false'], { cwd: root }).catch(
    (error: { stdout: string; message: string }) => ({ stdout: error.stdout || error.message }),
  );
  assert.equal(stdout, '');
});

/** It takes a missing right for an absence, in silence. */
const HIDES_RIGHTS = /\bexistsSync\b/;

test('what the product asks for by path is there, absent or forbidden, and never just not there', () => {
  const asking = product.filter((path) => !path.startsWith('deploy/') && HIDES_RIGHTS.test(read(path)));
  assert.deepEqual(asking, [], 'native/boundary/presence.ts tells them apart');
  assert.match("import { existsSync } from 'node:fs';", HIDES_RIGHTS);
});
