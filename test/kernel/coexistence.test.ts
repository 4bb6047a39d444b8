/**
 * Other programs on the same hooks. The kernel runs those of the nearest cgroup
 * first, then its parents'; at one cgroup, in the order of attaching.
 */
import assert from 'node:assert/strict';
import { after, afterEach, test } from 'node:test';
import type { Cgroup } from '../../deploy/stage/cgroup.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';
import { assertDirect, assertFailed, assertRedirected, hold, makeMesh, PORT } from './mesh.ts';
import { at } from '../harness/travel.ts';
import { loadRival } from './rival.ts';

const mesh = await makeMesh('rivals');
const { plane, app, proxy, server, sandbox } = mesh;
const rival = loadRival();
const root: Pick<Cgroup, 'absolute'> = { absolute: sandbox.cgroupRoot };
const out = await mesh.addPod('out', { inMesh: false });
const appServing = await listen(sandbox, app, 'serve', '*', [PORT], '--dual');
plane.captureInbound(app.ip4, app.slot);
plane.captureInbound(app.ip6, app.slot);

after(async () => {
  rival[Symbol.dispose]();
  await mesh[Symbol.asyncDispose]();
});
afterEach(() => plane.nothingLeft());

const FAMILIES = [
  {
    name: 'IPv4',
    of: (host: { ip4: string; ip6: string }) => host.ip4,
    service: '10.96.0.10',
    inward: '10.96.0.20',
  },
  {
    name: 'IPv6',
    of: (host: { ip4: string; ip6: string }) => host.ip6,
    service: 'fd96::10',
    inward: 'fd96::20',
  },
] as const;

for (const { of, service, inward } of FAMILIES) {
  rival.serve({ address: service, port: 80 }, { address: of(server), port: PORT });
  rival.serve({ address: inward, port: 80 }, { address: of(app), port: PORT });
}

for (const { name, of, service, inward } of FAMILIES) {
  const seenBefore = { service: 0, proxy: 0 };
  const look = (): void => {
    seenBefore.service = rival.shown({ address: service, port: 80 });
    seenBefore.proxy = rival.shown({ address: of(proxy), port: 15001 });
  };

  test(`${name}: the proxy is told the service's address, as a load balancer at the root comes after the pods' programs`, async () => {
    using _balancer = rival.attach('balance', root);
    look();
    const [result, counts] = await mesh.counted(() => connect(app, service, 80));
    await assertRedirected(mesh, result, at(service, 80));
    assert.deepEqual(counts, { 'app redirected': 1 });
    assert.equal(rival.shown({ address: service, port: 80 }), seenBefore.service, 'it never saw the service');
    assert.equal(rival.shown({ address: of(proxy), port: 15001 }), seenBefore.proxy + 1, 'it saw the proxy');
  });

  test(`${name}: pods outside the mesh still have the load balancer`, async () => {
    using _balancer = rival.attach('balance', root);
    look();
    const [result, counts] = await mesh.counted(() => connect(out, service, 80));
    await assertDirect(mesh, result, at(of(server), PORT));
    assert.deepEqual(counts, { 'out out': 1 });
    assert.equal(rival.shown({ address: service, port: 80 }), seenBefore.service + 1);
  });

  test(`${name}: a load balancer at the pod's own cgroup comes first, and the proxy is told the backend's address`, async () => {
    using _balancer = rival.attach('balance', app.podCgroup);
    look();
    const [result] = await mesh.counted(() => connect(app, service, 80));
    await assertRedirected(mesh, result, at(of(server), PORT));
    assert.equal(rival.shown({ address: service, port: 80 }), seenBefore.service + 1);
    assert.equal(
      rival.shown({ address: of(proxy), port: 15001 }),
      seenBefore.proxy,
      'it did not see the proxy',
    );
  });

  test(`${name}: for a host process a load balancer attached earlier at the root comes first, one attached later does not`, async () => {
    const host = mesh.hostProcess();
    {
      using _later = rival.attach('balance', root);
      const [result, counts] = await mesh.counted(() => connect(host, inward, 80));
      // Ours saw the service, which is nobody's address.
      await assertDirect({ serving: appServing }, result, at(of(app), PORT));
      assert.deepEqual(counts, { 'none hostUntouched': 1 });
    }
    let earlier: Disposable | undefined;
    await using other = await makeMesh('earlier', {
      beforeAttach: (sandboxRoot) => (earlier = rival.attach('balance', sandboxRoot)),
    });
    using _earlier = earlier;
    assert.equal(of(other.server), of(server));
    other.plane.captureInbound(of(other.app), other.app.slot);
    // The backend's address is the first mesh's too: both give them out in one order.
    const result = await connect(other.hostProcess(), inward, 80);
    await assertRedirected(other, result, at(of(other.app), PORT), 15006);
    assert.deepEqual(other.plane.counters(other.app.slot), { inboundRedirected: 1 });
    // For pods nothing is different: theirs are nearer than the root.
    await assertRedirected(other, await connect(other.app, service, 80), at(service, 80));
    await other.plane.nothingLeft();
  });

  test(`${name}: another BPF program on the same hook, before and after ours: what it denies is denied, and nothing is left of it`, async () => {
    rival.deny({ address: of(server), port: PORT + 1 });
    rival.deny({ address: of(proxy), port: 15001 });
    {
      using _nearer = rival.attach('deny', app.podCgroup);
      assertFailed(await connect(app, of(server), PORT + 1), 'EPERM');
      await assertRedirected(mesh, await connect(app, of(server), PORT), at(of(server), PORT));
    }
    using _farther = rival.attach('deny', root);
    const [denied, counts] = await mesh.counted(() => connect(app, of(server), PORT));
    assertFailed(denied, 'EPERM');
    assert.deepEqual(counts, { 'app redirected': 1 });
    assertFailed(await connect(mesh.hostProcess(), of(server), PORT + 1), 'EPERM');
    await assertDirect(mesh, await connect(mesh.hostProcess(), of(server), PORT), at(of(server), PORT));
  });

  test(`${name}: a program that sends our redirection elsewhere is believed: the true peer is shown, and nothing is left`, async () => {
    rival.serve({ address: of(proxy), port: 15001 }, { address: of(server), port: PORT });
    using _balancer = rival.attach('balance', root);
    try {
      const held = await hold(sandbox, app, of(server), 4711);
      assert.ok(held.result.ok, JSON.stringify(held.result));
      assert.equal(held.result.peer, at(of(server), PORT));
      assert.match(held.result.reply, /^server /);
      assert.equal(plane.leftovers().originals, 0);
      await held.end();
    } finally {
      rival.serve({ address: of(proxy), port: 15001 }, { address: of(proxy), port: 15001 });
    }
  });
}
