/** A proxy that is not what its object says: unready and running, gone, deaf, or at an address that is another's by now. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { after, afterEach, before, describe, test } from 'node:test';
import { cgroute } from '../../deploy/stage/agent.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { type Listener, listen } from '../../deploy/stage/sock.ts';
import { FOR_NOW } from '../harness/for-now.ts';
import { startNode, type TestNode } from '../harness/node.ts';

const PROXY = { namespace: 'mesh', labels: { app: 'ztunnel' } };

async function shown(node: TestNode): Promise<{ readonly code: number | null; readonly first: string }> {
  const { code, stdout } = await cgroute(node.sandbox, ['status']);
  return { code, first: stdout.split('\n', 1)[0]?.replace(/ +/g, ' ') ?? '' };
}

const isNone = (node: TestNode) =>
  node.until('no proxy is known', ({ proxy: { address } }) => address === null);

async function ready(node: TestNode): Promise<readonly [status: number, text: string]> {
  const { status, text } = await node.http('readyz');
  return [status, text];
}

describe('the old address of a proxy', () => {
  let node: TestNode;
  let pod: NodePod;
  let stranger: NodePod;
  let listener: Listener;
  before(async () => {
    node = await startNode('old-address');
    pod = await node.addPod({ name: 'pod' });
    stranger = await node.addPod({
      name: 'stranger',
      namespace: 'mesh',
      created: '2026-02-01T00:00:00Z',
      running: false,
      listed: false,
    });
    listener = await listen(node.sandbox, { netns: stranger.host.netns }, 'serve', '*', [15001], '--dual');
    await node.apply();
    assert.equal(await node.travel(pod.place), 'redirected');
  });
  after(() => node?.[Symbol.asyncDispose]());
  afterEach(async () => {
    node.manifest.remove(stranger.uid);
    node.manifest.pod(node.proxyPod.object);
    await node.apply();
    await node.until('it is the proxy again', ({ proxy }) => proxy.ready);
    assert.equal(await node.travel(pod.place), 'redirected');
    assert.deepEqual(listener.accepted(), [], 'nothing ever came to the stranger');
  });
  const old = (): { ips: string[] } => ({ ips: [stranger.host.ip4] });

  async function refused(reason: RegExp): Promise<void> {
    await isNone(node);
    assert.equal(await node.travel(pod.place), FOR_NOW);
    const { proxy } = await node.status();
    assert.deepEqual([proxy.address, proxy.ready], [null, false]);
    assert.equal(proxy.notTaken.length, 1);
    const [{ pod: name, reason: words } = { pod: '', reason: '' }] = proxy.notTaken;
    assert.equal(name, 'mesh/ztunnel');
    assert.match(words, reason);
    const { code, first } = await shown(node);
    assert.equal(code, 3);
    assert.match(
      first,
      /^WRONG no proxy of this node is known: new connections of 1 enrolled pod are refused/,
    );
  }

  test("that its network namespace contradicts is not published, whoever's it is", async () => {
    node.manifest.change(node.proxyPod.uid, old());
    await node.apply();
    await refused(
      new RegExp(
        `^matches app=ztunnel; its address ${stranger.host.ip4} is not published: its network namespace has ${node.proxyPod.host.ip4},`,
      ),
    );
  });

  test('that a younger pod has is not published, be it in its namespace as well', async () => {
    node.manifest.pod({ ...stranger.object, ips: [node.proxyPod.host.ip4] });
    node.manifest.change(node.proxyPod.uid, { created: '2026-01-01T00:00:00Z' });
    await node.apply();
    await refused(/ it belongs to younger pod mesh\/stranger$/);
    node.manifest.change(stranger.uid, { hostNetwork: true });
    await node.apply();
    await node.until('it is the proxy again', ({ proxy }) => proxy.ready);
    assert.equal(await node.travel(pod.place), 'redirected', "a pod in the host's network claims none");
  });

  test('is not published while no process of the proxy runs: nobody tells whose it is', async () => {
    await node.proxy.stop();
    node.manifest.change(node.proxyPod.uid, old());
    await node.apply();
    await refused(/ no process runs in its cgroup$/);
    await node.startProxy();
  });

  test('is not taken over from an earlier agent', async () => {
    await node.agent.kill9();
    node.manifest.change(node.proxyPod.uid, { ...old(), ready: false });
    node.manifest.write();
    await node.startAgent();
    await isNone(node);
    assert.equal(await node.travel(pod.place), FOR_NOW);
  });
});

describe('a proxy whose Ready is False', () => {
  let node: TestNode;
  let pod: NodePod;
  before(async () => {
    node = await startNode('unready');
    pod = await node.addPod({ name: 'pod' });
    await node.apply();
  });
  after(() => node?.[Symbol.asyncDispose]());
  const unready = async (): Promise<void> => {
    node.manifest.change(node.proxyPod.uid, { ready: false });
    await node.apply();
  };

  test('stays while it runs, as after a restart of the kubelet, and status says so', async () => {
    await unready();
    assert.equal(await node.travel(pod.place), 'redirected');
    const { proxy } = await node.status();
    assert.deepEqual(
      [proxy.address, proxy.pod, proxy.ready, proxy.unready],
      [node.proxyPod.host.ip4, 'mesh/ztunnel', false, 'Ready=False'],
    );
    const { code, first } = await shown(node);
    assert.equal(code, 3);
    assert.match(
      first,
      /^WRONG the proxy mesh\/ztunnel is not ready \(Ready=False\): new connections of 1 enrolled pod are sent there, 1 since 2\d{3}-[-\dT:]+Z$/,
    );
    const metrics = await node.metrics();
    assert.deepEqual([metrics.get('cgroute_proxy_known'), metrics.get('cgroute_proxy_ready')], [1, 0]);
  });

  test('stays for the next agent, too', async () => {
    await node.agent.stop();
    await node.startAgent();
    assert.equal(await node.travel(pod.place), 'redirected');
    assert.equal((await node.status()).proxy.unready, 'Ready=False');
  });

  test('makes room for another that is ready, and is listed with the reason', async () => {
    const next = await node.addPod({ ...PROXY, name: 'ztunnel-next', created: '2025-01-01T00:00:00Z' });
    await node.proxy.stop();
    await node.startProxy(next);
    await node.apply();
    await node.until('the other is the proxy', ({ proxy }) => proxy.pod === 'mesh/ztunnel-next');
    assert.equal(await node.travel(pod.place), 'redirected');
    assert.equal((await shown(node)).code, 0);
    await node.proxy.stop();
    node.manifest.remove(next.uid);
    node.manifest.pod(node.proxyPod.object);
    await node.startProxy();
    await node.apply();
    await node.until('the first is the proxy', ({ proxy }) => proxy.ready);
  });

  test('is none when its process has ended, nor when it is terminating', async () => {
    await unready();
    node.manifest.change(node.proxyPod.uid, { terminating: true });
    await node.apply();
    await isNone(node);
    assert.equal(await node.travel(pod.place), FOR_NOW);
    node.manifest.pod(node.proxyPod.object);
    await node.apply();
    await node.until('it is the proxy again', ({ proxy }) => proxy.ready);
    assert.equal(await node.travel(pod.place), 'redirected');
    await node.proxy.stop();
    await unready();
    await isNone(node);
    assert.equal(await node.travel(pod.place), FOR_NOW);
    assert.match((await node.status()).proxy.notTaken[0]?.reason ?? '', /; no process runs in its cgroup$/);
  });
});

describe('where nobody can connect', () => {
  let node: TestNode;
  let pod: NodePod;
  before(async () => {
    node = await startNode('deaf', { agent: false });
    await startAgent('');
    pod = await node.addPod({ name: 'pod' });
    await node.apply();
    await node.until('all is well', ({ proxy }) => proxy.ready);
    assert.deepEqual(await shown(node), { code: 0, first: 'node node-a' });
    assert.deepEqual(await ready(node), [200, 'ok\n']);
  });
  after(() => node?.[Symbol.asyncDispose]());
  async function startAgent(more: string): Promise<void> {
    const config = node.sandbox.file('config.yaml');
    writeFileSync(config, `sweepSeconds: 1\n${more}`);
    await node.startAgent({ args: ['--config', config] });
  }

  test('as nobody listens on the ports of a proxy that is ready, status and metrics say so', async () => {
    // A process that was there before and stays, as a pause container's: only a look at each sweep tells.
    const idle = node.sandbox.spawn({ ...node.proxyPod.place, cmd: 'sleep', args: ['1000'] });
    await node.until(
      'all is well with it there',
      ({ proxy }) => proxy.ready && proxy.notListening?.length === 0,
    );
    await node.proxy.stop();
    await node.until('it is seen', ({ proxy }) => (proxy.notListening?.length ?? 0) > 0, { ownMs: 30_000 });
    const { ip4 } = node.proxyPod.host;
    const { proxy, conditions } = await node.status();
    assert.deepEqual(
      [proxy.address, proxy.ready, proxy.unready, proxy.notListening],
      [ip4, false, null, [`${ip4}:15001`, `${ip4}:15006`]],
    );
    const words = `nobody listens at ${ip4}:15001, ${ip4}:15006`;
    const [wrong, ...others] = conditions.filter(({ status }) => status !== 'True');
    assert.deepEqual([wrong?.type, wrong?.status, others], ['ProxyServing', 'False', []]);
    assert.match(
      wrong?.message ?? '',
      /^nobody .* of the proxy mesh\/ztunnel: new connections of 1 enrolled pod are sent there, 0 since 2\d{3}-[-\dT:]+Z$/,
    );
    assert.equal(await node.travel(pod.place), 'ECONNREFUSED');
    assert.match((await shown(node)).first, /, 1 since 2/);
    const { code, first } = await shown(node);
    assert.deepEqual([code, first.startsWith(`WRONG ${words}`)], [3, true], first);
    assert.deepEqual(await ready(node), [200, `ok, but ${words}, the node's proxy: see cgroute status\n`]);
    assert.equal((await node.metrics()).get('cgroute_proxy_ports_not_listened'), 2);
    const explained = await cgroute(node.sandbox, ['explain', 'demo/pod']);
    assert.match(explained.stdout, /does not serve as it should: .*NOT LISTENING at /);

    await node.agent.stop();
    const down = await node.status();
    assert.deepEqual(
      [down.proxy.ready, down.proxy.notListening],
      [false, [`${ip4}:15001`, `${ip4}:15006`]],
      'without an agent, too',
    );
    assert.match((await shown(node)).first, new RegExp(`^WRONG ${words.replaceAll('.', '\\.')}`));
    await startAgent('');
    await node.startProxy();
    await node.until('it is heard', ({ proxy: { ready } }) => ready);
    await idle.stop('SIGTERM');
    assert.deepEqual(await shown(node), { code: 0, first: 'node node-a' });
  });

  test('as no proxy is known, status and readyz say so, and how many are refused', async () => {
    node.manifest.remove(node.proxyPod.uid);
    await node.apply();
    await isNone(node);
    for (let i = 0; i < 3; i++) assert.equal(await node.travel(pod.place), FOR_NOW);
    await node.agent.logged(
      'pod demo/pod: connections of this pod, or from the host to it, are refused (noProxyDenied): no proxy of this node is known',
    );
    const wrong =
      'WRONG no proxy of this node is known: new connections of 1 enrolled pod are refused (whenProxyDown: deny), 3 so far';
    assert.deepEqual(await shown(node), { code: 3, first: wrong });
    assert.deepEqual(await ready(node), [
      200,
      'ok, but no proxy of this node is known: see cgroute status\n',
    ]);
    await node.agent.stop();
    assert.deepEqual(await shown(node), { code: 3, first: wrong }, 'without an agent, too');
    node.manifest.pod(node.proxyPod.object);
    node.manifest.write();
    await startAgent('');
    await node.until('it is known', ({ proxy: { ready } }) => ready);
  });

  test('as the proxy has gone while no agent runs, status says so', async () => {
    await node.agent.stop();
    await node.proxy.stop();
    const { code, first } = await shown(node);
    assert.equal(code, 3);
    assert.match(first, /^WRONG the proxy mesh\/ztunnel is not ready \(no process runs in its cgroup\): /);
    await node.startProxy();
    await startAgent('');
    await eventually('all is well', async () => (await shown(node)).code === 0);
  });

  test('a pod that is not the proxy is listed with the reason, and nothing is wrong with that', async () => {
    await node.agent.stop();
    const other = await node.addPod({ name: 'impostor', labels: { app: 'ztunnel' } });
    node.manifest.write();
    await startAgent('proxy:\n  namespaces: [mesh]\n');
    const { proxy } = await node.until('it is listed', (status) => status.proxy.notTaken.length > 0);
    assert.deepEqual(proxy.notTaken, [
      {
        pod: 'demo/impostor',
        reason: 'matches app=ztunnel; namespace demo is not in proxy.namespaces (mesh)',
      },
    ]);
    const explained = await cgroute(node.sandbox, ['explain', 'demo/impostor']);
    assert.match(
      explained.stdout,
      /it is not taken for the node's proxy: matches app=ztunnel; namespace demo is not in proxy\.namespaces \(mesh\)/,
    );
    assert.equal((await shown(node)).code, 0);
    node.manifest.remove(other.uid);
  });
});
