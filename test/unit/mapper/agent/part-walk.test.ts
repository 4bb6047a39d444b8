import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import type { AgentPart } from '../../../../mapper/agent/agent-part.ts';
import { PartWalk } from '../../../../mapper/agent/part-walk.ts';
import type { OwnedCgroup } from '../../../../mapper/inventory/owned-cgroup.ts';
import { eventually } from '../../../../deploy/stage/process.ts';

const CGROUP: OwnedCgroup = { cgroup: { id: 7n, path: '/a', parent: 1n }, owner: { kind: 'none' } };
const refused = (): never => {
  throw new Error('refused');
};

/** A walk over these, with what it counted and logged. */
function walkOver(...parts: readonly AgentPart[]) {
  const counted: unknown[] = [];
  const logged: { part: string; msg: string; path?: string }[] = [];
  const logger = pino(
    { level: 'error' },
    { write: (line: string) => void logged.push(JSON.parse(line) as (typeof logged)[number]) },
  );
  const walk = new PartWalk({ logger, onFailed: (error) => counted.push((error as Error).message) });
  walk.wire(parts);
  return { walk, counted, logged };
}

/** A part that notes what it is asked to do. */
function noting(name: string, steps: string[]): AgentPart {
  const note = (what: string) => () => void steps.push(`${name} ${what}`);
  return {
    name,
    start: note('starts'),
    takeOver: () => steps.push(`${name} takes over`) && 2,
    attach: note('attaches'),
    ready: note('is ready'),
    look: note('looks'),
    repairs: [() => steps.push(`${name} repairs`) && 3],
    leave: note('leaves'),
    withdraw: note('withdraws'),
    async clear() {
      steps.push(`${name} clears`);
      return [`of ${name}`];
    },
    cgroupAppeared: note('sees a cgroup'),
    cgroupGone: note('sees one go'),
    processSeen: note('sees a process'),
    podsChanged: (uids) => void steps.push(`${name} hears of ${[...uids].join()}`),
    podWritten: note('sees an entry'),
    reconciled: note('hears that it is done'),
    [Symbol.dispose]: note('ends'),
  };
}

test('each moment and each fact goes through the list in its order, and the end from its end', async () => {
  const steps: string[] = [];
  const { walk } = walkOver(noting('a', steps), { name: 'silent' }, noting('b', steps));
  walk.start();
  assert.equal(walk.takeOver(), 4);
  walk.attach();
  walk.ready();
  walk.look();
  assert.equal(walk.repair(), 6);
  walk.cgroupAppeared(CGROUP);
  walk.cgroupGone(CGROUP);
  walk.podsChanged(['1', '2']);
  walk.reconciled();
  const inOrder = (what: string): string[] => [`a ${what}`, `b ${what}`];
  const moments = ['starts', 'takes over', 'attaches', 'is ready', 'looks', 'repairs'];
  const facts = ['sees a cgroup', 'sees one go', 'hears of 1,2', 'hears that it is done'];
  assert.deepEqual(steps.splice(0), [...moments, ...facts].flatMap(inOrder));
  assert.deepEqual(walk.leave(), []);
  assert.deepEqual(await walk.withdraw(), []);
  assert.deepEqual(await walk.clear(), ['of b', 'of a']);
  walk[Symbol.dispose]();
  assert.deepEqual(
    steps,
    ['leaves', 'withdraws', 'clears', 'ends'].flatMap((what) => inOrder(what).reverse()),
  );
});

test('what one part throws in a start ends it', () => {
  const steps: string[] = [];
  const bad: AgentPart = { name: 'bad', start: refused, takeOver: refused, attach: refused };
  const { walk, counted } = walkOver(noting('a', steps), bad, noting('b', steps));
  assert.throws(() => walk.start(), /refused/);
  assert.throws(() => walk.takeOver(), /refused/);
  assert.throws(() => walk.attach(), /refused/);
  assert.deepEqual(steps, ['a starts', 'a takes over', 'a attaches']);
  assert.deepEqual(counted, [], 'who starts it says it');
});

test('what one part throws anywhere else is counted and logged with its name, and the others go on', async () => {
  const steps: string[] = [];
  const bad: AgentPart = {
    name: 'bad',
    ready: refused,
    look: refused,
    repairs: [refused, () => 10, refused],
    leave: refused,
    withdraw: async () => refused(),
    clear: async () => refused(),
    cgroupAppeared: refused,
    cgroupGone: refused,
    wantsProcess: refused,
    podsChanged: refused,
    reconciled: refused,
    [Symbol.dispose]: refused,
  };
  const { walk, counted, logged } = walkOver(bad, noting('b', steps), {
    name: 'c',
    wantsProcess: () => true,
  });
  walk.ready();
  walk.look();
  assert.equal(walk.repair(), 13);
  walk.cgroupAppeared(CGROUP);
  walk.cgroupGone(CGROUP);
  assert.equal(walk.wantsProcess(7n), true);
  walk.podsChanged(['1']);
  walk.reconciled();
  assert.deepEqual(
    walk.leave().map((error) => (error as Error).message),
    ['refused'],
  );
  assert.equal((await walk.withdraw()).length, 1);
  assert.deepEqual(await walk.clear(), ['of b', 'something may be left of bad: refused']);
  walk[Symbol.dispose]();
  assert.deepEqual(steps, [
    'b is ready',
    'b looks',
    'b repairs',
    'b sees a cgroup',
    'b sees one go',
    'b hears of 1',
    'b hears that it is done',
    'b leaves',
    'b withdraws',
    'b clears',
    'b ends',
  ]);
  assert.equal(counted.length, 13);
  assert.deepEqual([...new Set(logged.map(({ part }) => part))], ['bad']);
  assert.match(logged[1]?.msg ?? '', /^the periodic check failed: refused$/);
  assert.equal(logged.find(({ path }) => path !== undefined)?.path, '/a');
});

test('before the parts are wired nobody is told, and nothing fails', () => {
  const { walk } = walkOver();
  walk.cgroupAppeared(CGROUP);
  walk.podsChanged(['1']);
  assert.equal(walk.wantsProcess(1n), false);
  assert.deepEqual([walk.sources(), walk.metrics(), walk.repair()], [[], [], 0]);
});

test('who holds pods back hands them on to the next that does, and then all are told', async () => {
  const heard: string[] = [];
  const ear = (name: string): AgentPart => ({
    name,
    podsChanged: (uids) => void heard.push(`${name}: ${[...uids].join()}`),
  });
  const { walk } = walkOver(
    ear('a'),
    {
      name: 'patient',
      holdBack(uids, tell) {
        tell([...uids].filter((uid) => uid !== '2'));
        setTimeout(() => tell(['2']), 1);
      },
    },
    { name: 'quick', holdBack: (uids, tell) => tell([...uids].map((uid) => `${uid}!`)) },
    ear('b'),
  );
  walk.podsChanged(['1', '2']);
  assert.deepEqual(heard.splice(0), ['a: 1!', 'b: 1!']);
  await eventually('they are handed on', () => heard.length > 1);
  assert.deepEqual(heard, ['a: 2!', 'b: 2!']);
});

test('who fails to hold pods back keeps nobody from hearing of them', () => {
  const heard: string[] = [];
  const { walk, counted } = walkOver(
    { name: 'bad', holdBack: refused },
    { name: 'a', podsChanged: (uids) => void heard.push([...uids].join()) },
  );
  walk.podsChanged(new Set(['1', '2']));
  assert.deepEqual(heard, ['1,2']);
  assert.deepEqual(counted, ['refused']);
});

test('sources and metrics are those of all parts that have any', () => {
  const state = { name: 'x', state: 'ok', detail: '' } as const;
  const metric = { name: 'cgroute_x', type: 'gauge', labels: [], help: '', collect: () => [] } as const;
  const { walk } = walkOver(
    { name: 'a', source: () => state },
    { name: 'b' },
    { name: 'c', metrics: [metric, metric] },
  );
  assert.deepEqual(walk.sources(), [state]);
  assert.equal(walk.metrics().length, 2);
});
