/** Many connections at once, equal connections in two places, and a map that is full. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sysctl } from '../harness/netns.ts';
import { eventually, must } from '../harness/process.ts';
import { connect, type Connected, listen, type Place, SOCK } from '../harness/sock.ts';
import { assertFailed, assertRedirected, at, hold, makeMesh, type Mesh, plain, PORT, seen } from './mesh.ts';

interface Many {
  readonly ok: number;
  readonly wrong: number;
  readonly failed: number;
}

/** Opens that many connections, each to a destination of its own; they stay open until `end`. */
function openMany(mesh: Mesh, place: Place, count: number, address: string, ...options: readonly string[]) {
  const running = mesh.sandbox.spawn({ ...place, cmd: SOCK, args: ['many', ...options, String(count), address, '1000'] });
  return {
    result: running.json<Many>(30_000),
    async end() {
      running.end();
      await running.exit;
    },
  };
}

test('20,000 connections open at once have each their own original destination, and leave nothing', async () => {
  await using mesh = await makeMesh('many', { proxyOptions: ['--quiet'] });
  // With few ports left the kernel would search long for a free one.
  await sysctl(mesh.app.netns, 'ipv4.ip_local_port_range=1024 65535', 'ipv4.tcp_tw_reuse=1');
  for (const [count, address, options] of [
    [20_000, '198.18.0.1', []], [4_000, '2001:db8::1', []], [4_000, '198.18.0.1', ['--mapped']],
  ] as const) {
    const [many, counts] = await mesh.counted(async () => {
      const opened = openMany(mesh, mesh.app, count, address, ...options);
      const { ok, wrong, failed } = await opened.result;
      assert.deepEqual({ ok, wrong, failed }, { ok: count, wrong: 0, failed: 0 }, JSON.stringify(await opened.result));
      return opened;
    });
    assert.deepEqual(counts, { 'app redirected': count });
    assert.deepEqual(mesh.plane.leftovers(), { connections: count, originals: 0 });
    await many.end();
    await mesh.plane.nothingLeft(5000);
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

test('without room to remember the destination a connection is refused and counted', async () => {
  await using mesh = await makeMesh('full', { maxEntries: { connection_map: 2 } });
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

/** Drops new connections to the proxy in a namespace, or lets them through again. */
async function delayHandshakes(netns: string, on: boolean): Promise<void> {
  for (const tables of ['iptables', 'ip6tables']) {
    const rule = ['INPUT', '-p', 'tcp', '--dport', '15001', '--syn', '-j', 'DROP'];
    await must({ cmd: tables, args: [on ? '-A' : '-D', ...rule], netns });
  }
}

test('equal connections in two namespaces, each to a proxy of its own on loopback, do not meet', async () => {
  await using mesh = await makeMesh('equal');
  const { plane, proxy, app, server } = mesh;
  const other = await mesh.addPod('other');
  const inside = { cgroup: proxy.cgroup, netns: app.netns };
  const otherInside = { cgroup: proxy.cgroup, netns: other.netns };
  for (const [address, any, proxied] of [['127.0.0.1', '0.0.0.0', server.ip4], ['::1', '::', server.ip6]] as const) {
    const here = await listen(mesh.sandbox, inside, 'proxy', any, [15001]);
    const there = await listen(mesh.sandbox, otherInside, 'proxy', any, [15001]);
    plane.setProxy({ ip4: '127.0.0.1', ip6: '::1' });
    const bind = ['--bind', at(address, 42000)];
    // The first SYN is lost, so that both handshakes are under way at once.
    await delayHandshakes(app.netns, true);
    const slow = connect(app, proxied, 81, ...bind);
    await eventually('the first client has its entry', () => plane.leftovers().connections === 1);
    const quick = await connect(other, proxied, 82, ...bind);
    await delayHandshakes(app.netns, false);
    const both: readonly [Connected, Connected] = [await slow, quick];
    for (const [result, listener, port] of [[both[0], here, 81], [both[1], there, 82]] as const) {
      assert.ok(result.ok, JSON.stringify(result));
      assert.equal(result.local, at(address, 42000));
      assert.equal(result.peer, at(proxied, port));
      assert.equal((await seen(listener, result.local)).orig, at(proxied, port));
    }
    await plane.nothingLeft();
    await Promise.all([here.running.stop('SIGKILL'), there.running.stop('SIGKILL')]);
  }
});

test('a proxy in the pod\'s own namespace is reached by the pod\'s address too', async () => {
  await using mesh = await makeMesh('own');
  const { plane, proxy, app, server } = mesh;
  const listener = await listen(mesh.sandbox, { cgroup: proxy.cgroup, netns: app.netns }, 'proxy', '*', [15001], '--dual');
  plane.setProxy(app);
  for (const [address, own] of [[server.ip4, app.ip4], [server.ip6, app.ip6]] as const) {
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
  const results = await Promise.all([first, second].map(async (mesh, i) => {
    const held = await hold(mesh.sandbox, mesh.app, '192.0.2.1', 81 + i, '--bind', at(mesh.app.ip4, 43000));
    await assertRedirected(mesh, held.result, at('192.0.2.1', 81 + i));
    return held;
  }));
  assert.deepEqual([first, second].map(({ plane }) => plane.leftovers()), [{ connections: 1, originals: 0 }, { connections: 1, originals: 0 }]);
  assert.deepEqual([first, second].map(({ plane }) => plane.counters(first.app.slot)), [{ redirected: 1 }, { redirected: 1 }]);
  for (const held of results) assert.ok((await held.end()).alive);
  const many = [first, second].map((mesh, i) => openMany(mesh, mesh.app, 500, `198.18.${i * 16}.1`));
  for (const { result } of many) assert.deepEqual((({ ok, wrong, failed }) => ({ ok, wrong, failed }))(await result), { ok: 500, wrong: 0, failed: 0 });
  for (const opened of many) await opened.end();
  for (const { plane } of [first, second]) await plane.nothingLeft();
});
