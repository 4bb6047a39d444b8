/** Maps that all pods share: none takes all of them, and what it has had comes back. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { eventually } from '../../deploy/stage/process.ts';
import { connect, SOCK, type Place } from '../../deploy/stage/sock.ts';
import { openTestPlane } from './data-plane.ts';
import { assertRedirected, freeze, hold, makeMesh, type Mesh, type Pod, PORT, seen } from './mesh.ts';
import { at } from '../harness/travel.ts';

/** Sockets whose connect() fails once all programs have seen it: they take entries, and neither ports nor packets. */
function grab(mesh: Mesh, place: Place, count: number) {
  const running = mesh.sandbox.spawn({
    ...place,
    cmd: SOCK,
    args: ['grab', String(count), mesh.server.ip4, String(PORT)],
  });
  return {
    result: running.json<{ readonly held: number; readonly denied: number }>(),
    async end() {
      running.end();
      await running.exit;
    },
  };
}

async function addPods(mesh: Mesh, count: number): Promise<Pod[]> {
  const pods: Pod[] = [];
  for (let n = 0; n < count; n++) pods.push(await mesh.addPod(`hostile${n}`));
  return pods;
}

test('a pod that opens very many connections gets its share of the room, and the others get theirs', async () => {
  await using mesh = await makeMesh('share', {
    maxEntries: { connection_map: 8, connection_overflow_map: 128 },
    shares: { connections: 16, originals: 64 },
  });
  const { app, plane, server } = mesh;
  const hostile = await mesh.addPod('hostile');
  for (let round = 0; round < 2; round++) {
    const [grabbed, counts] = await mesh.counted(async () => {
      const grabbing = grab(mesh, hostile, 100);
      assert.deepEqual(await grabbing.result, { held: 8 + 16, denied: 76 });
      return grabbing;
    });
    assert.deepEqual(counts, { 'hostile redirected': 24, 'hostile errorDenied': 76 });
    assert.deepEqual(
      [plane.share(hostile.slot), plane.share(app.slot)],
      [
        { connections: 16, originals: 0 },
        { connections: 0, originals: 0 },
      ],
    );
    const held = await Promise.all(
      [server.ip4, server.ip6].map((address) => hold(mesh.sandbox, app, address, PORT)),
    );
    for (const [i, address] of [server.ip4, server.ip6].entries())
      await assertRedirected(mesh, held[i]?.result, at(address, PORT));
    assert.deepEqual(plane.share(app.slot), { connections: 2, originals: 0 });
    for (const each of held) await each.end();
    await grabbed.end();
    await plane.nothingLeft();
    assert.deepEqual(
      [plane.share(hostile.slot), plane.share(app.slot)],
      [
        { connections: 0, originals: 0 },
        { connections: 0, originals: 0 },
      ],
    );
  }
});

test('a pod whose destinations nobody asks for gets its share of the room for them, and the others get theirs', async () => {
  await using mesh = await makeMesh('asked', {
    maxEntries: { original_dst_map: 64 },
    shares: { connections: 64, originals: 4 },
  });
  const { app, plane, proxy, server } = mesh;
  const hostile = await mesh.addPod('hostile');
  await freeze(proxy.cgroup, true);
  const [, counts] = await mesh.counted(async () => {
    for (let n = 0; n < 9; n++) assert.ok((await connect(hostile, server.ip4, PORT, '--no-read')).ok);
  });
  assert.deepEqual(counts, { 'hostile redirected': 9, 'hostile handoffLost': 5 });
  assert.deepEqual(plane.share(hostile.slot), { connections: 0, originals: 4 });
  const connecting = connect(app, server.ip4, PORT);
  await eventually('it is on its way', () => plane.share(app.slot).originals === 1);
  await freeze(proxy.cgroup, false);
  await assertRedirected(mesh, await connecting, at(server.ip4, PORT));
  await plane.nothingLeft();
  assert.deepEqual(
    [plane.share(hostile.slot), plane.share(app.slot)],
    [
      { connections: 0, originals: 0 },
      { connections: 0, originals: 0 },
    ],
  );
  await assertRedirected(mesh, await connect(hostile, server.ip4, PORT), at(server.ip4, PORT));
});

test('however many pods open very many connections, one that does not finds room', async () => {
  const room = 64;
  await using mesh = await makeMesh('all-open', {
    maxEntries: { connection_map: 8, connection_overflow_map: room },
    shares: { connections: room, originals: room },
  });
  const { app, plane, server } = mesh;
  const hostile = await addPods(mesh, 6);
  const grabbing = hostile.map((pod) => grab(mesh, pod, 40));
  for (const each of grabbing) assert.ok((await each.result).denied > 0, 'it has had its share');
  const shares = hostile.map(({ slot }) => plane.share(slot).connections);
  assert.ok(Math.max(...shares) < room / 4, `each has less than a quarter: ${shares.join()}`);
  const held = [server.ip4, server.ip6].map((address) => hold(mesh.sandbox, app, address, PORT));
  await assertRedirected(mesh, (await held[0])?.result, at(server.ip4, PORT));
  await assertRedirected(mesh, (await held[1])?.result, at(server.ip6, PORT));
  for (const each of held) await (await each).end();
  for (const each of grabbing) await each.end();
  await plane.nothingLeft();
});

test('however many pods leave their destinations to be asked for, those of one that does not are told', async () => {
  const room = 64;
  await using mesh = await makeMesh('all-asked', {
    maxEntries: { original_dst_map: room },
    shares: { connections: room, originals: room },
  });
  const { app, plane, proxy, server } = mesh;
  const hostile = await addPods(mesh, 6);
  await freeze(proxy.cgroup, true);
  await Promise.all(
    hostile.map(async (pod) => {
      for (let n = 0; n < 12; n++) assert.ok((await connect(pod, server.ip4, PORT, '--no-read')).ok);
    }),
  );
  const shares = hostile.map(({ slot }) => plane.share(slot).originals);
  assert.ok(Math.max(...shares) <= room / 8, `each has no more than an eighth: ${shares.join()}`);
  for (const { slot } of hostile)
    assert.ok((plane.counters(slot).handoffLost ?? 0) > 0, 'it has had its share');
  const results = [
    await connect(app, server.ip4, PORT, '--no-read'),
    await connect(app, server.ip6, PORT, '--no-read'),
  ];
  await freeze(proxy.cgroup, false);
  for (const [i, address] of [server.ip4, server.ip6].entries()) {
    const result = results[i];
    assert.ok(result?.ok, JSON.stringify(result));
    assert.equal((await seen(mesh.proxying, result.local)).orig, at(address, PORT));
  }
  await plane.nothingLeft();
  assert.equal(plane.plane.maps.originalCount.get(0), 0n);
});

test('destinations that are dropped, as nobody came for them, count no more', async () => {
  await using mesh = await makeMesh('dropped', { shares: { connections: 64, originals: 4 } });
  const { app, plane, proxy, server } = mesh;
  await freeze(proxy.cgroup, true);
  for (let n = 0; n < 4; n++) assert.ok((await connect(app, server.ip4, PORT, '--no-read')).ok);
  assert.deepEqual(plane.share(app.slot).originals, 4);
  assert.equal(plane.plane.expireOriginals(0), 4);
  assert.deepEqual(plane.share(app.slot).originals, 0);
  const late = await connect(app, server.ip4, PORT, '--no-read');
  assert.ok(late.ok);
  await freeze(proxy.cgroup, false);
  assert.equal((await seen(mesh.proxying, late.local)).orig, at(server.ip4, PORT));
});

test('connections of another version, which did not count them, are counted by the next start', async () => {
  const options = {
    maxEntries: { connection_map: 1, connection_overflow_map: 8 },
    shares: { connections: 2, originals: 2 },
  };
  await using mesh = await makeMesh('recount', options);
  const { app, plane, server } = mesh;
  const held = [];
  for (let n = 0; n < 3; n++) held.push(await hold(mesh.sandbox, app, server.ip4, PORT));
  assert.deepEqual(plane.share(app.slot), { connections: 2, originals: 0 });
  plane.plane.maps.shares.set(app.slot, { connections: 0n, originals: 2n });
  using next = openTestPlane(mesh.sandbox, options);
  assert.deepEqual(next.share(app.slot), { connections: 2, originals: 0 });
  for (const each of held) await each.end();
  await plane.nothingLeft();
  assert.deepEqual(next.share(app.slot), { connections: 0, originals: 0 });
});
