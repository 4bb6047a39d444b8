/** Whose connection it is: by the pod's cgroup and UID, however they come, go and are named. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import {
  CGROUP_STYLES,
  type NodePod,
  type PodOptions,
  type TestNode,
  containerId,
  newUid,
  startNode,
} from '../harness/node.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { type Connected, SOCK, connect, listen, sock } from '../../deploy/stage/sock.ts';

const OUT = { 'istio.io/dataplane-mode': 'none' };

describe('a pod is known', () => {
  let node: TestNode;
  before(async () => {
    node = await startNode('identity');
  });
  after(() => node?.[Symbol.asyncDispose]());

  /** A pod that is listed, runs, and answers on port 80. */
  async function serving(options: PodOptions): Promise<NodePod> {
    const pod = await node.addPod(options);
    await listen(node.sandbox, { netns: pod.host.netns }, 'serve', '*', [80], '--dual');
    return pod;
  }
  const inbound = (pod: NodePod): Promise<string> =>
    node.travel(node.hostPlace, { to: { ip: pod.host.ip4, port: 80 } });
  /** Waits until the agent has an entry for the latest cgroup of the pod. */
  const seen = (pod: NodePod): Promise<unknown> =>
    eventually(`cgroup ${pod.cgroup.path} is known`, () => hasEntry(pod.cgroup.id));
  const hasEntry = async (id: bigint): Promise<boolean> =>
    (await node.entries('cgroup_info_map')).some(({ key }) => String(key) === String(id));

  for (const style of CGROUP_STYLES) {
    test(`by a cgroup of the style ${style}`, async () => {
      const pod = await node.addPod({ name: style, style });
      await node.apply();
      await seen(pod);
      assert.equal(await node.travel(pod.place), 'redirected');
      assert.ok((await node.podStatus(pod)).cgroups.some(({ path }) => path === pod.cgroup.path));
    });
  }

  test('and the monitor beside its container is not taken for it', async () => {
    const pod = await node.addPod({ name: 'monitored', style: 'crio' });
    const conmon = node.sandbox.cgroup(
      `${dirname(pod.cgroup.path)}/crio-conmon-${containerId('monitored')}.scope`,
    );
    await node.apply();
    await seen(pod);
    assert.equal(await node.travel(pod.place), 'redirected');
    await eventually('the monitor is known', () => hasEntry(conmon.id));
    assert.equal(await node.travel({ cgroup: conmon, netns: node.network.gateway.netns }), 'direct');
  });

  test('with its cgroup before the API object', async () => {
    const pod = await node.addPod({ name: 'late', listed: false });
    await seen(pod);
    const before = (await node.status()).host['unknownAllowed'] ?? 0;
    assert.equal(await node.travel(pod.place), 'direct');
    const { unknown, host } = await node.status();
    assert.ok(
      unknown.some(({ id, path }) => id === String(pod.cgroup.id) && path === pod.cgroup.path),
      JSON.stringify(unknown),
    );
    assert.equal(host['unknownAllowed'], before + 1);
    node.manifest.pod(pod.object);
    await node.apply();
    assert.equal(await node.travel(pod.place), 'redirected');
    assert.deepEqual((await node.status()).unknown, []);
  });

  test('with its API object before the cgroup', async () => {
    const pod = await node.addPod({ name: 'early', running: false });
    await node.apply();
    assert.deepEqual((await node.podStatus(pod)).cgroups, []);
    pod.startContainer();
    await seen(pod);
    assert.equal(await node.travel(pod.place), 'redirected');
  });

  test('at once in each new container, and in what runs nested in one', async () => {
    const pod = await node.addPod({ name: 'restarting', style: 'systemd' });
    const victim = await node.addPod({ name: 'victim', labels: OUT });
    await node.apply();
    await seen(pod);
    const podDirectory = dirname(pod.cgroup.absolute);
    for (let n = 0; n < 5; n++) {
      const directory = `${podDirectory}/cri-containerd-${containerId(`restarting again ${n}`)}.scope`;
      const result = await sock<Connected>(
        { netns: pod.host.netns },
        'first',
        '--mkdir',
        directory,
        node.server.ip4,
        8080,
      );
      assert.ok(result.ok && result.reply.includes(node.proxyPod.host.ip4), JSON.stringify(result));
    }
    // A name made inside a pod never grants another pod's identity.
    const fake = node.sandbox.cgroup(
      `${pod.cgroup.path}/kubepods/burstable/pod${victim.uid}/${containerId('fake')}`,
    );
    assert.equal(await node.travel({ cgroup: fake, netns: pod.host.netns }), 'redirected');
    await node.apply();
    assert.equal(await node.travel({ cgroup: fake, netns: pod.host.netns }), 'redirected');
    assert.equal(await node.travel(victim.place), 'direct');
  });

  test('by its new id: a cgroup deleted and made again under the same path', async () => {
    const pod = await node.addPod({ name: 'again' });
    await node.apply();
    await seen(pod);
    const [path, id] = [pod.cgroup.path, pod.cgroup.id];
    removeCgroup(dirname(pod.cgroup.absolute));
    const remade = node.sandbox.cgroup(path);
    assert.notEqual(remade.id, id);
    const { pods } = await node.until('the new cgroup is known', (status) =>
      status.pods.some(({ cgroups }) => cgroups.some((cgroup) => cgroup.id === String(remade.id))),
    );
    assert.ok(
      !pods.some(({ cgroups }) => cgroups.some((cgroup) => cgroup.id === String(id))),
      'the old one is forgotten',
    );
    assert.equal(await node.travel({ cgroup: remade, netns: pod.host.netns }), 'redirected');
  });

  test('by its address in its own network namespace where the manifest has none', async () => {
    const pod = await serving({ name: 'addressless', ips: [] });
    await node.apply();
    await seen(pod);
    assert.deepEqual((await node.podStatus(pod)).ips, []);
    assert.equal(await inbound(pod), 'direct');
    node.sandbox.spawn({ ...pod.place, cmd: 'sleep', args: ['1000'] });
    await node.until(
      'its addresses are found',
      ({ pods }) => pods.find(({ uid }) => uid === pod.uid)?.ips.length === 2,
    );
    assert.deepEqual((await node.podStatus(pod)).ips, [pod.host.ip4, pod.host.ip6]);
    assert.equal(await inbound(pod), 'inbound');
    const itself = await connect(pod.place, pod.host.ip4, 80);
    assert.ok(itself.ok && itself.reply.startsWith('server'));
    assert.equal((await node.podStatus(pod)).connections['local'], 1);
  });

  test('by the address where its oldest process is, not by one that a process of it has made up', async () => {
    const pod = await node.addPod({ name: 'made-up', ips: [] });
    await node.apply();
    await seen(pod);
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
    const early = await serving({ name: 'ip-early', running: false });
    await node.apply();
    assert.equal(
      await inbound(early),
      'inbound',
      'what dials it comes by the proxy from its first moment on',
    );
    early.startContainer();
    await seen(early);
    assert.equal(await inbound(early), 'inbound');

    const late = await serving({ name: 'ip-late', ips: [] });
    await node.apply();
    await seen(late);
    assert.equal(await inbound(late), 'direct', 'nobody knows that it is dialled');
    node.manifest.change(late.uid, { ips: [late.host.ip4] });
    await node.apply();
    assert.deepEqual([await inbound(late), await node.travel(late.place)], ['inbound', 'redirected']);
    // What it calls is its own address from then on, too.
    const itself = await connect(late.place, late.host.ip4, 80);
    assert.ok(itself.ok && itself.reply.startsWith('server'));
    assert.equal((await node.podStatus(late)).connections['local'], 1);
  });

  test("and the addresses of the host's namespace are not taken for its own", async () => {
    const pod = await node.addPod({ name: 'hostile', ips: [] });
    node.sandbox.spawn({ cgroup: pod.cgroup, cmd: 'sleep', args: ['1000'] });
    await node.apply();
    await seen(pod);
    assert.deepEqual((await node.podStatus(pod)).ips, []);
  });

  test("as the newest of those that claim an address: IP reused by a new pod before the old one's delete event", async () => {
    const old = await serving({ name: 'old', created: '2026-01-01T00:00:00Z' });
    await node.apply();
    assert.equal(await inbound(old), 'inbound');
    const successor = await node.addPod({
      name: 'new',
      host: old.host,
      labels: OUT,
      created: '2026-01-01T00:00:09Z',
    });
    await node.apply();
    assert.equal(await inbound(old), 'direct', 'the address is that of the new pod, which is out');
    assert.deepEqual(
      [await node.travel(old.place), await node.travel(successor.place)],
      ['redirected', 'direct'],
    );
    node.manifest.remove(old.uid);
    await node.apply();
    assert.equal(await inbound(old), 'direct');
    node.manifest.change(successor.uid, { labels: {} });
    await node.apply();
    assert.equal(await inbound(old), 'inbound');
    assert.equal((await node.podStatus(successor)).connections['inboundRedirected'], 1);
  });

  test('and a completed pod still listed has no claim to its address', async () => {
    const ended = await serving({ name: 'ended', phase: 'Succeeded', created: '2026-01-01T00:00:09Z' });
    const next = await node.addPod({ name: 'next', host: ended.host, created: '2026-01-01T00:00:00Z' });
    await node.apply();
    assert.equal(await inbound(next), 'inbound');
    assert.equal((await node.podStatus(next)).connections['inboundRedirected'], 1);
    assert.equal(await node.travel(ended.place), 'direct');
  });

  test('by its UID: a StatefulSet pod made again under the same name with a new UID', async () => {
    const first = await node.addPod({ name: 'db-0', labels: OUT });
    await node.apply();
    const second = await node.addPod({
      name: 'db-0',
      style: 'crio',
      uid: newUid(),
      namespace: 'demo',
      host: first.host,
    });
    node.manifest.remove(first.uid);
    node.manifest.write();
    await node.apply();
    await seen(second);
    assert.deepEqual(
      [await node.travel(first.place), await node.travel(second.place)],
      ['direct', 'redirected'],
    );
    removeCgroup(dirname(first.cgroup.absolute));
    const { pods } = await node.until(
      'the first is forgotten',
      (status) => !status.pods.some(({ uid }) => uid === first.uid),
    );
    assert.equal(pods.find(({ name }) => name === 'db-0')?.uid, second.uid);
    assert.equal(await node.travel(second.place), 'redirected');
  });

  test('by its own UID when it claims to be a static pod that it is not', async () => {
    const annotations = { 'kubernetes.io/config.hash': randomBytes(16).toString('hex') };
    const pod = await node.addPod({ name: 'pretender', annotations });
    await node.apply();
    await seen(pod);
    assert.equal(await node.travel(pod.place), 'redirected');
    node.manifest.change(pod.uid, { labels: OUT });
    await node.apply();
    assert.equal(await node.travel(pod.place), 'direct', 'a label still takes effect');
    assert.equal((await node.status()).pods.filter(({ name }) => name === 'pretender').length, 1);
  });

  test('and a loopback or link-local address in its status is taken for none', async () => {
    const pod = await node.addPod({ name: 'nowhere', ips: ['127.0.0.1', 'fe80::1'] });
    await node.apply();
    await seen(pod);
    assert.deepEqual((await node.podStatus(pod)).ips, []);
    node.sandbox.spawn({ ...pod.place, cmd: 'sleep', args: ['1000'] });
    await node.until(
      'its own are found',
      ({ pods }) => pods.find(({ uid }) => uid === pod.uid)?.ips.length === 2,
    );
    assert.deepEqual((await node.podStatus(pod)).ips, [pod.host.ip4, pod.host.ip6]);
  });

  test('by the hash of its configuration: static pods, and not if two claim that', async () => {
    const hash = randomBytes(16).toString('hex');
    const annotations = { 'kubernetes.io/config.hash': hash };
    const pod = await node.addPod({ name: 'static', annotations, cgroupUid: hash });
    await node.apply();
    await seen(pod);
    assert.equal(await node.travel(pod.place), 'redirected');
    assert.equal((await node.podStatus(pod)).reason, 'namespace-label');
    const systemd = randomBytes(16).toString('hex');
    const other = await node.addPod({
      name: 'static-systemd',
      style: 'systemd',
      annotations: { 'kubernetes.io/config.hash': systemd },
      cgroupUid: systemd,
    });
    await node.apply();
    await seen(other);
    assert.equal(await node.travel(other.place), 'redirected');

    const claimed = { 'kubernetes.io/config.hash': randomBytes(16).toString('hex') };
    await node.addPod({ name: 'claims', annotations: claimed, running: false });
    const disputed = await node.addPod({
      name: 'claims-too',
      annotations: claimed,
      cgroupUid: claimed['kubernetes.io/config.hash'],
    });
    await node.apply();
    await seen(disputed);
    assert.equal(await node.travel(disputed.place), 'direct');
    assert.ok((await node.status()).unknown.some(({ id }) => id === String(disputed.cgroup.id)));
    removeCgroup(dirname(disputed.cgroup.absolute));
  });

  test("after nested creation in one go, of a kubelet's tree when the agent runs already", async () => {
    for (let n = 0; n < 4; n++) {
      for (const name of ['first', 'second']) {
        const uid = newUid().replaceAll('-', '_');
        const slices = `late-${n}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice`;
        const cgroup = node.sandbox.cgroup(
          `${slices}/kubelet-kubepods-burstable-pod${uid}.slice/cri-containerd-${containerId(uid)}.scope`,
        );
        await eventually(`the ${name} cgroup in tree ${n} is known`, () => hasEntry(cgroup.id));
      }
    }
  });

  test('until its cgroup goes, also when the manifest has forgotten it', async () => {
    const pod = await serving({ name: 'forgotten' });
    await node.apply();
    node.manifest.remove(pod.uid);
    await node.apply();
    assert.deepEqual([await node.travel(pod.place), await inbound(pod)], ['redirected', 'inbound']);
    node.manifest.namespace('another');
    await node.apply();
    assert.equal(await node.travel(pod.place), 'redirected');
    removeCgroup(dirname(pod.cgroup.absolute));
    await node.until('it is forgotten', ({ pods }) => !pods.some(({ uid }) => uid === pod.uid));
    assert.equal(await hasEntry(pod.cgroup.id), false);
    assert.equal(await inbound(pod), 'direct');
  });
});

test('an unknown pod is refused until it is known, where the configuration says so', async () => {
  await using node = await startNode('deny', { agent: false });
  const config = node.sandbox.file('config.yaml');
  writeFileSync(config, 'unknownPods: deny\n');
  const known = await node.addPod({ name: 'known' });
  await node.startAgent({ args: ['--config', config] });
  const pod = await node.addPod({ name: 'pod', listed: false });
  // Also before the agent has seen the cgroup, as it lies where the kubelet keeps its pods.
  const early = await node.addPod({ name: 'early', listed: false, running: false });
  const directory = early.cgroup.absolute;
  const first = await sock<Connected>({ netns: early.host.netns }, 'first', directory, node.server.ip4, 8080);
  assert.deepEqual([first.ok, 'errno' in first && first.errno], [false, 'EPERM']);
  assert.deepEqual(
    [await node.travel(pod.place), await node.travel(known.place), await node.travel(node.hostPlace)],
    ['EPERM', 'redirected', 'direct'],
  );
  assert.ok(((await node.status()).host['unknownDenied'] ?? 0) >= 2);
  node.manifest.pod(pod.object);
  await node.apply();
  assert.equal(await node.travel(pod.place), 'redirected');
});

test('a static pod whose UID has no known form gains no identity by names inside it, also while no agent runs', async () => {
  await using node = await startNode('odd-uid', { agent: false });
  writeFileSync(node.sandbox.file('config.yaml'), 'unknownPods: deny\n');
  const outside = await node.addPod({ name: 'outside', labels: { 'istio.io/dataplane-mode': 'none' } });
  await (await node.startAgent({ args: ['--config', node.sandbox.file('config.yaml')] })).kill9();
  const own = `pod${outside.uid}`;
  const slice = own.replaceAll('-', '_');
  for (const path of [
    `kubepods/burstable/podmy-own/c/burstable/${own}`,
    `kubepods.slice/kubepods-podmy_own.slice/kubepods-${slice}.slice`,
    `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podmy_own.slice/c/kubepods-burstable-${slice}.slice`,
  ]) {
    assert.equal(
      await node.travel({ cgroup: node.sandbox.cgroup(path), netns: outside.host.netns }),
      'EPERM',
      path,
    );
  }
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
