/** The ZDS server after somebody has taken its socket away, and after it has not run for a while. */
import assert from 'node:assert/strict';
import { renameSync, unlinkSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { beginWait } from '../../../../deploy/stage/deadline.ts';
import { eventually } from '../../../../deploy/stage/process.ts';
import { ZdsStage } from './zds-stage.ts';

/** Nothing runs in this process meanwhile, as when it was stopped. */
const stopFor = (ms: number): unknown => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);

test('a socket that somebody has removed is made again, and who is connected stays so', async () => {
  using stage = new ZdsStage();
  const server = stage.open();
  const before = stage.dial();
  await eventually('it is served', () => before.hasSnapshot);
  server.look();
  assert.ok(!stage.logged.some((line) => line.includes('made again')));
  unlinkSync(stage.path);
  assert.throws(() => stage.dial(), /^Error: ENOENT$/);
  server.look();
  assert.equal(stage.logged.filter((line) => line.includes('had gone, and is made again')).length, 1);
  const later = stage.dial();
  await eventually('it is served', () => later.hasSnapshot);
  server.set(stage.workload('a'));
  await eventually('both are told', () => before.pods.has('a') && later.pods.has('a'));
  server[Symbol.dispose]();
  assert.throws(() => stage.dial(), /^Error: ENOENT$/);
});

test('what keeps it from that is said once, and nothing of another is taken', async () => {
  using stage = new ZdsStage();
  const server = stage.open();
  const errors = (): readonly string[] => stage.logged.filter((line) => line.startsWith('error'));
  unlinkSync(stage.path);
  const other = stage.open();
  for (let looks = 0; looks < 3; looks++) server.look();
  assert.equal(errors().length, 1);
  assert.match(errors()[0] ?? '', /^error somebody answers on ztunnel\.socket .* istio-cni on most nodes/);
  other.look();
  assert.equal(errors().length, 1);
  renameSync(stage.path, `${stage.path}.moved`);
  writeFileSync(stage.path, '');
  for (let looks = 0; looks < 3; looks++) server.look();
  assert.equal(errors().length, 2);
  assert.match(errors()[1] ?? '', /cannot be used: expected a socket or nothing there/);
  unlinkSync(stage.path);
  server.look();
  const ztunnel = stage.dial();
  await eventually('it is served', () => ztunnel.hasSnapshot);
  assert.equal(server.ztunnels.length, 1);
});

test('a server that was stopped takes no ztunnel for slow or silent that has spoken meanwhile', async () => {
  using stage = new ZdsStage();
  const server = stage.open({ limits: { helloMs: 40, answerMs: 40 } });
  server.set(stage.workload('a'));
  const connecting = stage.dial({ hello: null, answer: null });
  // Its connection is there, and its clock runs.
  await new Promise(setImmediate);
  await new Promise(setImmediate);
  connecting.send(Buffer.from([0x08, 0x01]));
  stopFor(60);
  await eventually('it is told of all', () => connecting.told.length === 2);
  assert.ok(!connecting.isClosed);
  for (let answered = 0; answered < 2; answered++) connecting.answer();
  stopFor(60);
  await eventually('all is answered', () => server.ztunnels[0]?.unanswered === 0);
  assert.deepEqual(
    stage.logged.filter((line) => /no hello|has not answered/.test(line)),
    [],
  );
});

test('a ztunnel is slow ten seconds after its last answer, and again only when it has caught up', async (t) => {
  using stage = new ZdsStage();
  const server = stage.open();
  for (const uid of ['a', 'b', 'c']) server.set(stage.workload(uid));
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const so = async (what: string, check: () => boolean): Promise<void> => {
    for (const wait = beginWait(); !check(); await new Promise(setImmediate))
      if (wait.isOver()) assert.fail(`it is still not so: ${what}`);
  };
  const waiting = (): number | undefined => server.ztunnels[0]?.unanswered;
  const slow = (): number => stage.logged.filter((line) => line.includes('has not answered for 10 s')).length;
  const ztunnel = stage.dial({ answer: null });
  await so('it is told of all', () => ztunnel.told.length === 4);
  for (let left = 3; left > 0; left--) {
    t.mock.timers.tick(9_999);
    ztunnel.answer();
    await so('the answer counts', () => waiting() === left);
    assert.equal(slow(), 0);
  }
  t.mock.timers.tick(10_000);
  assert.deepEqual(server.ztunnels, [{ pid: process.pid, unanswered: 1, isSlow: true }]);
  // More waits, and it is not said again.
  server.set(stage.workload('d'));
  await so('it is told', () => ztunnel.told.length === 5);
  ztunnel.answer();
  await so('the answer counts', () => waiting() === 1);
  t.mock.timers.tick(60_000);
  assert.equal(slow(), 1);
  ztunnel.answer();
  await so('all is answered', () => waiting() === 0);
  assert.ok(!server.ztunnels[0]?.isSlow);
  server.set(stage.workload('e'));
  await so('it is told', () => ztunnel.told.length === 6);
  t.mock.timers.tick(10_000);
  assert.equal(slow(), 2);
});
