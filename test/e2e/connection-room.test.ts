/** A map of connections that is full: refused, counted, and said where an operator looks. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { cgroute } from '../../deploy/stage/agent.ts';
import { startNode } from '../harness/node.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { SOCK } from '../../deploy/stage/sock.ts';

const ROOM = 1024;

test('without room for a connection that is counted, said in status and once in the log, and over when there is room again', async () => {
  await using node = await startNode('room', { agent: false });
  const [greedy, other] = [await node.addPod({ name: 'greedy' }), await node.addPod({ name: 'other' })];
  const config = node.sandbox.file('config.yaml');
  writeFileSync(config, `sweepSeconds: 1\nmaxConnections: ${ROOM}\nmaxConnectionsPerPod: ${ROOM}\n`);
  const agent = await node.startAgent({ args: ['--config', config] });
  const assertFull = async (expected: RegExp | undefined): Promise<void> => {
    const { code, stdout } = await cgroute(node.sandbox, ['status']);
    if (expected === undefined) assert.doesNotMatch(stdout, /^WRONG/m);
    else assert.match(stdout, expected);
    assert.equal(code, expected === undefined ? 0 : 3, stdout);
  };
  await assertFull(undefined);

  const grabbing = node.sandbox.spawn({
    ...greedy.place,
    cmd: SOCK,
    args: ['grab', '8000', node.server.ip4, '8080'],
  });
  const { held, denied } = await grabbing.json<{ held: number; denied: number }>();
  assert.deepEqual([held, denied], [4096 + ROOM, 8000 - 4096 - ROOM]);
  await assertFull(
    new RegExp(
      `^WRONG +connection_overflow_map has no room for more than its ${ROOM} entries; further connections are refused \\(errorDenied\\): see maxConnections$`,
      'm',
    ),
  );
  const said = (name: string) =>
    agent.log().filter(({ msg }) => msg?.startsWith(`pod demo/${name}: connections of this pod`));
  await eventually('it is said of the pod', () => said('greedy').length > 0);
  assert.match(
    said('greedy')[0]?.msg ?? '',
    /are refused \(errorDenied\): the node's map of open connections is full, which has room for 1024 \(maxConnections\)$/,
  );
  for (let n = 0; n < 4; n++) assert.equal(await node.travel(other.place), 'EPERM');
  await eventually('and of the other', () => said('other').length > 0);
  assert.deepEqual([said('greedy').length, said('other').length], [1, 1]);
  assert.equal((await node.podStatus(other)).connections['errorDenied'], 4);

  grabbing.end();
  await grabbing.exit;
  assert.equal(await node.travel(other.place), 'redirected');
  await assertFull(undefined);
});
