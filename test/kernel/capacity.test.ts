/** Many connections at once, equal connections in two places, and a map that is full. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sysctl } from '../../deploy/stage/netns.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { connect, listen, type Place, SOCK } from '../../deploy/stage/sock.ts';
import { assertFailed, assertRedirected, freeze, hold, makeMesh, type Mesh, PORT, seen } from './mesh.ts';
import { at, plain } from '../harness/travel.ts';

interface Many {
  readonly ok: number;
  readonly wrong: number;
  readonly failed: number;
}

/** Opens that many connections, each to a destination of its own; they stay open until `end`. */
function openMany(mesh: Mesh, place: Place, count: number, address: string, ...options: readonly string[]) {
  const running = mesh.sandbox.spawn({
    ...place,
    cmd: SOCK,
    args: ['many', ...options, String(count), address, '1000'],
  });
  return {
    result: running.json<Many>(),
    async end() {
      running.end();
      await running.exit;
    },
  };
}

test('20,000 connections open at once, each with its right original destination, leave nothing', async () => {
  await using mesh = await makeMesh('many', { proxyOptions: ['--quiet'] });
  // With few ports left the kernel would search long for a free one.
  await sysctl(mesh.app.netns, 'ipv4.ip_local_port_range=1024 65535', 'ipv4.tcp_tw_reuse=1');
  for (const [count, address, options] of [
    [20_000, '198.18.0.1', []],
    [4_000, '2001:db8::1', []],
    [4_000, '198.18.0.1', ['--mapped']],
  ] as const) {
    const [many, counts] = await mesh.counted(async () => {
      const opened = openMany(mesh, mesh.app, count, address, ...options);
      const { ok, wrong, failed } = await opened.result;
      assert.deepEqual(
        { ok, wrong, failed },
        { ok: count, wrong: 0, failed: 0 },
        JSON.stringify(await opened.result),
      );
      return opened;
    });
    assert.deepEqual(counts, { 'app redirected': count });
    assert.deepEqual(mesh.plane.leftovers(), { connections: count, originals: 0 });
    await many.end();
    await mesh.plane.nothingLeft();
  }
});

test('pods that open many connections at the same time are told apart', async () => {
  await using mesh = await makeMesh('pods', { proxyOptions: ['--quiet'] });
  const pods = [mesh.app, await mesh.addPod('second'), await mesh.addPod('third')];
  const opened = pods.map((pod, i) => openMany(mesh, pod, 1000, `198.18.${i * 16}.1`, '--bind', pod.ip4));
  for (const many of opened) {
    const { ok, wrong, failed } = await many.result;
    assert.deepEqual({ ok, wrong, failed }, { ok: 1000, wrong: 0, failed: 0 });
  }
  await Promise.all(opened.map((many) => many.end()));
  await mesh.plane.nothingLeft();
});

test('a map full: without room to remember the destination a connection is refused and counted', async () => {
  await using mesh = await makeMesh('full', {
    maxEntries: { connection_map: 1, connection_overflow_map: 1 },
  });
  const { app, server } = mesh;
  const first = await hold(mesh.sandbox, app, server.ip4, PORT);
  const second = await hold(mesh.sandbox, app, server.ip6, PORT);
  await assertRedirected(mesh, first.result, at(server.ip4, PORT));
  await assertRedirected(mesh, second.result, at(server.ip6, PORT));
  for (const address of [server.ip4, server.ip6]) {
    const [refused, counts] = await mesh.counted(() => connect(app, address, PORT));
    assertFailed(refused, 'EPERM');
    assert.deepEqual(counts, { 'app errorDenied': 1 });
  }
  await first.end();
  await assertRedirected(mesh, await connect(app, server.ip4, PORT), at(server.ip4, PORT));
  await second.end();
  await mesh.plane.nothingLeft();
});

test('equal 4-tuples in two network namespaces, each to a proxy of its own on loopback, do not meet', async () => {
  await using mesh = await makeMesh('equal');
  const { plane, proxy, app, server } = mesh;
  const other = await mesh.addPod('other');
  const inside = { cgroup: proxy.cgroup, netns: app.netns };
  const otherInside = { cgroup: proxy.cgroup, netns: other.netns };
  for (const [address, wildcard, proxied] of [
    ['127.0.0.1', '0.0.0.0', server.ip4],
    ['::1', '::', server.ip6],
  ] as const) {
    const here = await listen(mesh.sandbox, inside, 'proxy', wildcard, [15001]);
    const there = await listen(mesh.sandbox, otherInside, 'proxy', wildcard, [15001]);
    plane.setProxy({ ip4: '127.0.0.1', ip6: '::1' });
    const bind = ['--bind', at(address, 42000)];
    // Both handshakes are through before either proxy looks.
    await freeze(proxy.cgroup, true);
    const connecting = [connect(app, proxied, 81, ...bind), connect(other, proxied, 82, ...bind)];
    await eventually('both are on their way', () => plane.leftovers().originals === 2);
    const [first, second] = plane.plane.maps.originals.keys();
    assert.ok(
      first && second && first.netns !== 0n && second.netns !== 0n && first.netns !== second.netns,
      'each has its namespace',
    );
    assert.deepEqual({ ...first, netns: 0n, isn: 0 }, { ...second, netns: 0n, isn: 0 }, 'all else is equal');
    await freeze(proxy.cgroup, false);
    const both = await Promise.all(connecting);
    for (const [result, listener, port] of [
      [both[0], here, 81],
      [both[1], there, 82],
    ] as const) {
      assert.ok(result?.ok, JSON.stringify(result));
      assert.equal(result.local, at(address, 42000));
      assert.equal(result.peer, at(proxied, port));
      assert.equal((await seen(listener, result.local)).orig, at(proxied, port));
    }
    await plane.nothingLeft();
    await Promise.all([here.running.stop('SIGKILL'), there.running.stop('SIGKILL')]);
  }
});

test("a proxy in the pod's own namespace is reached by the pod's address too", async () => {
  await using mesh = await makeMesh('own');
  const { plane, proxy, app, server } = mesh;
  const listener = await listen(
    mesh.sandbox,
    { cgroup: proxy.cgroup, netns: app.netns },
    'proxy',
    '*',
    [15001],
    '--dual',
  );
  plane.setProxy(app);
  for (const [address, own] of [
    [server.ip4, app.ip4],
    [server.ip6, app.ip6],
  ] as const) {
    const result = await connect(app, address, PORT);
    assert.ok(result.ok, JSON.stringify(result));
    const { orig, local } = await seen(listener, result.local);
    assert.deepEqual({ orig, local: plain(local) }, { orig: at(address, PORT), local: at(own, 15001) });
  }
  await plane.nothingLeft();
});

test('two data planes on one machine, with equal addresses and ports, do not meet', async () => {
  await using first = await makeMesh('one');
  await using second = await makeMesh('two');
  assert.equal(first.app.ip4, second.app.ip4);
  assert.equal(first.proxy.ip4, second.proxy.ip4);
  const results = await Promise.all(
    [first, second].map(async (mesh, i) => {
      const held = await hold(mesh.sandbox, mesh.app, '192.0.2.1', 81 + i, '--bind', at(mesh.app.ip4, 43000));
      await assertRedirected(mesh, held.result, at('192.0.2.1', 81 + i));
      return held;
    }),
  );
  assert.deepEqual(
    [first, second].map(({ plane }) => plane.leftovers()),
    [
      { connections: 1, originals: 0 },
      { connections: 1, originals: 0 },
    ],
  );
  assert.deepEqual(
    [first, second].map(({ plane }) => plane.counters(first.app.slot)),
    [{ redirected: 1 }, { redirected: 1 }],
  );
  for (const held of results) assert.ok((await held.end()).alive);
  const many = [first, second].map((mesh, i) => openMany(mesh, mesh.app, 500, `198.18.${i * 16}.1`));
  for (const { result } of many)
    assert.deepEqual((({ ok, wrong, failed }) => ({ ok, wrong, failed }))(await result), {
      ok: 500,
      wrong: 0,
      failed: 0,
    });
  for (const opened of many) await opened.end();
  for (const { plane } of [first, second]) await plane.nothingLeft();
});
