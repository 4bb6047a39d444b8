/** The node's proxy as it comes, goes and moves; and what host processes send to pods. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';
import { BYPASS } from '../harness/label-names.ts';
import { FOR_NOW } from '../harness/for-now.ts';

const isNone = (node: TestNode) =>
  node.until('no proxy is known', ({ proxy: { address } }) => address === null);

describe('what a host process sends', () => {
  let node: TestNode;
  let pod: NodePod;
  let plain: NodePod;
  before(async () => {
    node = await startNode('inbound');
    node.manifest.namespace('plain');
    pod = await node.addPod({ name: 'pod' });
    plain = await node.addPod({ name: 'plain', namespace: 'plain' });
    for (const { host } of [pod, plain])
      await listen(
        node.sandbox,
        { netns: host.netns },
        'serve',
        '*',
        [80, 15008, 15020, 15021, 15090],
        '--dual',
      );
    await node.apply();
  });
  after(() => node?.[Symbol.asyncDispose]());
  const to = ({ host }: NodePod, port = 80): { to: { ip: string; port: number } } => ({
    to: { ip: host.ip4, port },
  });

  test("goes to the proxy's 15006 if the pod is enrolled, and is counted there", async () => {
    assert.equal(await node.travel(node.hostPlace, to(pod)), 'inbound');
    assert.equal(await node.travel(node.hostPlace, to(plain)), 'direct');
    assert.equal((await node.podStatus(pod)).connections['inboundRedirected'], 1);
    assert.equal((await node.podStatus(plain)).connections['inboundRedirected'], 0);
  });

  test('reaches the pod itself if it is a kubelet of any kind', async () => {
    for (const comm of ['kubelet', 'kubelite', 'k3s', 'k3s-server', 'k3s-agent']) {
      assert.equal(
        await node.travel(node.hostPlace, { ...to(pod), flags: ['--comm', comm] }),
        'direct',
        comm,
      );
    }
    for (const comm of ['kubelets', 'kube', 'k3sx', 'curl']) {
      assert.equal(
        await node.travel(node.hostPlace, { ...to(pod), flags: ['--comm', comm] }),
        'inbound',
        comm,
      );
    }
    assert.equal((await node.podStatus(pod)).connections['inboundExempt'], 5);
  });

  test("reaches the proxy's own ports of the pod", async () => {
    for (const port of [15008, 15020, 15021, 15090])
      assert.equal(await node.travel(node.hostPlace, to(pod, port)), 'direct', String(port));
  });

  test('reaches a pod itself that is bypassed inbound', async () => {
    for (const [value, travel] of [
      ['inbound', 'direct'],
      ['outbound', 'inbound'],
      ['enabled', 'direct'],
    ] as const) {
      node.manifest.change(pod.uid, { labels: { [BYPASS]: value } });
      await node.apply();
      assert.equal(await node.travel(node.hostPlace, to(pod)), travel, value);
    }
    node.manifest.change(pod.uid, { labels: {} });
    await node.apply();
  });

  test('elsewhere is left alone, and what pods send to each other goes out by the proxy', async () => {
    assert.equal(await node.travel(node.hostPlace), 'direct');
    assert.equal(await node.travel(pod.place, to(plain)), 'redirected');
    assert.equal(await node.travel(plain.place, to(pod)), 'direct');
  });
});

describe('the proxy', () => {
  let node: TestNode;
  let pod: NodePod;
  const PROXY = { namespace: 'mesh', labels: { app: 'ztunnel' } };
  before(async () => {
    node = await startNode('proxy');
    pod = await node.addPod({ name: 'pod' });
    await node.apply();
  });
  after(() => node?.[Symbol.asyncDispose]());
  /** Only the first proxy, and ready. */
  afterEach(async () => {
    for (const { uid } of extra.splice(0)) node.manifest.remove(uid);
    node.manifest.pod(node.proxyPod.object);
    await node.apply();
    await node.startProxy();
    await isProxy('ztunnel');
    assert.equal(await node.travel(pod.place), 'redirected');
  });
  const isProxy = (name: string) =>
    node.until(`${name} is the proxy`, ({ proxy }) => proxy.pod === `mesh/${name}` && proxy.ready);
  const extra: NodePod[] = [];
  /** Another pod of a proxy, with a HAProxy that {@link TestNode.travel} asks from now on. */
  async function another(
    name: string,
    created: string,
    fields: { readonly ready?: boolean; readonly terminating?: boolean } = {},
  ): Promise<NodePod> {
    const proxy = await node.addPod({ ...PROXY, name, created, ...fields });
    extra.push(proxy);
    await node.proxy.stop();
    await node.startProxy(proxy);
    return proxy;
  }

  test('that neither runs nor is ready has connections refused, and those of others pass', async () => {
    await node.proxy.stop();
    node.manifest.change(node.proxyPod.uid, { ready: false });
    await node.apply();
    await isNone(node);
    assert.deepEqual(
      [
        await node.travel(pod.place),
        await node.travel(node.proxyPod.place),
        await node.travel(node.hostPlace),
      ],
      [FOR_NOW, 'direct', 'direct'],
    );
    const { proxy, pods } = await node.status();
    assert.deepEqual([proxy.address, proxy.pod, proxy.ready], [null, null, false]);
    assert.equal(pods.find(({ uid }) => uid === pod.uid)?.connections['noProxyDenied'], 1);
    node.manifest.change(node.proxyPod.uid, { ready: true });
    await node.startProxy();
    await node.apply();
    await isProxy('ztunnel');
    assert.equal(await node.travel(pod.place), 'redirected');
    await node.proxy.stop();
  });

  test('that is gone from the manifest has connections refused', async () => {
    node.manifest.remove(node.proxyPod.uid);
    await node.apply();
    await isNone(node);
    assert.equal(await node.travel(pod.place), FOR_NOW);
    await node.proxy.stop();
  });

  test('is followed to another pod at another address', async () => {
    const next = await another('ztunnel-next', '2026-01-02T00:00:00Z');
    node.manifest.remove(node.proxyPod.uid);
    await node.apply();
    const { proxy } = await isProxy('ztunnel-next');
    assert.equal(proxy.address, next.host.ip4);
    assert.equal(await node.travel(pod.place), 'redirected');
    await node.proxy.stop();
  });

  test('is followed when its own address changes', async () => {
    const moved = await node.network.addHost('moved');
    await node.proxy.stop();
    node.manifest.change(node.proxyPod.uid, { ips: [moved.ip4] });
    await node.startProxy({ ...node.proxyPod, place: { cgroup: node.proxyPod.cgroup, netns: moved.netns } });
    await node.apply();
    const { proxy } = await isProxy('ztunnel');
    assert.equal(proxy.address, moved.ip4);
    assert.equal(await node.travel(pod.place), 'redirected');
    await node.proxy.stop();
  });

  test('is the newest of those that are ready, and one that leaves only where there is no other', async () => {
    const newer = await another('ztunnel-newer', '2026-01-03T00:00:00Z');
    const idle = node.sandbox.spawn({ ...node.proxyPod.place, cmd: 'sleep', args: ['1000'] });
    await node.apply();
    await isProxy('ztunnel-newer');
    assert.equal(await node.travel(pod.place), 'redirected');
    const addresses: (string | null)[] = [];
    for (const fields of [{ ready: false }, { ready: true, terminating: true }, { terminating: undefined }]) {
      node.manifest.change(newer.uid, fields);
      await node.apply();
      addresses.push((await node.status()).proxy.pod);
    }
    assert.deepEqual(addresses, ['mesh/ztunnel', 'mesh/ztunnel', 'mesh/ztunnel-newer']);
    await idle.stop('SIGTERM');
    await node.proxy.stop();
  });

  test("works on: ztunnel's own traffic, also after its restart under a new cgroup id", async () => {
    await node.proxy.stop();
    const before = node.proxyPod.cgroup.id;
    removeCgroup(node.proxyPod.cgroup.absolute);
    assert.notEqual(node.proxyPod.startContainer().id, before);
    await node.startProxy();
    await isProxy('ztunnel');
    assert.equal(await node.travel(pod.place), 'redirected');
    await node.proxy.stop();
  });

  test('works on when all its cgroups are made again', async () => {
    await node.proxy.stop();
    removeCgroup(dirname(node.proxyPod.cgroup.absolute));
    await node.until('it is not ready', ({ proxy }) => !proxy.ready);
    assert.equal(await node.travel(pod.place), FOR_NOW);
    node.proxyPod.startContainer();
    await node.startProxy();
    await isProxy('ztunnel');
    assert.equal(await node.travel(pod.place), 'redirected');
    await node.proxy.stop();
  });

  test('is not ready before its cgroup has been found', async () => {
    node.manifest.remove(node.proxyPod.uid);
    const next = await node.addPod({ ...PROXY, name: 'ztunnel-early', running: false });
    extra.push(next);
    await node.apply();
    await isNone(node);
    assert.equal(await node.travel(pod.place), FOR_NOW);
    assert.deepEqual((await node.status()).proxy.notTaken, [
      { pod: 'mesh/ztunnel-early', reason: 'matches app=ztunnel; its cgroup has not been found' },
    ]);
    await node.proxy.stop();
    await node.startProxy(next);
    await isProxy('ztunnel-early');
    assert.equal(await node.travel(pod.place), 'redirected');
    await node.proxy.stop();
  });
});

test('where the configuration allows it, connections pass untouched while no proxy is ready', async () => {
  await using node = await startNode('allow', { agent: false });
  const config = node.sandbox.file('config.yaml');
  writeFileSync(config, 'whenProxyDown: allow\nproxy:\n  namespaces: [mesh]\n');
  const pod = await node.addPod({ name: 'pod' });
  await node.startAgent({ args: ['--config', config] });
  assert.equal(await node.travel(pod.place), 'redirected');
  await node.proxy.stop();
  node.manifest.change(node.proxyPod.uid, { ready: false });
  const impostor = await node.addPod({ name: 'impostor', labels: { app: 'ztunnel' } });
  await node.apply();
  await isNone(node);
  assert.equal(await node.travel(pod.place), 'direct');
  assert.equal((await node.podStatus(pod)).connections['noProxyAllowed'], 1);
  assert.equal(
    (await node.podStatus(impostor)).reason,
    'namespace-label',
    'it carries the label in another namespace',
  );
  node.manifest.change(node.proxyPod.uid, { ready: true });
  await node.startProxy();
  await node.apply();
  await node.until('it is the proxy again', ({ proxy }) => proxy.ready);
  assert.equal(await node.travel(pod.place), 'redirected');
  const refused = await connect(pod.place, node.server.ip4, 8081);
  assert.ok(!refused.ok, 'nobody listens there, and the proxy says so');
});
