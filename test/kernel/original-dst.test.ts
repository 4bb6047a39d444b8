/** SO_ORIGINAL_DST for the proxy, getpeername() and getsockname() for the application. */
import assert from 'node:assert/strict';
import { after, afterEach, test } from 'node:test';
import { infoFlag } from '../../native/layout/layouts.ts';
import { redirectByIptables } from '../harness/iptables-redirect.ts';
import { sysctl } from '../../deploy/stage/netns.ts';
import { eventually, run } from '../../deploy/stage/process.ts';
import { connect, listen, type Listener } from '../../deploy/stage/sock.ts';
import {
  assertDirect,
  assertFailed,
  assertRedirected,
  connectAll,
  hold,
  makeMesh,
  NO_ORIGINAL,
  type Pod,
  PORT,
  type Proxied,
  seen,
} from './mesh.ts';
import { at, plain } from '../harness/travel.ts';

type Lengths = Readonly<Record<string, string | number>>;

const mesh = await makeMesh('orig', { proxyOptions: ['--again', '--lengths'] });
const { plane, app, proxy, server } = mesh;
await listen(mesh.sandbox, app, 'serve', '*', [PORT], '--dual');
const own = await listen(mesh.sandbox, { netns: mesh.network.gateway.netns }, 'serve', '*', [PORT], '--dual');

after(() => mesh[Symbol.asyncDispose]());
afterEach(() => plane.nothingLeft());

async function addProxy(name: string): Promise<Pod> {
  const pod = await mesh.addPod(name, { inMesh: false, flags: infoFlag.proxy });
  plane.plane.attachProxy({ path: pod.podCgroup.absolute, id: pod.podCgroup.id });
  return pod;
}

const proxied = (listener: Listener): Proxied[] => listener.accepted() as Proxied[];

test('listeners of one family learn the original destination by both levels', async () => {
  const single = await addProxy('single');
  const listener4 = await listen(mesh.sandbox, single, 'proxy', '0.0.0.0', [15001], '--level', 'both');
  const listener6 = await listen(mesh.sandbox, single, 'proxy', '::', [15001], '--level', 'both');
  plane.setProxy(single);
  try {
    const over4 = await connect(app, server.ip4, PORT);
    await assertRedirected({ proxying: listener4, proxy: single }, over4, at(server.ip4, PORT));
    const mapped = await connect(app, server.ip4, PORT, '--mapped');
    await assertRedirected({ proxying: listener4, proxy: single }, mapped, at(`::ffff:${server.ip4}`, PORT));
    const over6 = await connect(app, server.ip6, PORT);
    await assertRedirected({ proxying: listener6, proxy: single }, over6, at(server.ip6, PORT));
  } finally {
    plane.setProxy(proxy);
  }
});

test('the original destination is still known after the client has closed', async () => {
  for (const address of [server.ip4, server.ip6]) {
    const held = await hold(mesh.sandbox, app, address, PORT);
    assert.ok(held.result.ok);
    const { local } = held.result;
    const { peer } = await seen(mesh.proxying, local);
    await held.end();
    const { again } = await eventually('the proxy has asked again', () =>
      proxied(mesh.proxying).find((line) => line.peer === peer && line.again !== undefined),
    );
    assert.equal(again, at(address, PORT));
  }
});

test('it is there in the accepted socket alone: no map holds it while the connection is open', async () => {
  const held = await hold(mesh.sandbox, app, server.ip4, PORT);
  assert.deepEqual(plane.leftovers(), { connections: 1, originals: 0 });
  await held.end();
});

test('a proxy whose sockets may hold nothing of others is told all the same, each time that it asks', async (t) => {
  // Linux 6.8 has a limit for each namespace; before, it is the machine's.
  const limit = 'core.optmem_max';
  const { code } = await run({ cmd: 'sysctl', args: [`net.${limit}`], netns: proxy.netns });
  if (code !== 0) return t.skip('this kernel has one limit of such memory for the whole machine');
  await sysctl(proxy.netns, `${limit}=0`);
  try {
    for (const address of [server.ip4, server.ip6]) {
      const held = await hold(mesh.sandbox, app, address, PORT);
      const { orig, otherOrig } = await seen(mesh.proxying, held.result.ok ? held.result.local : '');
      assert.deepEqual(
        [plain(orig ?? ''), plain(otherOrig ?? '')].filter((text) => text !== ''),
        address === server.ip4 ? [at(address, PORT), at(address, PORT)] : [at(address, PORT)],
      );
      assert.equal(plane.leftovers().originals, 1, 'it stays in the map');
      await held.end();
      plane.plane.expireOriginals(0);
    }
  } finally {
    await sysctl(proxy.netns, `${limit}=131072`);
  }
});

test("a buffer that is too short gets the kernel's own answer, a longer one is filled as far as needed", async () => {
  const lengthsOf = async (address: string): Promise<{ lengthsIp: Lengths; lengthsIpv6: Lengths }> => {
    const result = await connect(app, address, PORT);
    assert.ok(result.ok);
    return (await seen(mesh.proxying, result.local)) as Proxied & {
      lengthsIp: Lengths;
      lengthsIpv6: Lengths;
    };
  };
  const over4 = await lengthsOf(server.ip4);
  for (const [short, needed, lengths] of [
    [['0', '4', '15'], 16, over4.lengthsIp],
    [['0', '4', '16', '27'], 28, over4.lengthsIpv6],
  ] as const) {
    for (const length of short) assert.match(String(lengths[length]), NO_ORIGINAL, `${length} bytes`);
    for (const length of [needed, needed + 1, 128, 4096])
      assert.equal(lengths[length] ?? needed, needed, `${length} bytes`);
  }
  const over6 = await lengthsOf(server.ip6);
  for (const length of ['16', '28', '128'])
    assert.match(String(over6.lengthsIp[length]), NO_ORIGINAL, `${length} bytes`);
  for (const length of ['28', '128', '4096']) assert.equal(over6.lengthsIpv6[length], 28, `${length} bytes`);
});

test("a connection that nobody redirected gets the kernel's own answer", async () => {
  for (const address of [proxy.ip4, proxy.ip6]) {
    const [result, counts] = await mesh.counted(() => connect(mesh.hostProcess(), address, 15001));
    assert.ok(result.ok, JSON.stringify(result));
    const { orig, error, otherOrig, otherError } = (await seen(mesh.proxying, result.local)) as Proxied;
    assert.deepEqual({ orig, otherOrig }, { orig: undefined, otherOrig: undefined });
    assert.match(error ?? '', NO_ORIGINAL);
    assert.match(otherError ?? '', NO_ORIGINAL);
    assert.deepEqual(counts, { 'none hostUntouched': 1 });
  }
});

test("where iptables redirected, conntrack's answer comes through; where cgroute did, its own", async () => {
  const nat = await addProxy('nat');
  for (const tool of ['iptables', 'ip6tables'] as const)
    await redirectByIptables(nat.netns, tool, { port: 80 }, 15001);
  const listener = await listen(mesh.sandbox, nat, 'proxy', '*', [15001], '--dual', '--level', 'both');
  const here = mesh.hostProcess(nat.netns);
  const redirected4 = await connect(here, '192.0.2.7', 80);
  assert.ok(redirected4.ok, JSON.stringify(redirected4));
  assert.equal((await seen(listener, redirected4.local)).orig, '192.0.2.7:80');
  const redirected6 = await connect(here, '2001:db8::7', 80);
  assert.ok(redirected6.ok, JSON.stringify(redirected6));
  assert.equal((await seen(listener, redirected6.local)).orig, '[2001:db8::7]:80');

  plane.setProxy(nat);
  try {
    // Conntrack is at work there now, and would name the proxy itself.
    const direct = await connect(mesh.hostProcess(), nat.ip4, 15001);
    assert.ok(direct.ok);
    assert.equal((await seen(listener, direct.local)).orig, at(nat.ip4, 15001));
    for (const address of [server.ip4, server.ip6]) {
      await assertRedirected(
        { proxying: listener, proxy: nat },
        await connect(app, address, PORT),
        at(address, PORT),
      );
    }
  } finally {
    plane.setProxy(proxy);
  }
});

test("a process outside the proxy's cgroup does not get the original destination", async () => {
  const stranger = await mesh.addPod('stranger', { inMesh: false });
  const listener = await listen(mesh.sandbox, stranger, 'proxy', '*', [15001], '--dual');
  plane.setProxy(stranger);
  try {
    const result = await connect(app, server.ip4, PORT);
    assert.ok(result.ok, JSON.stringify(result));
    assert.match((await seen(listener, result.local)).error ?? '', NO_ORIGINAL);
    assert.equal(plane.plane.expireOriginals(0), 1);
  } finally {
    plane.setProxy(proxy);
  }
});

for (const [family, options, local, remote] of [
  ['IPv4', [], { loopback: '127.0.0.1', own: app.ip4 }, { one: server.ip4, two: mesh.network.gateway.ip4 }],
  ['IPv6', [], { loopback: '::1', own: app.ip6 }, { one: server.ip6, two: mesh.network.gateway.ip6 }],
] as const) {
  test(`${family}: the application's own address is the true one`, async () => {
    const result = await connect(app, remote.one, PORT, ...options);
    assert.ok(result.ok);
    assert.ok(result.local.includes(local.own), result.local);
  });

  test(`${family}: a socket that connects again shows each time the peer that it asked for`, async () => {
    const places = [remote.one, local.loopback, remote.two, local.own, remote.one];
    const [results, counts] = await mesh.counted(() =>
      connectAll(app, ...places.slice(1).flatMap((place) => ['--then', at(place, PORT)]), remote.one, PORT),
    );
    assert.deepEqual(
      results.map((result) => result.ok && result.peer),
      places.map((place) => at(place, PORT)),
    );
    assert.deepEqual(
      results.map((result) => result.ok && result.reply.split(' ')[0]),
      ['proxy', 'server', 'proxy', 'server', 'proxy'],
    );
    await assertRedirected(mesh, results[0], at(remote.one, PORT));
    await assertRedirected(mesh, results[2], at(remote.two, PORT));
    await assertRedirected(mesh, results[4], at(remote.one, PORT));
    assert.deepEqual(counts, { 'app redirected': 3, 'app local': 2 });
  });

  test(`${family}: a socket whose first connection was refused shows the peer of its second`, async () => {
    plane.setProxy({ ip4: mesh.network.gateway.ip4, ip6: mesh.network.gateway.ip6 });
    const [refused, loop] = await connectAll(app, '--or', at(local.loopback, PORT), remote.one, PORT);
    plane.setProxy(proxy);
    assertFailed(refused, 'ECONNREFUSED');
    assert.ok(loop?.ok);
    assert.equal(loop.peer, at(local.loopback, PORT));
  });
}

test('a connection that is untouched shows its true peer', async () => {
  const out = await mesh.addPod('out', { inMesh: false });
  await assertDirect(
    { serving: own },
    await connect(out, mesh.network.gateway.ip4, PORT),
    at(mesh.network.gateway.ip4, PORT),
  );
});
