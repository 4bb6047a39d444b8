/** Room for connections: a pod gets its share of it; what it is refused is counted, and said where an operator looks. */
import assert from 'node:assert/strict';
import { globSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { cgroute } from '../../deploy/stage/agent.ts';
import { startNode } from '../harness/node.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { freePart } from '../../native/layout/layouts.ts';
import { SOCK } from '../../deploy/stage/sock.ts';

const ROOM = 1024;
/** Of a map that nobody else is in, as what one has is free no more; the node's first connections are not counted. */
const SHARE = Math.ceil(ROOM / (freePart.connections + 1));
const UNCOUNTED = 4096;

test('a pod that takes all that it may have is refused more, and told so once; another goes on, and status says when a map is full', async () => {
  await using node = await startNode('room', { agent: false });
  const [greedy, other] = [await node.addPod({ name: 'greedy' }), await node.addPod({ name: 'other' })];
  const config = node.sandbox.file('config.yaml');
  writeFileSync(config, `sweepSeconds: 1\nmaxConnections: ${ROOM}\nmaxConnectionsPerPod: ${ROOM}\n`);
  const agent = await node.startAgent({ args: ['--config', config] });
  const assertFull = async (expected: RegExp | undefined): Promise<void> => {
    const { code, stdout } = await cgroute(node.sandbox, ['status']);
    // A pod that is refused more is another thing that is wrong.
    if (expected === undefined) assert.doesNotMatch(stdout, /^WRONG .*has no room for more/m);
    else {
      assert.match(stdout, expected);
      assert.equal(code, 3, stdout);
    }
  };
  await assertFull(undefined);

  const grabbing = node.sandbox.spawn({
    ...greedy.place,
    cmd: SOCK,
    args: ['grab', '8000', node.server.ip4, '8080'],
  });
  const { held, denied } = await grabbing.json<{ held: number; denied: number }>();
  assert.deepEqual([held, denied], [UNCOUNTED + SHARE, 8000 - UNCOUNTED - SHARE]);
  const said = (name: string) =>
    agent.log().filter(({ msg }) => msg?.startsWith(`pod demo/${name}: connections of this pod`));
  await eventually('it is said of the pod', () => said('greedy').length > 0);
  assert.equal(
    said('greedy')[0]?.msg,
    `pod demo/greedy: connections of this pod, or from the host to it, are refused (errorDenied): it has ${SHARE} open beside the node's first 4,096, which is what one pod may have while the node has ${SHARE} of the ${ROOM} for which there is room (maxConnections)`,
  );
  for (let n = 0; n < 4; n++) assert.equal(await node.travel(other.place), 'redirected');
  assert.equal((await node.podStatus(other)).connections['errorDenied'] ?? 0, 0);
  assert.deepEqual([said('greedy').length, said('other').length], [1, 0]);
  await assertFull(undefined);

  grabbing.end();
  await grabbing.exit;
  assert.equal(await node.travel(greedy.place), 'redirected');

  // As no pod can fill it, and very many would have to come close.
  const count = globSync(`${node.sandbox.bpffs}/cgroute/*/maps/overflow_count_map`)[0] ?? '';
  const setCount = (entries: number) => {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(BigInt(entries));
    const args = [
      'map',
      'update',
      'pinned',
      count,
      'key',
      '0',
      '0',
      '0',
      '0',
      'value',
      ...Array.from(bytes, String),
    ];
    return must({ cmd: 'bpftool', args });
  };
  await setCount(ROOM);
  await assertFull(
    new RegExp(
      `^WRONG +connection_overflow_map has no room for more than its ${ROOM} entries; further connections are refused \\(errorDenied\\): see maxConnections$`,
      'm',
    ),
  );
  await setCount(0);
  await assertFull(undefined);
});
