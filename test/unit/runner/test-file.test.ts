/** One file of tests: whatever it does, it ends, and nothing of it is left. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { type Outcome, runTestFile } from '../../runner/test-file.ts';

const directory = mkdtempSync(join(tmpdir(), 'cgroute-runner-test-'));
after(() => rmSync(directory, { recursive: true, force: true }));

const LIMIT_MS = 600_000;

async function outcomeOf(
  name: string,
  source: string,
  limitMs = LIMIT_MS,
): Promise<Outcome & { readonly output: string }> {
  const file = join(directory, `${name}.test.ts`);
  writeFileSync(file, `import { describe, test } from 'node:test';\n${source}`);
  let output = '';
  const outcome = await runTestFile({ file, cwd: directory, limitMs, onOutput: (text) => (output += text) });
  return { ...outcome, output };
}

const whole = ({ failures }: Outcome): string[] => failures.map(({ name, message }) => `${name}: ${message}`);

/** A zombie is dead: whether somebody reaps it is the machine's business. */
function isAlive(pid: number): boolean {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false;
  }
}

/** A process that has no parent and a session of its own, ignores SIGTERM and keeps its standard output open. */
const orphan = (pidFile: string): string => `
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
spawnSync('sh', ['-c', 'setsid sh -c \\'trap "" TERM HUP; echo $$ >"$0.new"; mv "$0.new" "$0"; echo orphan; while :; do sleep 1; done\\' "$0" &', '${pidFile}'], { stdio: 'inherit' });
const hasBegun = async () => { while (!existsSync('${pidFile}')) await new Promise((wake) => setTimeout(wake, 10)); };
`;

describe('a file of tests', { concurrency: true }, () => {
  test('is counted test by test, and its reporter prints them without sums', async () => {
    const { passed, failures, skips, output } = await outcomeOf(
      'counts',
      `test('one', async (t) => { await t.test('in it', () => {}); });
       test('two', () => { throw new Error('wrong'); });
       test('three', { skip: 'no such kernel' }, () => {});
       describe('four', { skip: 'not here' }, () => { test('in four', () => {}); });
       test('five', { todo: true }, () => {});
       describe('six', () => { test('in six', () => {}); });`,
    );
    assert.equal(passed, 3);
    assert.deepEqual(
      failures.map(({ name, message }) => [name, message.split('\n')[0]]),
      [['two', 'Error: wrong']],
    );
    assert.deepEqual(skips, [
      { name: 'three', why: 'no such kernel' },
      { name: 'four', why: 'not here' },
      { name: 'five', why: '' },
    ]);
    assert.match(output, /✔ one[^]*✖ two[^]*Error: wrong/);
    assert.doesNotMatch(output, /ℹ (?:tests|pass|duration)/);
  });

  test('that hangs is killed with all that it has started, and has failed', async () => {
    const pidFile = join(directory, 'hangs.pid');
    const outcome = await outcomeOf(
      'hangs',
      `${orphan(pidFile)}
       test('is fine', () => {});
       test('never ends', async () => { await hasBegun(); setInterval(() => {}, 1000); await new Promise(() => {}); });`,
      1500,
    );
    assert.equal(outcome.passed, 1);
    assert.match(whole(outcome).join(), /^the file: ran out of time, in: never ends; \d+ s passed$/);
    assert.match(outcome.output, /orphan/);
    assert.ok(!isAlive(Number(readFileSync(pidFile, 'utf8'))), 'what it had started is dead');
  });

  test('that spins, so that it hears nothing, is killed too', async () => {
    const outcome = await outcomeOf('spins', `test('spins', () => { for (;;) {} });`, 1500);
    assert.match(whole(outcome).join(), /ran out of time, between its tests, or in one that spins/);
  });

  test('whose tests are over, and that stays, has failed as well', async () => {
    const outcome = await outcomeOf('stays', `test('is fine', () => {}); setInterval(() => {}, 1000);`, 1500);
    assert.equal(outcome.passed, 1);
    assert.match(whole(outcome).join(), /ran out of time/);
  });

  test('that leaves a process behind is through, and the process is killed and told', async () => {
    const pidFile = join(directory, 'leaves.pid');
    const outcome = await outcomeOf('leaves', `${orphan(pidFile)}\ntest('is fine', () => hasBegun());`);
    assert.deepEqual([outcome.passed, whole(outcome)], [1, []]);
    assert.match(outcome.output, /left behind, and killed:\n.*while :/);
    assert.ok(!isAlive(Number(readFileSync(pidFile, 'utf8'))));
  });

  test('that crashes, leaves in the middle of a test, or has none has failed', async () => {
    const crashes = await outcomeOf(
      'crashes',
      `test('is fine', () => {});\ntest('crashes', async () => { await new Promise((wake) => setTimeout(wake, 100)); process.kill(process.pid, 'SIGSEGV'); for (;;) {} });`,
    );
    assert.deepEqual([crashes.passed, whole(crashes)], [1, ['the file: was killed by SIGSEGV, in: crashes']]);
    const leaves = await outcomeOf(
      'exits',
      `test('is fine', () => {}); test('leaves', async () => { await new Promise((wake) => setTimeout(wake, 100)); process.exit(0); });`,
    );
    assert.deepEqual([leaves.passed, whole(leaves)], [1, ['the file: exited with 0, in: leaves']]);
    const throws = await outcomeOf('throws', `throw new Error('at the top');`);
    assert.match(whole(throws).join(), /^the file: exited with \d, between its tests/);
    assert.match(throws.output, /at the top/);
    assert.deepEqual(whole(await outcomeOf('empty', '')), [
      'the file: has no test, or one that ends the process at once',
    ]);
  });

  test('with a hook that fails has failed, also when no test has', async () => {
    const outcome = await outcomeOf(
      'hook',
      `import { after } from 'node:test';
       describe('all', () => { after(() => { throw new Error('cannot tidy up'); }); test('is fine', () => {}); });`,
    );
    assert.equal(outcome.passed, 1);
    assert.match(whole(outcome).join(), /^all: Error: cannot tidy up/);
  });
});
