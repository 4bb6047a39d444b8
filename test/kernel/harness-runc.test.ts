/** The harness's containers are real ones, in the cgroups and namespaces asked for. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { processesBelow } from '../../deploy/stage/cgroup.ts';
import { makeNetwork } from '../../deploy/stage/netns.ts';
import { startContainer } from '../harness/runc.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';
import { listen } from '../../deploy/stage/sock.ts';

const UID = '2c48913c-b29f-11e7-9350-020968147796';
const ID = 'c'.repeat(64);

for (const path of [
  `kubepods/burstable/pod${UID}/${ID}`,
  `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${UID.replaceAll('-', '_')}.slice/cri-containerd-${ID}.scope`,
]) {
  test(`a container runs, is entered, dies and leaves no cgroup at ${path.split('/')[0]}`, async () => {
    await using sandbox = await makeSandbox('runc');
    const network = await makeNetwork(sandbox);
    const [pod, server] = [await network.addHost('pod'), await network.addHost('server')];
    await listen(sandbox, { netns: server.netns }, 'serve', server.ip4, [80]);
    const container = await startContainer(sandbox, { id: ID, cgroupPath: path, netns: pod.netns });
    const cgroup = sandbox.cgroup(path);
    assert.deepEqual(processesBelow(cgroup.absolute), [container.pid]);
    const line = readFileSync(`/proc/${container.pid}/cgroup`, 'utf8')
      .split('\n')
      .find((text) => text.startsWith('0::'));
    assert.ok(line?.endsWith(`/${path}`), `its cgroup is ${line}`);

    const entered = container.exec('sh', '-c', `grep ^0:: /proc/self/cgroup; sock connect ${server.ip4} 80`);
    assert.equal(await entered.line(), '0::/'); // a cgroup namespace of its own
    const result = await entered.json<{ ok: boolean; local: string }>();
    assert.ok(result.ok && result.local.startsWith(`${pod.ip4}:`), JSON.stringify(result));

    await container.delete();
    assert.equal(existsSync(cgroup.absolute), false);
  });
}

test('a container that is killed is gone, and one that prints is heard', async () => {
  await using sandbox = await makeSandbox('runc');
  const pod = await (await makeNetwork(sandbox)).addHost('pod');
  const args = ['sh', '-c', 'echo up; exec sleep 1000'];
  const container = await startContainer(sandbox, {
    id: 'one',
    cgroupPath: 'kubepods/pod1/one',
    netns: pod.netns,
    args,
  });
  assert.equal(await container.running.line(), 'up');
  await container.kill();
  const { code } = await container.running.exit;
  assert.equal(code, 137);
});
