/** Whoever connects to the ZDS server and is no ztunnel costs little, is closed, and keeps no ztunnel out. */
import assert from 'node:assert/strict';
import { chmodSync, closeSync, openSync, readdirSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { eventually } from '../../../../deploy/stage/process.ts';
import { answerOf, helloOf, type ZdsClient } from '../../../harness/zds-client.ts';
import { openDescriptors, ZdsStage } from './zds-stage.ts';

const closed = (client: ZdsClient): Promise<unknown> =>
  eventually('its connection is closed', () => client.isClosed);

/** A ztunnel that dials now is served. */
async function isServed(stage: ZdsStage): Promise<void> {
  const ztunnel = stage.dial();
  await eventually('a ztunnel is served', () => ztunnel.hasSnapshot && ztunnel.told.length > 0);
  assert.deepEqual(ztunnel.faults, []);
  ztunnel[Symbol.dispose]();
}

describe('is closed with a sentence', () => {
  const long = Buffer.alloc(100_000, 'a');
  for (const [what, hello, bytes, sentence] of [
    [
      'who sends rubbish in place of a hello',
      Buffer.from('GET / HTTP/1.1\r\n\r\n'),
      [],
      /18 bytes that are no message of ZDS in place of a hello/,
    ],
    ['who sends nothing but a message', Buffer.alloc(0), [], /has ended it/],
    [
      'who acknowledges without a hello',
      answerOf(''),
      [],
      /a hello whose version is no number in place of a hello/,
    ],
    [
      'who speaks a version that there is not yet',
      helloOf(2),
      [],
      /it speaks version 2 of ZDS, where 1 was expected/,
    ],
    ['who says hello twice', helloOf(1), [helloOf(1)], /a number where an ack was expected/],
    ['who sends rubbish', helloOf(1), [Buffer.from('rubbish')], /7 bytes that are no message of ZDS/],
    [
      'who sends more than fits',
      helloOf(1),
      [long],
      /a message of 100000 bytes, where at most 65536 were expected/,
    ],
    [
      'who acknowledges more than it was told',
      helloOf(1),
      [answerOf(''), answerOf(''), answerOf('')],
      /it answered what nobody had told it/,
    ],
  ] as const) {
    test(what, async () => {
      using stage = new ZdsStage();
      const server = stage.open();
      server.set(stage.workload('a'));
      const rogue = stage.dial({ hello, answer: null });
      for (const each of bytes) rogue.send(each);
      await closed(rogue);
      await eventually('it is said', () => stage.logged.some((line) => sentence.test(line)));
      assert.equal(server.ztunnels.length, 0);
      await isServed(stage);
    });
  }

  test('who says nothing', async () => {
    using stage = new ZdsStage();
    stage.open({ limits: { helloMs: 20 } });
    await closed(stage.dial({ hello: null }));
    assert.match(stage.logged.join(), /it said no hello within 0\.02 s/);
    await isServed(stage);
  });

  test('who is another user, though the socket’s rights would let him in', async () => {
    using stage = new ZdsStage();
    stage.open();
    assert.equal(statSync(stage.path).mode & 0o777, 0o600);
    for (const path of [dirname(stage.path), stage.directory]) chmodSync(path, 0o755);
    const asNobody = (): ZdsClient => {
      process.seteuid?.(65534);
      try {
        return stage.dial();
      } finally {
        process.seteuid?.(0);
      }
    };
    assert.throws(asNobody, /^Error: EACCES$/);
    chmodSync(stage.path, 0o666);
    await closed(asNobody());
    assert.match(stage.logged.join(), /of user 65534 was turned away: only user 0 may connect/);
    await isServed(stage);
  });

  test('who is root, where another user is named', async () => {
    using stage = new ZdsStage();
    stage.open({ allowUid: 65534 });
    await closed(stage.dial());
  });
});

test('descriptors that somebody sends are not received', async () => {
  using stage = new ZdsStage();
  const server = stage.open();
  const rogue = stage.dial({ hello: null, answer: null });
  const fd = openSync(stage.directory, 'r');
  const before = openDescriptors();
  rogue.send(helloOf(1), Array<number>(100).fill(fd));
  await eventually('it counts as a ztunnel', () => server.ztunnels.length === 1 && rogue.hasSnapshot);
  assert.ok(openDescriptors() <= before + 1, 'its connection, and no more');
  rogue.send(answerOf(''), [fd, fd]);
  await eventually('its answer counts', () => server.ztunnels[0]?.unanswered === 0);
  assert.ok(openDescriptors() <= before + 1);
  closeSync(fd);
});

test('no bytes of anybody throw, and each that are no hello end their connection', async () => {
  using stage = new ZdsStage();
  const server = stage.open();
  const bytes = fc.uint8Array({ minLength: 1, maxLength: 30 }).filter(([first]) => first !== 0x08);
  await fc.assert(
    fc.asyncProperty(bytes, fc.boolean(), async (some, isGreeting) => {
      const rogue = stage.dial({ hello: isGreeting ? helloOf(1) : some, answer: null });
      if (isGreeting) rogue.send(some);
      // An ack of the snapshot, and fields that nobody knows, are no fault.
      if (isGreeting && some[0] === 0x0a) rogue[Symbol.dispose]();
      await closed(rogue);
      await eventually('nobody is left', () => server.ztunnels.length === 0);
    }),
    { numRuns: 100 },
  );
});

test('1,000 connections in a row leave nothing behind, and few lines', async () => {
  using stage = new ZdsStage();
  stage.open();
  await isServed(stage);
  const before = openDescriptors();
  for (let at = 0; at < 1000; at++) {
    using rogue = stage.dialOnce({ hello: at % 2 === 0 ? Buffer.from('rubbish') : null });
    // Some wait for their end, most hang up.
    if (at % 100 === 0) await closed(rogue);
    else if (at % 10 === 0) await new Promise(setImmediate);
  }
  await isServed(stage);
  await eventually('all are closed', () => openDescriptors() <= before);
  assert.ok(stage.logged.length < 40, `${stage.logged.length} lines`);
});

describe('more connections than may be', () => {
  test('cost those their place that have said nothing, the oldest first', async () => {
    using stage = new ZdsStage();
    const server = stage.open({ limits: { connections: 4 } });
    const silent = Array.from({ length: 10 }, () => stage.dial({ hello: null }));
    await eventually('six are closed', () => silent.filter(({ isClosed }) => isClosed).length === 6);
    assert.deepEqual(
      silent.map(({ isClosed }) => isClosed),
      [...Array(6).fill(true), ...Array(4).fill(false)],
    );
    const ztunnels = Array.from({ length: 4 }, () => stage.dial());
    await eventually('all silent ones are closed', () => silent.every(({ isClosed }) => isClosed));
    await eventually('four are served', () => server.ztunnels.length === 4);
    await closed(stage.dial());
    assert.match(stage.logged.join(), /turned away: 4 ztunnels are connected/);
    assert.ok(ztunnels.every(({ isClosed }) => !isClosed));
  });

  test('are 64 by default', async () => {
    using stage = new ZdsStage();
    const server = stage.open();
    const all = Array.from({ length: 65 }, () => stage.dial());
    await eventually(
      '64 are served',
      () => server.ztunnels.length === 64 && all.some(({ isClosed }) => isClosed),
    );
    assert.equal(all.filter(({ isClosed }) => isClosed).length, 1);
  });
});

test('what a listener throws is logged, and the server goes on', async () => {
  using stage = new ZdsStage();
  const fail = (): never => {
    throw new Error('by a listener');
  };
  const server = stage.open({ onAcknowledged: fail, onRefused: fail });
  server.set(stage.workload('a'));
  stage.dial({ answer: () => 'no' });
  stage.dial();
  await eventually(
    'both are said',
    () => stage.logged.filter((line) => line.includes('by a listener')).length === 2,
  );
  await isServed(stage);
});

test('a server that ends leaves nothing', async () => {
  using stage = new ZdsStage();
  const before = openDescriptors();
  const server = stage.open({ limits: { againMs: [1, 1], answerMs: 1 } });
  server.set(stage.workload('a'));
  const clients = [
    stage.dial({ answer: () => 'no' }),
    stage.dial({ answer: null }),
    stage.dial({ hello: null }),
  ];
  await eventually('two are served', () => server.ztunnels.length === 2);
  server[Symbol.dispose]();
  for (const client of clients) await closed(client);
  assert.deepEqual(readdirSync(dirname(stage.path)), []);
  assert.ok(openDescriptors() <= before);
});
