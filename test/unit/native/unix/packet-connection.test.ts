/** A connection that carries whole messages: how much fits, and when it is worth trying again. */
import assert from 'node:assert/strict';
import { mkdtempSync, openSync, closeSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { eventually } from '../../../../deploy/stage/process.ts';
import type { PacketConnection } from '../../../../native/unix/packet-connection.ts';
import { listenForPackets } from '../../../../native/unix/packet-listener.ts';
import { dialZds, helloOf, type ZdsClient } from '../../../harness/zds-client.ts';
import { openDescriptors } from '../../mapper/ztunnel/zds-stage.ts';

/** Both ends of a connection, and what one has heard. */
async function pair(t: TestContext): Promise<{
  readonly client: ZdsClient;
  readonly connection: PacketConnection;
  readonly heard: string[];
}> {
  const directory = mkdtempSync(join(tmpdir(), 'cgroute-test-packets-'));
  const path = join(directory, 'x.sock');
  const heard: string[] = [];
  const opened: PacketConnection[] = [];
  const listener = listenForPackets({
    path,
    purpose: 'a test',
    onTrouble: (errno) => void heard.push(errno),
    onConnection: (caller) =>
      void opened.push(
        caller.open({
          onMessage: (message) => void heard.push(`message ${message.toString('latin1')}`),
          onRoom: () => void heard.push('room'),
          onEnd: (why) => void heard.push(`end: ${why}`),
        }),
      ),
  });
  const client = dialZds(path, { hello: null, answer: null, reads: false });
  t.after(() => {
    for (const each of [client, listener, ...opened]) each[Symbol.dispose]();
    rmSync(directory, { recursive: true });
  });
  const connection = await eventually('it is accepted', () => opened[0]);
  return { client, connection, heard };
}

test('a full one says once that there is room again, and not while nobody waits for that', async (t) => {
  const { client, connection, heard } = await pair(t);
  assert.deepEqual(connection.peer, { pid: process.pid, uid: 0 });
  const fd = openSync('/dev/null', 'r');
  const before = openDescriptors();
  let sent = 0;
  while (connection.send(Buffer.from([0x1a, 0x00]), fd)) sent++;
  closeSync(fd);
  assert.ok(sent > 10, `${sent} messages`);
  for (let turn = 0; turn < 100; turn++) await new Promise(setImmediate);
  assert.deepEqual(heard, []);
  client.read();
  await eventually('all are read', () => client.told.length === sent);
  await eventually('it says so', () => heard.length > 0);
  for (let turn = 0; turn < 100; turn++) await new Promise((resolve) => setTimeout(resolve, 0));
  assert.deepEqual(heard, ['room']);
  assert.equal(openDescriptors(), before - 1, 'what was sent along is not kept');
  assert.ok(connection.send(helloOf(1)));
});

test('messages are heard whole and in their order, and the end once', async (t) => {
  const { client, heard } = await pair(t);
  const messages = Array.from({ length: 200 }, (_, at) => `${at}`);
  for (const message of messages) assert.equal(client.send(Buffer.from(message)), '');
  client[Symbol.dispose]();
  await eventually('the end is heard', () => heard.length > messages.length);
  assert.deepEqual(heard, [...messages.map((message) => `message ${message}`), 'end: it has ended it']);
});

test('what cannot be sent to somebody who has gone ends it, and never the process', async (t) => {
  const { client, connection, heard } = await pair(t);
  // It has not read what was sent, so that its end is an error, too.
  assert.ok(connection.send(helloOf(1)));
  client[Symbol.dispose]();
  assert.equal(connection.send(helloOf(1)), false);
  await eventually('the end is heard', () => heard.length > 0);
  for (let turn = 0; turn < 10; turn++) await new Promise(setImmediate);
  assert.equal(heard.length, 1);
  assert.match(heard[0] ?? '', /^end: it broke with (?:EPIPE|ECONNRESET)$/);
  assert.equal(connection.send(helloOf(1)), false);
});
