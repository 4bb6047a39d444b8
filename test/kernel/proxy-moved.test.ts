/** The node's proxy changes its address or its cgroup while connections are open. */
import assert from 'node:assert/strict';
import { after, afterEach, test } from 'node:test';
import { allBy, dial } from '../harness/dialler.ts';
import { infoFlag } from '../../native/layout/layouts.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';
import { assertFailed, assertRedirected, hold, makeMesh, type Pod, PORT } from './mesh.ts';
import { at } from '../harness/travel.ts';
import { FOR_NOW } from '../harness/for-now.ts';

const mesh = await makeMesh('moved');
const { plane, app, proxy, server, sandbox } = mesh;

after(() => mesh[Symbol.asyncDispose]());
afterEach(async () => {
  plane.setProxy(proxy);
  await plane.nothingLeft();
});

async function addProxy(name: string): Promise<Pod> {
  const pod = await mesh.addPod(name, { inMesh: false, flags: infoFlag.proxy });
  plane.plane.attachProxy({ path: pod.podCgroup.absolute, id: pod.podCgroup.id });
  return pod;
}

const FAMILIES = [
  { name: 'IPv4', address: server.ip4, asked: at(server.ip4, PORT), options: [] },
  { name: 'IPv6', address: server.ip6, asked: at(server.ip6, PORT), options: [] },
  {
    name: 'v4-mapped IPv6',
    address: server.ip4,
    asked: at(`::ffff:${server.ip4}`, PORT),
    options: ['--mapped'],
  },
] as const;

for (const [i, { name, address, asked, options }] of FAMILIES.entries()) {
  test(`${name}: open connections stay with the old proxy, new ones go to the new, and all show the peer that was asked for`, async () => {
    const next = await addProxy(`next-${i}`);
    const proxying = await listen(sandbox, next, 'proxy', '*', [15001], '--dual', '--level', 'both');
    const old = await hold(sandbox, app, address, PORT, ...options);
    await assertRedirected(mesh, old.result, asked);
    plane.setProxy(next);
    const fresh = await hold(sandbox, app, address, PORT, ...options);
    await assertRedirected({ proxying, proxy: next }, fresh.result, asked);
    for (const held of [old, fresh]) {
      const { alive, peer, local } = await held.end();
      assert.deepEqual(
        { alive, peer, local },
        { alive: true, peer: asked, local: held.result.ok && held.result.local },
      );
    }
  });
}

test('a proxy that goes takes nothing along: new connections are refused, an open one still shows its peer', async () => {
  const old = await hold(sandbox, app, server.ip4, PORT);
  plane.setProxy(undefined);
  assertFailed(await connect(app, server.ip4, PORT), FOR_NOW);
  assert.deepEqual((({ alive, peer }) => ({ alive, peer }))(await old.end()), {
    alive: true,
    peer: at(server.ip4, PORT),
  });
});

test('a proxy that is made again in another cgroup, at the old address, is served as before', async () => {
  mesh.proxying.running.kill('SIGKILL');
  await mesh.proxying.running.exit;
  const podCgroup = sandbox.cgroup('kubepods/besteffort/pod-proxy-again');
  const cgroup = sandbox.cgroup(`${podCgroup.path}/container`);
  plane.enrol(podCgroup, {
    slot: proxy.slot,
    inMesh: false,
    flags: infoFlag.proxy,
    ip4: proxy.ip4,
    ip6: proxy.ip6,
  });
  plane.plane.attachProxy({ path: podCgroup.absolute, id: podCgroup.id });
  const proxying = await eventually("the old proxy's port is free", () =>
    listen(
      sandbox,
      { cgroup, netns: proxy.netns },
      'proxy',
      '*',
      [15001, 15006],
      '--dual',
      '--level',
      'both',
    ).catch(() => undefined),
  );
  await assertRedirected({ proxying, proxy }, await connect(app, server.ip4, PORT), at(server.ip4, PORT));
  // Below its pod's cgroup, without an entry of its own, it is the proxy too: it is not sent to itself.
  const [own, counts] = await mesh.counted(() => connect({ cgroup, netns: proxy.netns }, server.ip4, PORT));
  assert.ok(own.ok && own.reply.startsWith('server '), JSON.stringify(own));
  assert.deepEqual(counts, { 'proxy proxy': 1 });
});

test('a client that connects all the time sees no unredirected connection while the proxy moves to and fro', async () => {
  const next = await addProxy('to-and-fro');
  await listen(sandbox, next, 'proxy', '*', [15001], '--dual', '--quiet');
  const loop = dial(sandbox, app, { ip: server.ip4, port: PORT });
  const connections = (): number => plane.counters(app.slot).redirected ?? 0;
  for (let i = 0; i < 20; i++) {
    plane.setProxy(i % 2 === 0 ? next : proxy);
    const before = connections();
    await eventually('it goes on', () => connections() > before + 20);
  }
  const totals = await loop.end();
  assert.deepEqual({ ...totals, errors: {} }, allBy('proxy', totals.total));
});
