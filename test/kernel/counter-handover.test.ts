/** Counters that are copied to another version's map while the programs go on counting: each connection is in one of the two, and at the end in the new one. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { eventually } from '../../deploy/stage/process.ts';
import { SOCK } from '../../deploy/stage/sock.ts';
import { addCounters, copyCounters } from '../../native/data-plane/map-migration.ts';
import { pinDirectory } from '../../native/pins/pin-directory.ts';
import { maps } from '../../native/programs/maps.ts';
import { openTestPlane } from './data-plane.ts';
import { makeMesh, PORT } from './mesh.ts';

test('what is counted while the counters are copied is neither lost nor counted twice', async () => {
  await using mesh = await makeMesh('counting');
  const { app, plane, server } = mesh;
  using next = openTestPlane(mesh.sandbox, { bpffsRoot: `${mesh.sandbox.bpffs}/next` });
  const [from, to] = [plane, next].map(
    ({ bpffsRoot }) => `${pinDirectory(bpffsRoot).maps}/${maps.counters.name}`,
  ) as [string, string];
  const total = (slot: number, { counters }: Pick<typeof plane, 'counters'>): number =>
    counters(slot).redirected ?? 0;

  // Far apart in the array, so that the second is read long after the first.
  const pods = [app, await mesh.addPod('late', { slot: 4000 })];
  const knocking = pods.map((pod) =>
    mesh.sandbox.spawn({ ...pod, cmd: SOCK, args: ['knock', '2000', server.ip4, String(PORT)] }),
  );
  for (const { slot } of pods) await eventually('it is counted', () => total(slot, plane) > 0);
  const { counters, left } = copyCounters(from, to);
  assert.equal(left, 0);
  const copied = pods.map(({ slot }) => total(slot, next));
  for (const [i, { slot }] of pods.entries()) {
    assert.ok((copied[i] ?? 0) > 0, 'it was copied');
    await eventually('more is counted', () => total(slot, plane) > (copied[i] ?? 0));
  }
  for (const each of knocking) {
    await each.json();
    await each.exit;
  }
  addCounters(from, to, counters);
  for (const { slot } of pods) assert.deepEqual(next.counters(slot), plane.counters(slot));
  assert.deepEqual(next.counters(1), plane.counters(1));
});
