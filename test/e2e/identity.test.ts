/** Whose connection it is: by the pod's cgroup and UID, however they come, go and are named. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import { CGROUP_STYLES, containerId, newUid } from '../../deploy/stage/pod-cgroup.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { type Connected, sock } from '../../deploy/stage/sock.ts';
import { hasEntry, inbound, seen, serving, sweepsRarely } from './known-pod.ts';
import { CONFIG_HASH, MODE } from '../harness/label-names.ts';
import { FOR_NOW } from '../harness/for-now.ts';

const OUT = { [MODE]: 'none' };

describe('a pod is known', () => {
  let node: TestNode;
  before(async () => {
    node = await startNode('identity', { agent: false });
    await node.startAgent({ args: sweepsRarely(node) });
  });
  after(() => node?.[Symbol.asyncDispose]());

  for (const style of CGROUP_STYLES) {
    test(`by a cgroup of the style ${style}`, async () => {
      const pod = await node.addPod({ name: style, style });
      await node.apply();
      await seen(node, pod);
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
    await seen(node, pod);
    assert.equal(await node.travel(pod.place), 'redirected');
    await eventually('the monitor is known', () => hasEntry(node, conmon.id));
    assert.equal(await node.travel({ cgroup: conmon, netns: node.network.gateway.netns }), 'direct');
  });

  test('with its cgroup before the API object', async () => {
    const pod = await node.addPod({ name: 'late', listed: false });
    await seen(node, pod);
    const before = (await node.status()).host['unknownDenied'] ?? 0;
    assert.equal(await node.travel(pod.place), FOR_NOW);
    const { unknown, host } = await node.status();
    assert.ok(
      unknown.some(({ id, path }) => id === String(pod.cgroup.id) && path === pod.cgroup.path),
      JSON.stringify(unknown),
    );
    assert.equal(host['unknownDenied'], before + 1);
    node.manifest.pod(pod.object);
    await node.apply();
    assert.equal(await node.travel(pod.place), 'redirected');
    assert.deepEqual((await node.status()).unknown, []);
    assert.ok(
      node.agent
        .log()
        .some(({ msg }) =>
          /^pod demo\/late: nobody knew this pod until now, and \d+ connections of such pods were refused meanwhile \(unknownPods: deny\)$/.test(
            String(msg),
          ),
        ),
    );
  });

  test('with its API object before the cgroup', async () => {
    const pod = await node.addPod({ name: 'early', running: false });
    await node.apply();
    assert.deepEqual((await node.podStatus(pod)).cgroups, []);
    pod.startContainer();
    await seen(node, pod);
    assert.equal(await node.travel(pod.place), 'redirected');
  });

  test('at once in each new container, and in what runs nested in one', async () => {
    const pod = await node.addPod({ name: 'restarting', style: 'systemd' });
    const victim = await node.addPod({ name: 'victim', labels: OUT });
    await node.apply();
    await seen(node, pod);
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
    await seen(node, pod);
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
    await seen(node, second);
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
    const annotations = { [CONFIG_HASH]: randomBytes(16).toString('hex') };
    const pod = await node.addPod({ name: 'pretender', annotations });
    await node.apply();
    await seen(node, pod);
    assert.equal(await node.travel(pod.place), 'redirected');
    node.manifest.change(pod.uid, { labels: OUT });
    await node.apply();
    assert.equal(await node.travel(pod.place), 'direct', 'a label still takes effect');
    assert.equal((await node.status()).pods.filter(({ name }) => name === 'pretender').length, 1);
  });

  test('by the hash of its configuration: static pods, and not if two claim that', async () => {
    const hash = randomBytes(16).toString('hex');
    const annotations = { [CONFIG_HASH]: hash };
    const pod = await node.addPod({ name: 'static', annotations, cgroupUid: hash });
    await node.apply();
    await seen(node, pod);
    assert.equal(await node.travel(pod.place), 'redirected');
    assert.equal((await node.podStatus(pod)).reason, 'namespace-label');
    const systemd = randomBytes(16).toString('hex');
    const other = await node.addPod({
      name: 'static-systemd',
      style: 'systemd',
      annotations: { [CONFIG_HASH]: systemd },
      cgroupUid: systemd,
    });
    await node.apply();
    await seen(node, other);
    assert.equal(await node.travel(other.place), 'redirected');

    const claimed = { [CONFIG_HASH]: randomBytes(16).toString('hex') };
    await node.addPod({ name: 'claims', annotations: claimed, running: false });
    const disputed = await node.addPod({
      name: 'claims-too',
      annotations: claimed,
      cgroupUid: claimed[CONFIG_HASH],
    });
    await node.apply();
    await seen(node, disputed);
    assert.equal(await node.travel(disputed.place), FOR_NOW);
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
        await eventually(`the ${name} cgroup in tree ${n} is known`, () => hasEntry(node, cgroup.id));
      }
    }
  });

  test('until its cgroup goes, also when the manifest has forgotten it', async () => {
    const pod = await serving(node, { name: 'forgotten' });
    await node.apply();
    node.manifest.remove(pod.uid);
    await node.apply();
    assert.deepEqual([await node.travel(pod.place), await inbound(node, pod)], ['redirected', 'inbound']);
    node.manifest.namespace('another');
    await node.apply();
    assert.equal(await node.travel(pod.place), 'redirected');
    removeCgroup(dirname(pod.cgroup.absolute));
    await node.until('it is forgotten', ({ pods }) => !pods.some(({ uid }) => uid === pod.uid));
    assert.equal(await hasEntry(node, pod.cgroup.id), false);
    assert.equal(await inbound(node, pod), 'direct');
  });
});

test('an unknown pod is refused until it is known', async () => {
  await using node = await startNode('deny', { agent: false });
  const known = await node.addPod({ name: 'known' });
  await node.startAgent();
  const pod = await node.addPod({ name: 'pod', listed: false });
  // Also before the agent has seen the cgroup, as it lies where the kubelet keeps its pods.
  const early = await node.addPod({ name: 'early', listed: false, running: false });
  const directory = early.cgroup.absolute;
  const first = await sock<Connected>({ netns: early.host.netns }, 'first', directory, node.server.ip4, 8080);
  assert.deepEqual([first.ok, 'errno' in first && first.errno], [false, FOR_NOW]);
  assert.deepEqual(
    [await node.travel(pod.place), await node.travel(known.place), await node.travel(node.hostPlace)],
    [FOR_NOW, 'redirected', 'direct'],
  );
  assert.ok(((await node.status()).host['unknownDenied'] ?? 0) >= 2);
  node.manifest.pod(pod.object);
  await node.apply();
  assert.equal(await node.travel(pod.place), 'redirected');
});

test('an unknown pod passes the mesh by until it is known, where the configuration says so', async () => {
  await using node = await startNode('allow', { agent: false });
  const config = node.sandbox.file('config.yaml');
  writeFileSync(config, 'unknownPods: allow\n');
  await node.startAgent({ args: ['--config', config] });
  const pod = await node.addPod({ name: 'pod', listed: false });
  await seen(node, pod);
  assert.equal(await node.travel(pod.place), 'direct');
  assert.equal((await node.status()).host['unknownAllowed'], 1);
  node.manifest.pod(pod.object);
  await node.apply();
  assert.equal(await node.travel(pod.place), 'redirected');
  assert.ok(
    node.agent
      .log()
      .some(({ msg }) => /1 connections of such pods passed the mesh by meanwhile/.test(String(msg))),
  );
});

test('a static pod whose UID has no known form gains no identity by names inside it, also while no agent runs', async () => {
  await using node = await startNode('odd-uid', { agent: false });
  const outside = await node.addPod({ name: 'outside', labels: { [MODE]: 'none' } });
  await (await node.startAgent()).kill9();
  const own = `pod${outside.uid}`;
  const slice = own.replaceAll('-', '_');
  for (const path of [
    `kubepods/burstable/podmy-own/c/burstable/${own}`,
    `kubepods.slice/kubepods-podmy_own.slice/kubepods-${slice}.slice`,
    `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podmy_own.slice/c/kubepods-burstable-${slice}.slice`,
  ]) {
    assert.equal(
      await node.travel({ cgroup: node.sandbox.cgroup(path), netns: outside.host.netns }),
      FOR_NOW,
      path,
    );
  }
});
