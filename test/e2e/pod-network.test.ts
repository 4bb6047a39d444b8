/** Which network namespace is a pod's: known when its first process shows it, across restarts, and true when its sandbox is made anew. */
import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { eventually, type Program, type Running } from '../../deploy/stage/process.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import { sweepsRarely } from './known-pod.ts';

const inodeOf = (netns: string): number => statSync(`/run/netns/${netns}`).ino;

describe("a pod's network", () => {
  let node: TestNode;
  before(async () => {
    node = await startNode('pod-network', { agent: false });
    await node.startAgent({ args: sweepsRarely(node) });
  });
  after(() => node?.[Symbol.asyncDispose]());

  /** What the maps hold of the pod and of its latest container. */
  async function known({ uid, cgroup }: NodePod): Promise<readonly [pod: unknown, container: unknown]> {
    const pods = await node.entries('pod_info_map');
    const pod = pods.find(({ value }) => value['uid'] === uid);
    const cgroups = await node.entries('cgroup_info_map');
    return [pod?.value['netns'], cgroups.find(({ key }) => key === Number(cgroup.id))?.value['netns']];
  }

  async function becomes(pod: NodePod, netns: number): Promise<void> {
    const what = `the pod's network is ${netns}`;
    await eventually(what, async () => (await known(pod)).every((of) => of === netns)).catch(
      async (error: unknown) => assert.fail(`${String(error)}: ${JSON.stringify(await known(pod))}`),
    );
  }

  const run = (place: Pick<Program, 'cgroup' | 'netns'>): Running =>
    node.sandbox.spawn({ ...place, cmd: 'sleep', args: ['1000'] });

  test('is known when its first process shows it, and one in the host’s network shows nothing', async () => {
    const pod = await node.addPod({ name: 'shown' });
    await node.apply();
    run({ cgroup: pod.cgroup, netns: node.hostPlace.netns });
    run({ cgroup: node.sandbox.hostCgroup, netns: pod.host.netns });
    await node.apply();
    await becomes(pod, 0);
    run(pod.place);
    await becomes(pod, inodeOf(pod.host.netns));
    // A container that is made later has it from its first moment on, whoever looks.
    await node.agent.kill9();
    pod.startContainer();
    await becomes(pod, inodeOf(pod.host.netns));
    await node.startAgent({ args: sweepsRarely(node) });
    await becomes(pod, inodeOf(pod.host.netns));
  });

  test('is another one when its sandbox is made anew, with an agent and without', async () => {
    const pod = await node.addPod({ name: 'anew' });
    await node.apply();
    const elsewhere = [await node.network.addHost('anew-1'), await node.network.addHost('anew-2')] as const;
    const inNetwork = (host: (typeof elsewhere)[number]) => run({ cgroup: pod.cgroup, netns: host.netns });
    /** As the kubelet does, a moment later. */
    const told = async ({ ip4, ip6 }: (typeof elsewhere)[number]): Promise<void> => {
      node.manifest.change(pod.uid, { ips: [ip4, ip6] });
      await node.apply();
    };
    run(pod.place);
    await becomes(pod, inodeOf(pod.host.netns));
    const first = pod.cgroup;
    removeCgroup(first.absolute);
    pod.startContainer();
    inNetwork(elsewhere[0]);
    // Until the status says an address of it, nobody believes it; nothing is taken for nested meanwhile.
    assert.equal(await node.travel({ cgroup: pod.cgroup, netns: elsewhere[0].netns }), 'redirected');
    await told(elsewhere[0]);
    await becomes(pod, inodeOf(elsewhere[0].netns));
    await node.agent.kill9();
    removeCgroup(pod.cgroup.absolute);
    pod.startContainer();
    assert.equal((await known(pod))[1], 0, 'a first container of a pod is in a network that nobody has seen');
    pod.startContainer();
    inNetwork(elsewhere[1]);
    assert.equal((await known(pod))[1], 0);
    await node.startAgent({ args: sweepsRarely(node) });
    assert.equal(await node.travel({ cgroup: pod.cgroup, netns: elsewhere[1].netns }), 'redirected');
    await told(elsewhere[1]);
    await becomes(pod, inodeOf(elsewhere[1].netns));
  });

  test('is not the one where the process went that had shown it', async () => {
    const pod = await node.addPod({ name: 'leaving' });
    await node.apply();
    const leaving = node.sandbox.spawn({
      ...pod.place,
      cmd: 'sh',
      args: ['-c', 'read go; exec unshare -rn sh -c "echo gone; exec sleep 1000"'],
    });
    await becomes(pod, inodeOf(pod.host.netns));
    run({ cgroup: pod.startContainer(), netns: pod.host.netns });
    leaving.write('\n');
    await leaving.line(/gone/);
    for (const restart of [false, true]) {
      if (restart) await node.agent.kill9();
      if (restart) await node.startAgent({ args: sweepsRarely(node) });
      node.manifest.change(pod.uid, { labels: { changed: String(restart) } });
      await node.apply();
      await becomes(pod, inodeOf(pod.host.netns));
      assert.equal(await node.travel(pod.place), 'redirected');
    }
  });

  test('is that of its oldest process, not one that a process of it has made', async () => {
    const pod = await node.addPod({ name: 'nesting' });
    await node.apply();
    run(pod.place);
    await becomes(pod, inodeOf(pod.host.netns));
    for (let count = 0; count < 3; count++) {
      const cgroup = pod.startContainer();
      const nested = node.sandbox.spawn({
        cgroup,
        netns: pod.host.netns,
        cmd: 'unshare',
        args: ['-rn', 'sh', '-c', 'echo ready; exec sleep 1000'],
      });
      await nested.line(/ready/);
    }
    await node.agent.kill9();
    await node.startAgent({ args: sweepsRarely(node) });
    await becomes(pod, inodeOf(pod.host.netns));
  });
});
