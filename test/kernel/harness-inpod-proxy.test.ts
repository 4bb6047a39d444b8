/** The harness's proxy in pods' namespaces: what becomes of connections that come to it. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import type { InpodProxyOptions } from '../../deploy/stage/inpod-proxy.ts';
import { type NetworkHost, ip } from '../../deploy/stage/netns.ts';
import { type Running, eventually, listeningPorts, must } from '../../deploy/stage/process.ts';
import { SOCK, connect, listen } from '../../deploy/stage/sock.ts';
import { type InpodStage, captureByIptables, makeInpodStage } from '../harness/inpod-stage.ts';

async function stageWith(
  pods: readonly string[],
  options: Partial<InpodProxyOptions> = {},
): Promise<
  InpodStage & {
    readonly pods: readonly NetworkHost[];
    readonly proxied: ReturnType<InpodStage['proxy']>;
  }
> {
  const stage = await makeInpodStage('inpod-proxy');
  const hosts: NetworkHost[] = [];
  for (const pod of pods) hosts.push(await stage.network.addHost(pod));
  const proxied = stage.proxy(options);
  await stage.zds.said('hello');
  for (const host of hosts) await stage.zds.send(stage.add(host));
  for (const host of hosts) await proxied.said('listening', host.name);
  return Object.assign(stage, { pods: hosts, proxied });
}

const bracketed = (address: string): string => (address.includes(':') ? `[${address}]` : address);

test('listens in the pod and not where it runs, with its mark, from its own cgroup', async () => {
  await using stage = await stageWith(['pod']);
  const [pod] = stage.pods as [NetworkHost];
  const inside = stage.sandbox.spawn({ cmd: 'sleep', args: ['1000'], netns: pod.netns });
  await eventually('a process is in the pod', () => listeningPorts(inside.pid).has(15008));
  assert.deepEqual(
    [...listeningPorts(inside.pid)].sort((a, b) => a - b),
    [15001, 15006, 15008],
  );
  assert.deepEqual([...listeningPorts(stage.proxied.running.pid)], []);
  const sockets = await must({ cmd: 'ss', args: ['-Htlne', '--cgroup'], netns: pod.netns });
  const cgroup = stage.sandbox.cgroup('inpod-proxy').absolute.split('/').slice(-2).join('/');
  for (const socket of sockets.trim().split('\n')) {
    assert.match(socket, /^LISTEN .*fwmark:0x539 /);
    assert.ok(socket.includes(`/${cgroup} `), socket);
  }
});

test('with IPv4 alone it listens on 0.0.0.0', async () => {
  await using stage = await stageWith(['pod'], { ipv4Only: true });
  const [pod] = stage.pods as [NetworkHost];
  const over6 = await connect({ netns: pod.netns }, pod.ip6, 15001);
  assert.ok(!over6.ok);
  assert.equal(over6.errno, 'ECONNREFUSED');
  const over4 = await connect({ netns: pod.netns }, pod.ip4, 15001);
  assert.ok(!over4.ok);
  assert.equal(over4.step, 'read');
});

test('what is addressed to the proxy itself is refused, and not passed on to it for ever', async () => {
  await using stage = await stageWith(['pod', 'other']);
  const [pod, other] = stage.pods as [NetworkHost, NetworkHost];
  const places = [
    [pod, pod.ip4],
    [pod, pod.ip6],
    [pod, '127.0.0.1'],
    [other, pod.ip4],
    [other, pod.ip6],
  ] as const;
  for (const [from, to] of places) {
    for (const [port, kind] of [[15001, 'outbound'] as const, [15006, 'inbound'] as const]) {
      const result = await connect({ netns: from.netns }, to, port);
      assert.ok(!result.ok);
      assert.equal(result.step, 'read', `${from.name} to ${to}:${port}`);
      const original = `${bracketed(to)}:${port}`;
      const seen = await stage.proxied.connection({ uid: pod.name, kind, original });
      assert.equal(seen.did, 'loop');
      assert.notEqual(seen.error, undefined);
    }
  }
  const { did, outbound, inbound } = await stage.proxied.totals();
  assert.deepEqual([did.loop, outbound, inbound], [10, 5, 5]);
});

for (const family of ['ip4', 'ip6'] as const) {
  test(`passes on what wants out of the mesh, and takes a tunnel to what is in it: ${family}`, async () => {
    await using stage = await stageWith(['client', 'server']);
    const [client, server] = stage.pods as [NetworkHost, NetworkHost];
    await captureByIptables(client);
    const address = server[family];
    const original = `${bracketed(address)}:80`;
    await listen(stage.sandbox, { netns: server.netns }, 'serve', address, [80]);

    const passed = await connect({ netns: client.netns }, address, 80);
    assert.ok(passed.ok, JSON.stringify(passed));
    assert.ok(passed.reply.startsWith(`server ${original} ${bracketed(client[family])}:`), passed.reply);
    const first = await stage.proxied.connection({ kind: 'outbound', did: 'passthrough' });
    assert.deepEqual([first.uid, first.original, first.error], ['client', original, undefined]);
    assert.equal(first.peer, passed.local);

    await stage.proxied.order(`mesh ${client[family]},${address}`);
    const tunnelled = await connect({ netns: client.netns }, address, 80);
    assert.ok(tunnelled.ok, JSON.stringify(tunnelled));
    // Without a spoofed source the application sees the pod's own proxy.
    assert.ok(tunnelled.reply.startsWith(`server ${original} ${bracketed(address)}:`), tunnelled.reply);
    const out = await stage.proxied.connection({ kind: 'outbound', did: 'tunnel' });
    assert.deepEqual([out.uid, out.original], ['client', original]);
    const into = await stage.proxied.connection({ kind: 'tunnel', did: 'delivered' });
    assert.deepEqual([into.uid, into.original, into.source], ['server', original, tunnelled.local]);
    assert.equal((await stage.proxied.totals()).failed, 0);
  });

  test(`the application sees the client's address, where the way back leads to the proxy: ${family}`, async () => {
    await using stage = await stageWith(['client', 'server'], { spoof: true });
    const [client, server] = stage.pods as [NetworkHost, NetworkHost];
    await captureByIptables(server);
    const version = family === 'ip4' ? '-4' : '-6';
    const table = ['table', '100'];
    await must({
      cmd: 'ip',
      args: [version, 'rule', 'add', 'ipproto', 'tcp', 'sport', '80', ...table],
      netns: server.netns,
    });
    await must({
      cmd: 'ip',
      args: [version, 'route', 'add', 'local', 'default', 'dev', 'lo', ...table],
      netns: server.netns,
    });
    await listen(stage.sandbox, { netns: server.netns }, 'serve', server[family], [80]);
    const result = await connect({ netns: client.netns }, server[family], 80);
    assert.ok(result.ok, JSON.stringify([result, stage.proxied.events().at(-1)]));
    assert.ok(result.reply.includes(` ${bracketed(client[family])}:`), result.reply);
  });
}

test('plaintext is refused to a strict port and from a denied address, a tunnel from the latter alone', async () => {
  await using stage = await stageWith(['client', 'server']);
  const [client, server] = stage.pods as [NetworkHost, NetworkHost];
  await captureByIptables(client);
  await captureByIptables(server);
  await listen(stage.sandbox, { netns: server.netns }, 'serve', server.ip4, [80, 81]);
  const ask = async (port: number): Promise<boolean> =>
    (await connect({ netns: client.netns }, server.ip4, port)).ok;

  await stage.proxied.order('strict 81');
  assert.deepEqual([await ask(80), await ask(81)], [true, false]);
  const strict = await stage.proxied.connection({ kind: 'inbound', did: 'denied' });
  assert.equal(strict.original, `${server.ip4}:81`);
  await stage.proxied.order(`mesh ${server.ip4}`);
  assert.equal(await ask(81), true, 'a tunnel passes');
  await stage.proxied.order(`deny ${client.ip4}`);
  assert.deepEqual([await ask(80), await ask(81)], [false, false]);
  await stage.proxied.connection({ kind: 'tunnel', did: 'denied' });
  await stage.proxied.order('mesh ');
  assert.deepEqual([await ask(80), await ask(81)], [false, false], 'plaintext neither');
});

test('what cannot be reached is said, and the client is reset', async () => {
  await using stage = await stageWith(['client']);
  const [client] = stage.pods as [NetworkHost];
  await captureByIptables(client);
  const result = await connect({ netns: client.netns }, stage.node.ip4, 80);
  assert.ok(!result.ok);
  assert.equal(result.step, 'read');
  const failed = await eventually('the failure is said', () =>
    stage.proxied.events().find((event) => event.event === 'failed'),
  );
  assert.deepEqual([failed.step, failed.errno], ['connect', 'ECONNREFUSED']);
});

const descriptors = ({ pid }: Running): number => readdirSync(`/proc/${pid}/fd`).length;

test('1,000 connections at once reach their destinations by the proxy, and leave nothing open', async () => {
  await using stage = await stageWith(['client', 'server'], { quiet: true });
  const [client, server] = stage.pods as [NetworkHost, NetworkHost];
  await captureByIptables(client);
  // Five more addresses, of 200 ports each; whoever answers on them says which it was.
  await ip(server.netns, ...[0, 1, 2, 3, 4].map((index) => `address add 10.77.0.${100 + index}/24 dev eth0`));
  const redirect = '-t nat -A PREROUTING -p tcp -j REDIRECT --to-ports 9';
  await must({ cmd: 'iptables', args: redirect.split(' '), netns: server.netns });
  await listen(stage.sandbox, { netns: server.netns }, 'proxy', '0.0.0.0', [9], '--quiet');

  const before = descriptors(stage.proxied.running);
  const many = stage.sandbox.spawn({
    cmd: SOCK,
    args: ['many', '1000', '10.77.0.100', '1000'],
    netns: client.netns,
  });
  const result = await many.json<{ ok: number; wrong: number; failed: number }>();
  assert.deepEqual([result.ok, result.wrong, result.failed], [1000, 0, 0]);
  const during = await stage.proxied.totals();
  assert.deepEqual([during.open, during.did.passthrough, during.failed], [1000, 1000, 0]);
  assert.equal(descriptors(stage.proxied.running), before + 2000);
  many.end();
  await eventually('all have ended', async () => (await stage.proxied.totals()).open === 0);
  assert.equal(descriptors(stage.proxied.running), before);
});

test('bytes pass both ways, more than sockets hold, and an end in one direction leaves the other', async () => {
  await using stage = await stageWith(['client', 'server']);
  const [client, server] = stage.pods as [NetworkHost, NetworkHost];
  await captureByIptables(client);
  await stage.proxied.order(`mesh ${server.ip4}`);
  const place = 'const [host, port] = process.argv.slice(1);';
  const echo = `${place} require('node:net').createServer({ allowHalfOpen: true }, (socket) => {
    const parts = [];
    socket.on('data', (part) => parts.push(part));
    socket.on('end', () => socket.end(Buffer.concat(parts)));
  }).listen(port, host, () => console.log('listening'));`;
  const node = (script: string, netns: string): Running =>
    stage.sandbox.spawn({ cmd: process.execPath, args: ['-e', script, server.ip4, '80'], netns });
  await node(echo, server.netns).line(/listening/);
  const ask = `${place} const sent = require('node:crypto').randomBytes(8 << 20); const parts = [];
    const socket = require('node:net').connect({ host, port, allowHalfOpen: true });
    socket.on('data', (part) => parts.push(part));
    socket.on('end', () => console.log(Buffer.concat(parts).equals(sent)));
    socket.end(sent);`;
  assert.equal(await node(ask, client.netns).line(), 'true');
  await stage.proxied.connection({ kind: 'tunnel', did: 'delivered' });
  await eventually('both have ended', async () => (await stage.proxied.totals()).open === 0);
});
