/** How many entries a map has, told without a walk through them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';
import { SOCK } from '../../deploy/stage/sock.ts';
import { openTestPlane } from './data-plane.ts';
import { makeMesh, PORT } from './mesh.ts';

test('the entries of a map are counted, whether none, some or as many as it holds', async () => {
  await using sandbox = await makeSandbox('map-count');
  using plane = openTestPlane(sandbox, { maxEntries: { pod_ip_map: 3000 } });
  const { podAddresses, cgroups } = plane.plane.maps;
  assert.equal(podAddresses.count(), 0);
  const word = (index: number): Uint8Array =>
    Uint8Array.from([...Array<number>(14).fill(0), index >> 8, index & 255]);
  for (let index = 0; index < 3000; index++) {
    podAddresses.set({ word: word(index) }, { slot: 1, hasOptions: 0 });
    if ([0, 1023, 1024, 2047, 2999].includes(index)) assert.equal(podAddresses.count(), index + 1);
  }
  podAddresses.delete({ word: word(7) });
  assert.equal(podAddresses.count(), 2999);
  assert.equal(podAddresses.count(), podAddresses.keys().length);
  assert.equal(cgroups.count(), 0);
});

test('connections beyond the small map are counted by the kernel itself', async () => {
  await using mesh = await makeMesh('map-overflow', {
    proxyOptions: ['--quiet'],
    maxEntries: { connection_map: 100 },
  });
  const { connections, overflowConnections, overflowCount } = mesh.plane.plane.maps;
  const told = (): number[] => [connections.count(), Number(overflowCount.get(0))];
  assert.deepEqual(told(), [0, 0]);
  const running = mesh.sandbox.spawn({
    ...mesh.app,
    cmd: SOCK,
    args: ['many', '250', mesh.server.ip4, String(PORT)],
  });
  const { ok } = await running.json<{ ok: number }>();
  assert.equal(ok, 250);
  assert.deepEqual(told(), [100, 150]);
  assert.equal(overflowConnections.count(), 150);
  running.end();
  await running.exit;
  await mesh.plane.nothingLeft();
  assert.deepEqual(told(), [0, 0]);
});
