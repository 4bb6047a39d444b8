/** Pods that have ended by what the API says while their processes run on, and those whose processes have ended. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import { cgroute } from '../../deploy/stage/agent.ts';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import type { Running } from '../../deploy/stage/process.ts';
import { listen } from '../../deploy/stage/sock.ts';
import { startNode, type TestNode } from '../harness/node.ts';
import { BYPASS, MODE } from '../harness/label-names.ts';

describe('a pod that has ended by its phase', () => {
  let node: TestNode;
  let pods = 0;
  let pod: NodePod;
  let process: Running;

  before(async () => {
    node = await startNode('ended', { agent: false });
    await start();
  });
  /** Nobody tells of a process that ends: a sweep finds it. */
  const start = async (): Promise<void> => {
    const config = node.sandbox.file('config.yaml');
    writeFileSync(config, 'sweepSeconds: 1\n');
    await node.startAgent({ args: ['--config', config] });
  };
  after(() => node?.[Symbol.asyncDispose]());
  /** One that runs, is enrolled, and is known to the agent. */
  beforeEach(async () => {
    pod = await node.addPod({ name: `pod-${++pods}` });
    process = node.sandbox.spawn({ ...pod.place, cmd: 'sleep', args: ['100000'] });
    await listen(node.sandbox, { netns: pod.host.netns }, 'serve', '*', [80], '--dual');
    await node.apply();
    assert.equal(await node.travel(pod.place), 'redirected');
  });

  const becomes = (reason: string) =>
    node.until(
      `${pod.name} is ${reason}`,
      (status) => status.pods.find(({ uid }) => uid === pod.uid)?.reason === reason,
    );
  const restart = async (): Promise<void> => {
    await node.agent.kill9();
    await start();
  };
  /** What the pod opens, and what a host process opens to it. */
  const isRedirected = async (): Promise<void> => {
    assert.equal(await node.travel(pod.place), 'redirected');
    assert.equal(await node.travel(node.hostPlace, { to: { ip: pod.host.ip4, port: 80 } }), 'inbound');
  };

  for (const phase of ['Failed', 'Succeeded']) {
    test(`${phase}: stays as it was while a process runs, with other agents too, and is terminal after that`, async () => {
      node.manifest.change(pod.uid, { phase });
      await node.apply();
      await isRedirected();
      const explained = await cgroute(node.sandbox, ['explain', `demo/${pod.name}`]);
      assert.match(
        explained.stdout,
        new RegExp(
          `^2 +DECIDES .*phase ${phase}, but processes are left in its cgroups: in, because of`,
          'm',
        ),
      );
      await restart();
      await isRedirected();
      // Sweeps change nothing.
      await node.apply();
      await isRedirected();
      await process.stop('SIGKILL');
      await becomes('terminal');
      assert.equal(await node.travel(pod.place), 'direct');
      // What is over stays so, whatever is put into its cgroups.
      await using other = node.sandbox.spawn({ ...pod.place, cmd: 'sleep', args: ['100000'] });
      assert.ok(other);
      await node.apply();
      assert.equal((await node.podStatus(pod)).reason, 'terminal');
    });
  }

  test('keeps its verdict, in the mesh or not, through changes of labels that come with its end or after it', async () => {
    node.manifest.change(pod.uid, { phase: 'Failed', labels: { [MODE]: 'none' } });
    await node.apply();
    await isRedirected();
    node.manifest.change(pod.uid, { labels: { [BYPASS]: 'enabled' } });
    await node.apply();
    await isRedirected();
    await restart();
    await isRedirected();

    const out = await node.addPod({ name: 'out', labels: { [MODE]: 'none' } });
    await using running = node.sandbox.spawn({ ...out.place, cmd: 'sleep', args: ['100000'] });
    assert.ok(running);
    await node.apply();
    node.manifest.change(out.uid, { phase: 'Failed', labels: {} });
    await node.apply();
    await restart();
    const { verdict, reason } = await node.podStatus(out);
    assert.deepEqual([verdict, reason], ['out', 'pod-opt-out']);
    assert.equal(await node.travel(out.place), 'direct');
  });

  test('ends with its cgroups too, and the API may forget it before', async () => {
    node.manifest.change(pod.uid, { phase: 'Failed' });
    await node.apply();
    node.manifest.remove(pod.uid);
    await node.apply();
    await isRedirected();
    await restart();
    await isRedirected();
    await process.stop('SIGKILL');
    removeCgroup(dirname(pod.cgroup.absolute));
    await node.until('it is gone', ({ pods: shown }) => shown.every(({ uid }) => uid !== pod.uid));
  });

  test('and has not after all, is as its labels say', async () => {
    node.manifest.change(pod.uid, { phase: 'Failed' });
    await node.apply();
    node.manifest.change(pod.uid, { phase: 'Running', labels: { [MODE]: 'none' } });
    await node.apply();
    assert.equal(await node.travel(pod.place), 'direct');
    assert.equal((await node.podStatus(pod)).reason, 'pod-opt-out');
  });

  test('while no agent ran, stays as it was while a process runs', async () => {
    await node.agent.kill9();
    node.manifest.change(pod.uid, { phase: 'Failed' });
    node.manifest.write();
    await start();
    await isRedirected();
  });

  test('before any agent ran, is as its labels say while a process runs', async () => {
    await node.agent.kill9();
    await node.cleanUp();
    node.manifest.change(pod.uid, { phase: 'Failed' });
    node.manifest.write();
    await start();
    await isRedirected();
  });

  test('is terminal at once where no process is left, and was it before an agent came', async () => {
    await process.stop('SIGKILL');
    node.manifest.change(pod.uid, { phase: 'Succeeded' });
    await node.apply();
    assert.equal((await node.podStatus(pod)).reason, 'terminal');
    await restart();
    assert.equal((await node.podStatus(pod)).reason, 'terminal');
  });
});
