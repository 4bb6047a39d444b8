/** What ztunnels are told by the ZDS server over real sockets, and what follows from their answers. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { eventually } from '../../../../deploy/stage/process.ts';
import type { ZdsClient } from '../../../harness/zds-client.ts';
import { openDescriptors, ZdsStage } from './zds-stage.ts';

const told = (client: ZdsClient, ...lines: readonly string[]): Promise<boolean> =>
  eventually(`it is told ${lines.join(', ')}`, () => client.told.length >= lines.length).then(() => {
    assert.deepEqual(client.told, lines);
    assert.deepEqual(client.faults, []);
    return true;
  });

describe('a ztunnel', () => {
  test('is told of all pods, then that these are all, then of changes', async () => {
    using stage = new ZdsStage();
    const server = stage.open();
    assert.ok(!server.hadZtunnel);
    for (const uid of ['a', 'b', 'c']) server.set(stage.workload(uid));
    server.remove('b');
    assert.deepEqual([...server.wanted], ['a', 'c']);
    assert.deepEqual(server.standingOf('a'), { state: 'pending', reason: '', ztunnels: [] });
    const ztunnel = stage.dial({ pods: [['gone', { names: 'x/y/z', network: 7 }]] });
    await told(ztunnel, 'add a', 'add c', 'snapshot');
    assert.deepEqual(new Map(ztunnel.pods), new Map(['a', 'c'].map((uid) => [uid, stage.served(uid)])));
    await eventually('both are acknowledged', () => stage.told.length === 2);
    assert.deepEqual(stage.told, ['acknowledged a', 'acknowledged c']);
    assert.deepEqual(server.standingOf('a'), {
      state: 'acknowledged',
      reason: '',
      ztunnels: [{ pid: process.pid, standing: 'acknowledged', reason: '' }],
    });
    server.set(stage.workload('d'));
    server.set(stage.workload('a'));
    server.remove('c');
    server.remove('nobody');
    await told(ztunnel, 'add a', 'add c', 'snapshot', 'add d', 'del c');
    assert.deepEqual([...ztunnel.pods.keys()], ['a', 'd']);
    assert.equal(server.standingOf('c'), undefined);
    await eventually('all is answered', () => server.ztunnels[0]?.unanswered === 0);
    assert.deepEqual(server.ztunnels, [{ pid: process.pid, unanswered: 0, isSlow: false }]);
    assert.ok(server.hadZtunnel);
  });

  test('is said to be there before it is told of any pod, and to be gone when it is', async () => {
    using stage = new ZdsStage();
    const lines: string[] = [];
    const server = stage.open({
      onConnected: (pid) => void lines.push(`connected ${pid}`),
      onDisconnected: (pid) => void lines.push(`disconnected ${pid}`),
      networkOf: (uid) => void lines.push(`asked for ${uid}`),
    });
    server.set(stage.workload('a'));
    const ztunnel = stage.dial();
    await told(ztunnel, 'keep a', 'snapshot');
    stage.dial({ hello: null })[Symbol.dispose]();
    ztunnel[Symbol.dispose]();
    await eventually('it is gone', () => lines.length > 2);
    assert.deepEqual(lines, [`connected ${process.pid}`, 'asked for a', `disconnected ${process.pid}`]);
  });

  test('is told of a pod again when it has another network, and what it said of the other counts no more', async () => {
    using stage = new ZdsStage();
    const server = stage.open();
    server.set(stage.workload('a'));
    const ztunnel = stage.dial({ answer: null });
    await told(ztunnel, 'add a', 'snapshot');
    stage.changeNetwork('a');
    server.set(stage.workload('a'));
    await told(ztunnel, 'add a', 'snapshot', 'add a');
    ztunnel.answer();
    ztunnel.answer();
    await eventually('two are answered', () => server.ztunnels[0]?.unanswered === 1);
    assert.equal(server.standingOf('a')?.state, 'pending');
    ztunnel.answer();
    await eventually('it is acknowledged', () => server.standingOf('a')?.state === 'acknowledged');
    assert.deepEqual(ztunnel.pods.get('a'), stage.served('a'));
    assert.deepEqual(stage.told, ['acknowledged a']);
  });

  test('that answers late about a pod that was removed meanwhile says nothing of it', async () => {
    using stage = new ZdsStage();
    const server = stage.open();
    server.set(stage.workload('a'));
    const ztunnel = stage.dial({ answer: null });
    await told(ztunnel, 'add a', 'snapshot');
    server.remove('a');
    await told(ztunnel, 'add a', 'snapshot', 'del a');
    for (const error of ['', '', '']) ztunnel.answer(error);
    await eventually('all is answered', () => server.ztunnels[0]?.unanswered === 0);
    assert.deepEqual(stage.told, []);
  });

  test('keeps a pod whose network cannot be had at its dial, and is told of it when it can', async () => {
    using stage = new ZdsStage();
    const server = stage.open();
    for (const uid of ['a', 'b']) server.set(stage.workload(uid));
    stage.away.add('a');
    const ztunnel = stage.dial({ pods: [['a', { names: 'x/y/z', network: 7 }]] });
    await told(ztunnel, 'keep a', 'add b', 'snapshot');
    assert.deepEqual([...ztunnel.pods.keys()], ['a', 'b']);
    await eventually('b is acknowledged', () => server.standingOf('b')?.state === 'acknowledged');
    assert.equal(server.standingOf('a')?.state, 'pending');
    // Later it is told of nothing that has no network.
    stage.away.add('c');
    server.set(stage.workload('c'));
    stage.away.clear();
    for (const uid of ['a', 'b', 'c']) server.set(stage.workload(uid));
    await told(ztunnel, 'keep a', 'add b', 'snapshot', 'add a', 'add c');
    await eventually('all are acknowledged', () => stage.told.length === 3);
  });

  test('is not told of a pod that is found to be gone when its network is asked for', async () => {
    using stage = new ZdsStage();
    const server = stage.open({
      networkOf: (uid) => {
        if (uid === 'a') server.remove(uid);
        if (uid === 'b') throw new Error('no descriptor left');
        return undefined;
      },
    });
    for (const uid of ['a', 'b']) server.set(stage.workload(uid));
    await told(stage.dial(), 'keep b', 'snapshot');
    assert.match(stage.logged.join('\n'), /^error .*no descriptor left$/m);
    assert.equal(server.standingOf('a'), undefined);
  });

  test('is not told of a pod whose names do not fit, which is refused with a sentence', async () => {
    using stage = new ZdsStage();
    const server = stage.open();
    const ztunnel = stage.dial();
    await told(ztunnel, 'snapshot');
    server.set(stage.workload('a'));
    await told(ztunnel, 'snapshot', 'add a');
    server.set({ ...stage.workload('a'), name: 'n'.repeat(1100) });
    server.set({ ...stage.workload('b'), serviceAccount: '' });
    await told(ztunnel, 'snapshot', 'add a', 'del a');
    assert.equal(server.standingOf('a')?.state, 'refused');
    await eventually('all three are told', () => stage.told.length === 3);
    const [, long, missing] = stage.told;
    assert.match(long ?? '', /^refused a: the names of this pod are too long for ztunnel/);
    assert.match(missing ?? '', /^refused b: a pod without a serviceAccount cannot be told to ztunnel/);
    await told(stage.dial(), 'snapshot');
  });

  test('that refuses a pod is asked again until it does not, and each reason is said once, by its first line', async () => {
    using stage = new ZdsStage();
    const server = stage.open({ limits: { againMs: [1, 5] } });
    let refusals = 0;
    let isFree = false;
    const trace = '\n\nfailure to start proxy: AddrInUse\u0007\n   0: a::b\n   1: c::d'.repeat(200);
    const ztunnel = stage.dial({
      answer: () => {
        if (isFree) return '';
        refusals++;
        return trace;
      },
    });
    server.set(stage.workload('a'));
    await eventually('it is asked again', () => refusals > 3);
    assert.equal(server.standingOf('a')?.state, 'refused');
    isFree = true;
    assert.equal(server.standingOf('a')?.reason, 'failure to start proxy: AddrInUse');
    await eventually('it is acknowledged', () => server.standingOf('a')?.state === 'acknowledged');
    assert.deepEqual(stage.told, ['refused a: failure to start proxy: AddrInUse', 'acknowledged a']);
    assert.equal(stage.logged.filter((line) => line.includes('refuses pod shop/pod-a')).length, 1);
    assert.deepEqual(ztunnel.faults, []);
  });

  test('that is told of 1,000 pods gets them as fast as it answers, and no descriptor is left over', async () => {
    using stage = new ZdsStage();
    const server = stage.open();
    const uids = Array.from({ length: 1000 }, (_, at) => `pod${at}`);
    for (const uid of uids) server.set(stage.workload(uid));
    const before = openDescriptors();
    const ztunnel = stage.dial();
    await eventually('all are acknowledged', () => stage.told.length === uids.length);
    assert.deepEqual([...ztunnel.pods.keys()], uids);
    await told(ztunnel, ...uids.map((uid) => `add ${uid}`), 'snapshot');
    ztunnel[Symbol.dispose]();
    await eventually('it is gone', () => server.ztunnels.length === 0);
    assert.ok(openDescriptors() <= before);
  });
});

describe('two ztunnels', () => {
  test('are told the same, and a pod is acknowledged while one of them says so', async () => {
    using stage = new ZdsStage();
    const server = stage.open();
    const older = stage.dial();
    server.set(stage.workload('a'));
    await eventually('it is acknowledged', () => server.standingOf('a')?.state === 'acknowledged');
    const newer = stage.dial({ answer: () => 'AddrInUse' });
    await told(newer, 'add a', 'snapshot');
    await eventually('one refuses', () => stage.told.length === 2);
    assert.deepEqual(server.standingOf('a'), {
      state: 'acknowledged',
      reason: '',
      ztunnels: [
        { pid: process.pid, standing: 'acknowledged', reason: '' },
        { pid: process.pid, standing: 'refused', reason: 'AddrInUse' },
      ],
    });
    older[Symbol.dispose]();
    await eventually('it is refused', () => server.standingOf('a')?.state === 'refused');
    assert.deepEqual(stage.told, ['acknowledged a', 'refused a: AddrInUse', 'refused a: AddrInUse']);
    const third = stage.dial();
    await told(third, 'add a', 'snapshot');
    await eventually('it is acknowledged', () => server.standingOf('a')?.state === 'acknowledged');
    third[Symbol.dispose]();
    newer[Symbol.dispose]();
    await eventually('all are gone', () => server.ztunnels.length === 0);
    server.remove('a');
  });

  test('of which the later refuses what the earlier had acknowledged: it counts when the earlier has gone', async () => {
    using stage = new ZdsStage();
    const server = stage.open();
    server.set(stage.workload('a'));
    const older = stage.dial();
    await eventually('it is acknowledged', () => server.standingOf('a')?.state === 'acknowledged');
    older[Symbol.dispose]();
    await eventually('it is gone', () => server.ztunnels.length === 0);
    assert.equal(server.standingOf('a')?.state, 'acknowledged', 'until somebody says otherwise');
    const newer = stage.dial({ answer: null });
    await told(newer, 'add a', 'snapshot');
    assert.equal(server.standingOf('a')?.state, 'acknowledged');
    newer.answer('AddrInUse');
    await eventually('it is refused', () => server.standingOf('a')?.state === 'refused');
    assert.deepEqual(stage.told, ['acknowledged a', 'refused a: AddrInUse']);
  });

  test('do not wait for each other where one hangs with a full socket, which is said once', async () => {
    using stage = new ZdsStage();
    // So many that its socket has no room for more, whatever it may have of them.
    const server = stage.open({ limits: { answerMs: 100, window: 100_000 } });
    const uids = Array.from({ length: 2000 }, (_, at) => `pod${at}`);
    const hung = stage.dial({ reads: false });
    const other = stage.dial();
    await eventually('both are there', () => server.ztunnels.length === 2);
    const before = openDescriptors();
    for (const uid of uids) server.set(stage.workload(uid));
    await eventually('all are acknowledged', () => stage.told.length === uids.length);
    assert.equal(other.pods.size, uids.length);
    assert.ok(openDescriptors() <= before, 'what waits to be sent holds no descriptor');
    const slow = (): readonly string[] =>
      stage.logged.filter((line) => line.includes('has not answered for'));
    await eventually('it counts as slow', () => slow().length > 0);
    assert.match(
      slow()[0] ?? '',
      /^warn a ztunnel \(process \d+\) has not answered for 0\.1 s: \d+ messages wait/,
    );
    const [{ isSlow, unanswered } = { isSlow: false, unanswered: 0 }] = server.ztunnels;
    assert.ok(isSlow && unanswered > 10 && unanswered < uids.length, `${unanswered} wait`);
    assert.ok(stage.opened < 1.5 * uids.length, 'nothing is opened for who has no room');
    server.remove('pod1');
    await eventually('the other forgets it', () => !other.pods.has('pod1'));
    // It comes to itself, and hears of all that it has missed.
    hung.read();
    await eventually('it answers again', () => stage.logged.some((line) => line.includes('answers again')));
    await eventually('it has all', () => hung.pods.size === uids.length - 1);
    assert.equal(slow().length, 1);
    assert.deepEqual([...hung.faults, ...other.faults], []);
  });

  test('that hang are told of no more than a few pods, whose networks they would keep alive', async () => {
    using stage = new ZdsStage();
    const server = stage.open({ limits: { window: 8 } });
    const hung = stage.dial({ answer: null });
    for (let at = 0; at < 50; at++) server.set(stage.workload(`pod${at}`));
    await eventually('it has been told of some', () => hung.told.length === 8);
    assert.equal(server.ztunnels[0]?.unanswered, 8);
    // What is removed before it was told costs it nothing.
    for (let at = 20; at < 50; at++) server.remove(`pod${at}`);
    for (let answered = 0; answered < 21; answered++) {
      await eventually('it is told', () => hung.told.length > answered);
      hung.answer();
    }
    await eventually('all is answered', () => server.ztunnels[0]?.unanswered === 0);
    assert.equal(hung.told.length, 21);
    assert.deepEqual(hung.faults, []);
  });
});

test('a server that ends and starts again takes over, and only what is not wanted any more is dropped', async () => {
  using stage = new ZdsStage();
  const first = stage.open();
  for (const uid of ['a', 'b']) first.set(stage.workload(uid));
  const ztunnel = stage.dial();
  await told(ztunnel, 'add a', 'add b', 'snapshot');
  first[Symbol.dispose]();
  await eventually('the connection has ended', () => ztunnel.isClosed);
  assert.throws(() => stage.dial(), /^Error: ENOENT$/);
  const second = stage.open();
  for (const uid of ['b', 'c']) second.set(stage.workload(uid));
  const again = stage.dial({ pods: ztunnel.pods });
  await told(again, 'add b', 'add c', 'snapshot');
  assert.deepEqual([...again.pods.keys()], ['b', 'c']);
});
