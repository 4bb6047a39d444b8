/** The ways in which programs connect, and in which connections fail: each is redirected, none leaves an entry behind. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { after, afterEach, test } from 'node:test';
import { infoFlag } from '../../native/layout/layouts.ts';
import { ip, sysctl } from '../../deploy/stage/netns.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { connect, listen, sock, SOCK } from '../../deploy/stage/sock.ts';
import { assertFailed, assertRedirected, connectAll, freeze, hold, makeMesh, PORT, seen } from './mesh.ts';
import { at, plain } from '../harness/travel.ts';

/** A counter of TcpExt in a namespace; format of /proc/net/netstat: a line of names, then one of values. */
async function tcpCounter(netns: string, name: string): Promise<number> {
  const lines = (await must({ cmd: 'cat', args: ['/proc/self/net/netstat'], netns })).split('\n');
  const [names = '', values = ''] = lines.filter((line) => line.startsWith('TcpExt:'));
  return Number(values.split(' ')[names.split(' ').indexOf(name)]);
}

const mesh = await makeMesh('client');
const { plane, app, proxy, server } = mesh;
await listen(mesh.sandbox, app, 'serve', '*', [PORT], '--dual');

/** Packets to this address vanish. */
const blackhole = await mesh.network.addHost('blackhole');
for (const tables of ['iptables', 'ip6tables']) {
  await must({ cmd: tables, args: ['-A', 'INPUT', '-p', 'tcp', '-j', 'DROP'], netns: blackhole.netns });
}
/** Here nobody listens. */
const deaf = await mesh.network.addHost('deaf');

after(() => mesh[Symbol.asyncDispose]());
afterEach(async () => {
  plane.setProxy(proxy);
  await plane.nothingLeft();
});

const FAMILIES = [
  { name: 'IPv4', options: [], address: server.ip4, asked: at(server.ip4, PORT), local: app.ip4 },
  { name: 'IPv6', options: [], address: server.ip6, asked: at(server.ip6, PORT), local: app.ip6 },
  {
    name: 'v4-mapped IPv6',
    options: ['--mapped'],
    address: server.ip4,
    asked: at(`::ffff:${server.ip4}`, PORT),
    local: app.ip4,
  },
] as const;

/** Ways to connect, with the address to bind to. */
const WAYS = (local: string): readonly (readonly [what: string, options: readonly string[]])[] => [
  ['non-blocking connect', ['--nonblock']],
  ['io_uring', ['--io-uring']],
  ['a socket that was disconnected before it connects', ['--unconnected-first']],
  ['a socket that connects again', ['--reconnect']],
  ['a bound source address', ['--bind', local]],
  ['the same from a bound address', ['--nonblock', '--bind', at(local, 0)]],
];

for (const { name, options, address, asked, local } of FAMILIES) {
  for (const [what, way] of WAYS(local)) {
    test(`${name}: ${what} is redirected`, async () => {
      const [result, counts] = await mesh.counted(() => connect(app, address, PORT, ...options, ...way));
      await assertRedirected(mesh, result, asked);
      assert.deepEqual(counts, { 'app redirected': way.includes('--reconnect') ? 2 : 1 });
    });
  }

  test(`${name}: a client that has bound its address and port keeps them`, async () => {
    const result = await connect(app, address, PORT, ...options, '--bind', at(local, 41000));
    await assertRedirected(mesh, result, asked);
    assert.ok(result.ok && result.local.endsWith(':41000'), JSON.stringify(result));
  });

  test(`${name}: nothing is left of a connection that the proxy's host refused`, async () => {
    plane.setProxy(deaf);
    const [result, counts] = await mesh.counted(() => connect(app, address, PORT, ...options));
    assertFailed(result, 'ECONNREFUSED');
    assert.deepEqual(counts, { 'app redirected': 1 });
  });

  test(`${name}: nothing is left of a socket that is refused and tries again, elsewhere or at the same place`, async () => {
    plane.setProxy(deaf);
    const loopback = at(address.includes(':') ? '::1' : '127.0.0.1', PORT);
    const results = await connectAll(
      app,
      ...options,
      '--or',
      at(address, 81),
      '--or',
      at(address, PORT),
      '--or',
      loopback,
      address,
      PORT,
    );
    for (const result of results.slice(0, 3)) assertFailed(result, 'ECONNREFUSED');
    assert.ok(results[3]?.ok, JSON.stringify(results[3]));
  });

  test(`${name}: nothing is left of a connect that does not block and is closed during the handshake`, async () => {
    plane.setProxy(blackhole);
    assertFailed(await connect(app, address, PORT, ...options, '--nonblock', '--timeout', '50'), 'ETIMEDOUT');
  });

  test(`${name}: nothing is left of a handshake that was given up for another`, async () => {
    plane.setProxy(blackhole);
    const loopback = at(address.includes(':') ? '::1' : '127.0.0.1', PORT);
    const results = await connectAll(
      app,
      ...options,
      '--nonblock',
      '--timeout',
      '50',
      '--then',
      at(address, 81),
      '--then',
      loopback,
      address,
      PORT,
    );
    for (const result of results.slice(0, 2)) assertFailed(result, 'ETIMEDOUT');
    assert.ok(results[2]?.ok, JSON.stringify(results[2]));
  });

  test(`${name}: nothing is left of a client that is killed during the handshake`, async () => {
    plane.setProxy(blackhole);
    const running = mesh.sandbox.spawn({
      ...app,
      cmd: SOCK,
      args: ['connect', ...options, address, String(PORT)],
    });
    await eventually('it connects', () => plane.leftovers().connections === 1);
    await running.stop('SIGKILL');
  });

  test(`${name}: nothing is left of clients that connect and close at once`, async () => {
    const results = await Promise.all(
      Array.from({ length: 10 }, () => connect(app, address, PORT, ...options, '--no-read')),
    );
    for (const result of results) assert.ok(result.ok && result.peer === asked, JSON.stringify(result));
    const { errors } = await sock<{ errors: number }>(app, 'bench', ...options, 300, address, PORT);
    assert.equal(errors, 0);
  });
}

/** The kernel gives up after three seconds. */
const CLIENT_MS = 60_000;

test('a SYN that nobody answers times out and leaves nothing', async () => {
  // Linux 6.5; before, there are no linear ones.
  const linear = (count: number): string[] =>
    existsSync('/proc/sys/net/ipv4/tcp_syn_linear_timeouts') ? [`ipv4.tcp_syn_linear_timeouts=${count}`] : [];
  await sysctl(app.netns, 'ipv4.tcp_syn_retries=1', ...linear(0));
  plane.setProxy(blackhole);
  const [result, counts] = await mesh.counted(() => connect(app, server.ip4, PORT, '--timeout', CLIENT_MS));
  await sysctl(app.netns, 'ipv4.tcp_syn_retries=6', ...linear(4));
  assertFailed(result, 'ETIMEDOUT');
  assert.ok(result.ns < CLIENT_MS * 1e6, 'it was the kernel that gave up, not the client');
  assert.deepEqual(counts, { 'app redirected': 1 });
});

test('a proxy without a route to it leaves nothing', async () => {
  plane.setProxy({ ip4: '192.0.2.1', ip6: '2001:db8::1' });
  await ip(app.netns, 'route add unreachable 192.0.2.1', 'route add unreachable 2001:db8::1');
  for (const address of [server.ip4, server.ip6]) {
    const result = await connect(app, address, PORT);
    assert.ok(!result.ok, JSON.stringify(result));
    assert.equal(result.step, 'connect');
  }
});

for (const option of ['--tfo', '--tfo-connect']) {
  test(`TCP Fast Open by ${option}: data in the SYN is redirected with its original destination`, async () => {
    for (const pod of [app, proxy]) await sysctl(pod.netns, 'ipv4.tcp_fastopen=3');
    for (const { address, asked } of FAMILIES.slice(0, 2)) {
      // The first one, at the latest, gets the cookie that the next needs.
      await assertRedirected(mesh, await connect(app, address, PORT, option), asked);
      const before = [
        await tcpCounter(app.netns, 'TCPFastOpenActive'),
        await tcpCounter(proxy.netns, 'TCPFastOpenPassive'),
      ];
      const [result, counts] = await mesh.counted(() => connect(app, address, PORT, option));
      await assertRedirected(mesh, result, asked);
      assert.deepEqual(counts, { 'app redirected': 1 });
      const now = [
        await tcpCounter(app.netns, 'TCPFastOpenActive'),
        await tcpCounter(proxy.netns, 'TCPFastOpenPassive'),
      ];
      assert.deepEqual(
        now,
        before.map((count) => count + 1),
        'the SYN carried data, and the proxy took it',
      );
    }
    await plane.nothingLeft();
    // Filed before the SYN leaves, and nobody answers that.
    for (const [where, errno, ...options] of [
      [deaf, 'ECONNREFUSED'],
      [blackhole, 'ETIMEDOUT', '--nonblock', '--timeout', '50'],
    ] as const) {
      plane.setProxy(where);
      assertFailed(await connect(app, server.ip4, PORT, option, ...options), errno);
      plane.setProxy(proxy);
      await plane.nothingLeft();
    }
  });
}

test('an MPTCP socket is redirected with its original destination, and leaves nothing', {
  skip: !existsSync('/proc/sys/net/mptcp') && 'this kernel is built without MPTCP',
}, async () => {
  for (const { address, options } of FAMILIES) {
    const [result, counts] = await mesh.counted(() => connect(app, address, PORT, '--mptcp', ...options));
    assert.ok(result.ok, JSON.stringify(result));
    assert.equal(result.reply.split(' ')[1], at(address, PORT));
    assert.deepEqual(counts, { 'app redirected': 1 });
  }
  await plane.nothingLeft();
  plane.setProxy(deaf);
  assertFailed(await connect(app, server.ip4, PORT, '--mptcp'), 'ECONNREFUSED');
  await plane.nothingLeft();
  plane.setProxy(blackhole);
  assertFailed(await connect(app, server.ip4, PORT, '--mptcp', '--nonblock', '--timeout', '50'), 'ETIMEDOUT');
});

test('a client that has closed before the proxy accepts it is told apart all the same', async () => {
  await freeze(proxy.cgroup, true);
  const results = [];
  try {
    for (const { address, asked, options } of FAMILIES) {
      const result = await connect(app, address, PORT, ...options, '--no-read');
      assert.ok(result.ok && result.peer === asked, JSON.stringify(result));
      results.push(result);
    }
  } finally {
    await freeze(proxy.cgroup, false);
  }
  for (const [i, { local }] of results.entries()) {
    assert.equal((await seen(mesh.proxying, local)).orig, plain(FAMILIES[i]?.asked ?? ''));
  }
});

test('nothing is left of clients that reset their connections before the proxy accepts them', async () => {
  await freeze(proxy.cgroup, true);
  try {
    assert.equal((await sock<{ errors: number }>(app, 'bench', 50, server.ip4, PORT)).errors, 0);
  } finally {
    await freeze(proxy.cgroup, false);
  }
});

test("the destination of a client whose side stood when the proxy's never did is dropped in the end", async () => {
  // The SYN comes in, its answer goes out, the ACK and all that follows is lost.
  const half = await mesh.addPod('half', { inMesh: false, flags: infoFlag.proxy });
  for (const tables of ['iptables', 'ip6tables']) {
    await must({
      cmd: tables,
      args: ['-A', 'INPUT', '-p', 'tcp', '!', '--syn', '-j', 'DROP'],
      netns: half.netns,
    });
  }
  const listener = await listen(mesh.sandbox, half, 'proxy', '*', [15001], '--dual');
  // So that both sides give up within seconds.
  await sysctl(half.netns, 'ipv4.tcp_synack_retries=1');
  await sysctl(app.netns, 'ipv4.tcp_orphan_retries=1');
  plane.setProxy(half);
  const clients = FAMILIES.map(({ address, options }) =>
    connect(app, address, PORT, ...options, '--timeout', 1000),
  );
  for (const result of await Promise.all(clients)) {
    assertFailed(result, 'ETIMEDOUT');
    assert.ok(!result.ok && result.step === 'read', JSON.stringify(result));
  }
  // Nothing tells that no proxy will come for it, so the agent's sweep ends it.
  await eventually("the clients' sockets are gone", () => plane.leftovers().connections === 0);
  assert.equal(plane.plane.expireOriginals(), 0, 'it is kept for a while');
  assert.equal(plane.plane.expireOriginals(0), 3);
  await plane.nothingLeft();
  assert.deepEqual(listener.accepted(), []);
});

test('an entry lives as long as the socket, not as the process that opened it', async () => {
  const held = await hold(mesh.sandbox, app, server.ip4, PORT);
  assert.deepEqual(plane.leftovers(), { connections: 1, originals: 0 });
  const { alive, peer } = await held.end();
  assert.deepEqual({ alive, peer }, { alive: true, peer: at(server.ip4, PORT) });
});
