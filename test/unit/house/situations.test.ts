/** Every situation has its test. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { test } from 'node:test';
import { document, proofs, SITUATIONS } from '../../situations.ts';

const root = resolve(import.meta.dirname, '../../..');

test('every situation has exactly one test that is named by it', () => {
  const all = Object.values(proofs()).flat();
  assert.ok(all.length >= 60 && all.length === Object.values(SITUATIONS).flat().length);
  const found = all
    .filter(({ places }) => places.length !== 1)
    .map(
      ({ situation, places }) =>
        `${situation}: ${places.length === 0 ? 'no test' : places.map(({ file, name }) => `${file} "${name}"`).join(', ')}`,
    );
  assert.deepEqual(found, []);
});

test('docs/situations.md is what the names of the tests say today', () => {
  assert.equal(readFileSync(join(root, 'docs/situations.md'), 'utf8'), document());
});
