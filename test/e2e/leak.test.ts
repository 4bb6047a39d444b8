/** `npm run leaktest`, in short: nothing escapes, nothing is caught wrongly, and the test would notice. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { test } from 'node:test';
import { type Finished, run } from '../../deploy/stage/process.ts';
import { CASE_NAMES } from '../leak/connection.ts';

const LEAKTEST = resolve(import.meta.dirname, '../leak/leaktest.ts');

interface Figures {
  readonly connects: number;
  readonly escaped: number;
  readonly caught_wrongly: number;
  readonly failed: number;
  readonly denied_wrongly: number;
  readonly new_cgroups: number;
  readonly agent: { readonly kills: number; readonly upgrades: number };
  readonly cases: Readonly<
    Record<string, { readonly connects: number; readonly escaped: number; readonly caught_wrongly: number }>
  >;
}

async function leaktest(...args: readonly string[]): Promise<Finished & { readonly figures: Figures }> {
  const directory = mkdtempSync(join(tmpdir(), 'leaktest-'));
  try {
    const file = join(directory, 'figures.json');
    const finished = await run({ cmd: process.execPath, args: [LEAKTEST, '--json', file, ...args] });
    assert.ok(
      finished.code === 0 || finished.code === 3,
      `exit code ${finished.code}\n${finished.stdout}\n${finished.stderr}`,
    );
    return { ...finished, figures: JSON.parse(readFileSync(file, 'utf8')) as Figures };
  } finally {
    rmSync(directory, { recursive: true });
  }
}

test('no connection escapes and none is caught wrongly, in any case, while the agent is killed and upgraded', async () => {
  const { code, stdout, figures } = await leaktest('--count', '400', '--seed', '1');
  assert.equal(code, 0, stdout);
  assert.match(stdout, /✓ 0 escaped, 0 wrongly caught; client, proxy and server agree on each\n?$/);
  assert.deepEqual(Object.keys(figures.cases).sort(), [...CASE_NAMES].sort());
  for (const { connects, escaped, caught_wrongly } of Object.values(figures.cases))
    assert.ok(connects > 0 && escaped + caught_wrongly === 0);
  assert.ok(figures.new_cgroups >= 400 && figures.connects >= figures.new_cgroups);
  assert.ok(figures.agent.kills >= 4 && figures.agent.upgrades === 1);
});

const breaks: readonly [string, string, (figures: Figures) => number, string?][] = [
  [
    'takeover',
    'without the connect programs while an agent starts, pods that run escape',
    ({ cases }) => cases['taken_over']?.escaped ?? 0,
    'agent_dead,taken_over',
  ],
  [
    'identity',
    'without the program at mkdir(), pods are known too late: they are refused',
    ({ denied_wrongly }) => denied_wrongly,
    'agent_dead',
  ],
  ['connect', 'without the connect programs, pods escape', ({ escaped }) => escaped],
  ['handoff', 'without sock_ops, the proxy is not told where to: connections fail', ({ failed }) => failed],
];
for (const [part, sentence, count, only = 'known'] of breaks) {
  test(`${sentence}, and the exit code is 3`, async () => {
    const { code, stdout, figures } = await leaktest(
      '--count',
      '20',
      '--only',
      only,
      '--break',
      part,
      '--seed',
      '1',
    );
    assert.equal(code, 3, stdout);
    assert.ok(count(figures) > 0, stdout);
    assert.match(stdout, /\n✗ .*\n?$/);
  });
}

test('what it is asked for and cannot do it refuses with a sentence', async () => {
  for (const [args, sentence] of [
    [['--count', 'many'], '--count must be a whole number from 1, not "many"'],
    [['--only', 'known,nothing'], /--only must name cases \(.*\), not "nothing"/],
    [['--break', 'all'], '--break must be one of identity, handoff, connect, takeover, not "all"'],
  ] as const) {
    const { code, stderr } = await run({ cmd: process.execPath, args: [LEAKTEST, ...args] });
    assert.equal(code, 2);
    assert.ok(typeof sentence === 'string' ? stderr.includes(sentence) : sentence.test(stderr), stderr);
  }
});
