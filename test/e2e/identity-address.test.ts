/** Whose address it is: the pod's that says so or that has it, and nobody's who makes one up. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { type TestNode, startNode } from '../harness/node.ts';
import { SOCK, connect, listen } from '../../deploy/stage/sock.ts';
import { inbound, seen, serving, sweepsRarely } from './known-pod.ts';
import { MODE } from '../harness/label-names.ts';

const OUT = { [MODE]: 'none' };

describe('a pod is known', () => {
  let node: TestNode;
  before(async () => {
    node = await startNode('address', { agent: false });
    await node.startAgent({ args: sweepsRarely(node) });
  });
  after(() => node?.[Symbol.asyncDispose]());

  test('by its address in its own network namespace where the manifest has none', async () => {
    const pod = await serving(node, { name: 'addressless', ips: [] });
    await node.apply();
    await seen(node, pod);
    assert.deepEqual((await node.podStatus(pod)).ips, []);
    assert.equal(await inbound(node, pod), 'direct');
    node.sandbox.spawn({ ...pod.place, cmd: 'sleep', args: ['1000'] });
    await node.until(
      'its addresses are found',
      ({ pods }) => pods.find(({ uid }) => uid === pod.uid)?.ips.length === 2,
    );
    assert.deepEqual((await node.podStatus(pod)).ips, [pod.host.ip4, pod.host.ip6]);
    assert.equal(await inbound(node, pod), 'inbound');
    const itself = await connect(pod.place, pod.host.ip4, 80);
    assert.ok(itself.ok && itself.reply.startsWith('server'));
    assert.equal((await node.podStatus(pod)).connections['local'], 1);
  });

  test('by the address where its oldest process is, not by one that a process of it has made up', async () => {
    const pod = await node.addPod({ name: 'made-up', ips: [] });
    await node.apply();
    await seen(node, pod);
    node.sandbox.spawn({ ...pod.place, cmd: 'sleep', args: ['1000'] });
    await node.until(
      'its addresses are found',
      ({ pods }) => pods.find(({ uid }) => uid === pod.uid)?.ips.length === 2,
    );
    const script = `ip link set lo up; ip address add ${node.server.ip4}/32 dev lo; echo ready; exec sleep 1000`;
    // In several cgroups, as the agent may come to any of them first.
    for (let count = 0; count < 4; count++) {
      const liar = node.sandbox.spawn({
        cgroup: pod.startContainer(),
        netns: pod.host.netns,
        cmd: 'unshare',
        args: ['-rn', 'sh', '-c', script],
      });
      await liar.line(/ready/);
    }
    await node.agent.kill9();
    await node.startAgent();
    assert.deepEqual((await node.podStatus(pod)).ips, [pod.host.ip4, pod.host.ip6]);
    assert.equal(await node.travel(pod.place), 'redirected');
    assert.equal(await node.travel(node.hostPlace), 'direct');
  });

  test('with its pod IP before and after: in the object before its cgroup is made, or only when it has run for a while', async () => {
    const early = await serving(node, { name: 'ip-early', running: false });
    await node.apply();
    assert.equal(
      await inbound(node, early),
      'inbound',
      'what dials it comes by the proxy from its first moment on',
    );
    early.startContainer();
    await seen(node, early);
    assert.equal(await inbound(node, early), 'inbound');

    const late = await serving(node, { name: 'ip-late', ips: [] });
    await node.apply();
    await seen(node, late);
    assert.equal(await inbound(node, late), 'direct', 'nobody knows that it is dialled');
    node.manifest.change(late.uid, { ips: [late.host.ip4] });
    await node.apply();
    assert.deepEqual([await inbound(node, late), await node.travel(late.place)], ['inbound', 'redirected']);
    // What it calls is its own address from then on, too.
    const itself = await connect(late.place, late.host.ip4, 80);
    assert.ok(itself.ok && itself.reply.startsWith('server'));
    assert.equal((await node.podStatus(late)).connections['local'], 1);
  });

  test("and the addresses of the host's namespace are not taken for its own", async () => {
    const pod = await node.addPod({ name: 'hostile', ips: [] });
    const { netns } = node.hostPlace;
    node.sandbox.spawn({ cgroup: pod.cgroup, netns, cmd: 'sleep', args: ['1000'] });
    await node.apply();
    await seen(node, pod);
    assert.deepEqual((await node.podStatus(pod)).ips, []);
  });

  test("as the newest of those that claim an address: IP reused by a new pod before the old one's delete event", async () => {
    const old = await serving(node, { name: 'old', created: '2026-01-01T00:00:00Z' });
    await node.apply();
    assert.equal(await inbound(node, old), 'inbound');
    const successor = await node.addPod({
      name: 'new',
      host: old.host,
      labels: OUT,
      created: '2026-01-01T00:00:09Z',
    });
    await node.apply();
    assert.equal(await inbound(node, old), 'direct', 'the address is that of the new pod, which is out');
    assert.deepEqual(
      [await node.travel(old.place), await node.travel(successor.place)],
      ['redirected', 'direct'],
    );
    node.manifest.remove(old.uid);
    await node.apply();
    assert.equal(await inbound(node, old), 'direct');
    node.manifest.change(successor.uid, { labels: {} });
    await node.apply();
    assert.equal(await inbound(node, old), 'inbound');
    assert.equal((await node.podStatus(successor)).connections['inboundRedirected'], 1);
  });

  test('and a completed pod still listed has no claim to its address', async () => {
    const ended = await node.addPod({ name: 'ended', phase: 'Succeeded', created: '2026-01-01T00:00:09Z' });
    const next = await serving(node, {
      name: 'next',
      host: ended.host,
      created: '2026-01-01T00:00:00Z',
    });
    await node.apply();
    assert.equal(await inbound(node, next), 'inbound');
    assert.equal((await node.podStatus(next)).connections['inboundRedirected'], 1);
    assert.equal(await node.travel(ended.place), 'direct');
  });

  test('and a loopback or link-local address in its status is taken for none', async () => {
    const pod = await node.addPod({ name: 'nowhere', ips: ['127.0.0.1', 'fe80::1'] });
    await node.apply();
    await seen(node, pod);
    assert.deepEqual((await node.podStatus(pod)).ips, []);
    node.sandbox.spawn({ ...pod.place, cmd: 'sleep', args: ['1000'] });
    await node.until(
      'its own are found',
      ({ pods }) => pods.find(({ uid }) => uid === pod.uid)?.ips.length === 2,
    );
    assert.deepEqual((await node.podStatus(pod)).ips, [pod.host.ip4, pod.host.ip6]);
  });
});

test('dual stack: a pod of two families is redirected in both, and an IPv4 address in an IPv6 socket as IPv4', async () => {
  await using node = await startNode('dual', { agent: false, proxy: false });
  const { host } = node.proxyPod;
  node.manifest.change(node.proxyPod.uid, { ips: [host.ip4, host.ip6] });
  await listen(node.sandbox, node.proxyPod.place, 'proxy', '*', [15001, 15006], '--dual');
  const pod = await node.addPod({ name: 'pod' });
  node.manifest.change(pod.uid, { ips: [pod.host.ip4, pod.host.ip6] });
  await node.startAgent();
  const { ip4, ip6 } = node.server;
  const cases: readonly (readonly [string, string, readonly string[]])[] = [
    [ip4, `${ip4}:8080`, []],
    [ip6, `[${ip6}]:8080`, []],
    [ip4, `${ip4}:8080`, ['-6']],
  ];
  for (const [to, original, flags] of cases) {
    const result = await connect(pod.place, to, 8080, ...flags);
    assert.ok(result.ok, JSON.stringify(result));
    assert.deepEqual(result.reply.split(' ').slice(0, 2), ['proxy', original]);
  }
  for (const own of [pod.host.ip4, pod.host.ip6]) {
    const inbound = await connect(node.hostPlace, own, 9999);
    assert.ok(inbound.ok && inbound.reply.startsWith('proxy '), `to ${own}: ${JSON.stringify(inbound)}`);
    const itself = await connect(pod.place, own, 9999);
    assert.deepEqual(
      [itself.ok, 'errno' in itself && itself.errno],
      [false, 'ECONNREFUSED'],
      `${own} of its own`,
    );
  }
  assert.deepEqual((await node.podStatus(pod)).ips, [pod.host.ip4, pod.host.ip6]);
  const held = node.sandbox.spawn({ ...pod.place, cmd: SOCK, args: ['connect', '--hold', ip6, '8080'] });
  assert.match(await held.line(), /"peer":"\[fd77::[0-9a-f]+\]:8080"/);
});
