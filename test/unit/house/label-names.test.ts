/** Names of labels and annotations are spelled once in the agent and once in the tests. */
import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { test } from 'node:test';
import * as agents from '../../../mapper/objects/label-names.ts';
import * as tests from '../../harness/label-names.ts';

const root = resolve(import.meta.dirname, '../../..');
const NAMES: readonly string[] = Object.values(agents);

/** Names that a text spells as a string of its own, alone or with what a command or a prefix adds. */
function spelled(text: string): readonly string[] {
  const isName = (string: string, name: string): boolean =>
    name.endsWith('/')
      ? string.startsWith(name)
      : [name, `${name}-`].includes(string) || string.startsWith(`${name}=`);
  return [...text.matchAll(/'([^'\s]+)'/g)]
    .map(([, string = '']) => string)
    .filter((string) => NAMES.some((name) => isName(string, name)));
}

test('each has the same name in the agent and in the tests', () => {
  assert.deepEqual(Object.values(tests).toSorted(), NAMES.toSorted());
});

for (const [what, home] of [
  ['{mapper,watcher,native}/**/*.ts', 'mapper/objects/label-names.ts'],
  ['test/**/*.ts', 'test/harness/label-names.ts'],
] as const) {
  test(`none is spelled in ${what} but in ${home}`, () => {
    const files = globSync(what, { cwd: root });
    assert.ok(files.includes(home) && files.length > 50);
    const found = files
      .filter((path) => path !== home)
      .flatMap((path) => spelled(readFileSync(join(root, path), 'utf8')).map((name) => `${path}: ${name}`));
    assert.deepEqual(found, []);
  });
}

test('the check sees a name, also in a command and behind a prefix', () => {
  const mode = agents.MODE_LABEL;
  const text = `x('${mode}', '${mode}=none', '${mode}-', '${agents.TRAFFIC}excludeOutboundPorts', '${mode}s', 'about ${mode}')`;
  assert.equal(spelled(text).length, 4);
});
