/** Being there, being absent and being out of sight are told apart. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { isThere, readIfThere } from '../../../../native/boundary/presence.ts';
import { CgrouteError, errnoOf, isAbsent, isForbidden, refusalOf } from '../../../../native/error.ts';

/** As Node throws it. */
const failure = (code: string, path?: string): Error =>
  Object.assign(new Error(`${code}: words`), {
    code,
    syscall: 'open',
    ...(path === undefined ? {} : { path }),
  });

test('what is there is told from what is not, and a path that cannot be followed is neither', (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'cgroute-test-presence-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const at = (name: string): string => join(directory, name);
  writeFileSync(at('file'), 'text');
  symlinkSync('loop', at('loop'));
  symlinkSync('nowhere', at('dangling'));
  assert.deepEqual(
    ['', 'file', 'none', 'file/below', 'dangling'].map((name) => isThere(at(name))),
    [true, true, false, false, false],
  );
  assert.deepEqual(
    ['file', 'none', 'file/below'].map((name) => readIfThere(at(name))),
    ['text', undefined, undefined],
  );
  const isSaid = (path: string) => (error: unknown) =>
    error instanceof CgrouteError &&
    error.code === 'EUNSEEN' &&
    error.message.startsWith(`${path} cannot be looked at: `);
  for (const look of [isThere, readIfThere]) assert.throws(() => look(at('loop')), isSaid(at('loop')));
  assert.throws(() => readIfThere(directory), isSaid(directory));
});

test('a refused file names what it takes, and a refused connection is not about files', () => {
  assert.equal(refusalOf(failure('EACCES', '/x')), 'EACCES: words: run as root, or as a user who may');
  assert.equal(refusalOf(failure('EROFS', '/x')), 'EROFS: words: it is mounted read-only here');
  assert.equal(refusalOf(failure('EPERM')), 'EPERM: words');
  assert.equal(refusalOf(failure('ENOENT', '/x')), 'ENOENT: words');
  assert.equal(refusalOf(new CgrouteError('EX', 'a sentence', { errno: 'EACCES' })), 'a sentence');
  assert.equal(refusalOf('text'), 'text');
});

test('the errno of an error is its own, or its cause has it', () => {
  const wrapped = new CgrouteError('EX', 'x', { cause: failure('EACCES', '/x') });
  assert.deepEqual([errnoOf(wrapped), isForbidden(wrapped), isAbsent(wrapped)], ['EACCES', true, false]);
  assert.equal(errnoOf(new CgrouteError('EX', 'x', { errno: 'EROFS', cause: failure('EACCES') })), 'EROFS');
  assert.equal(errnoOf(new CgrouteError('EX', 'x')), '');
  assert.deepEqual([undefined, null, 'EACCES', {}].map(errnoOf), ['', '', '', '']);
  assert.ok(isAbsent(failure('ENOTDIR')) && !isAbsent(failure('ELOOP')) && !isForbidden(failure('ELOOP')));
});
