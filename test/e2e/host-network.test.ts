/** What is in the host's network is no pod's, whatever its cgroup: with `unknownPods: deny` the agent and the control plane go on. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { containerId, containerPath, newUid } from '../../deploy/stage/pod-cgroup.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';
import { FOR_NOW } from '../harness/for-now.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import { hasEntry, serving } from './known-pod.ts';

const HASH = '0123456789abcdef0123456789abcdef';

describe('where pods that nobody knows are denied', () => {
  let node: TestNode;
  let args: readonly string[];
  before(async () => {
    node = await startNode('host-network', { agent: false });
    const file = node.sandbox.file('deny.yaml');
    writeFileSync(file, 'unknownPods: deny\nsweepSeconds: 3600\n');
    args = ['--config', file];
    await node.startAgent({ args });
  });
  after(() => node?.[Symbol.asyncDispose]());

  /** The cgroup of a pod that is in no list. */
  const stranger = (uid = newUid()) =>
    node.sandbox.cgroup(containerPath('cgroupfs', uid, containerId(`stranger ${uid}`)));

  test("a new pod in the host's network connects before anybody knows it, also a static one, and its own network's neighbour does not", async () => {
    for (const uid of [newUid(), HASH]) {
      const cgroup = stranger(uid);
      const { netns } = node.hostPlace;
      assert.equal(await node.travel({ cgroup, netns }), 'direct', uid);
      const { host } = await node.addPod({ name: `elsewhere-${uid}`, listed: false });
      assert.equal(await node.travel({ cgroup, netns: host.netns }), FOR_NOW, uid);
    }
  });

  test('it is a process of the host to enrolled pods, too', async () => {
    const pod = await serving(node, { name: 'served' });
    await node.apply();
    await eventually('the pod is known', () => hasEntry(node, pod.cgroup.id));
    const to = { ip: pod.host.ip4, port: 80 };
    assert.equal(await node.travel(node.hostPlace, { to }), 'inbound');
    const known = await node.addPod({ name: 'host-net', hostNetwork: true, host: node.network.gateway });
    await node.apply();
    assert.equal(await node.travel(known.place), 'direct');
    assert.equal(await node.travel(known.place, { to }), 'inbound');
  });

  test('loopback is never denied, in no network and no family', async () => {
    const { host } = await node.addPod({ name: 'unlisted', listed: false });
    const place = { cgroup: stranger(), netns: host.netns };
    await listen(node.sandbox, { netns: host.netns }, 'serve', '*', [80], '--dual');
    for (const [address, ...flags] of [
      ['127.0.0.1'],
      ['127.9.8.7'],
      ['::1'],
      ['127.0.0.1', '--mapped'],
      ['0.0.0.0'],
    ]) {
      const result = await connect(place, address ?? '', 80, ...flags);
      assert.ok(result.ok, `${address} ${flags}: ${JSON.stringify(result)}`);
    }
    assert.equal(await node.travel(place), FOR_NOW);
  });

  test("the agent's own cgroup is known before anything is attached, in whatever network", async () => {
    await node.agent.stop();
    await node.cleanUp();
    const cgroup = stranger();
    const { host } = await node.addPod({ name: 'of-the-agent', listed: false });
    const agent = await node.startAgent({ args, cgroup });
    assert.equal(await node.travel({ cgroup, netns: host.netns }), 'direct');
    assert.equal(await node.travel({ cgroup: stranger(), netns: host.netns }), FOR_NOW);
    await agent.stop();
    // What the earlier agent's programs have marked as unknown meanwhile.
    const later = stranger();
    assert.equal(await node.travel({ cgroup: later, netns: host.netns }), FOR_NOW);
    await node.startAgent({ args, cgroup: later });
    assert.equal(await node.travel({ cgroup: later, netns: host.netns }), 'direct');
  });
});
