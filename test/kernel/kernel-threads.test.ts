/** Connections that the kernel opens from a thread of its own are the pod's whose socket it is: MPTCP's further subflows. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { release } from 'node:os';
import { after, afterEach, describe, test } from 'node:test';
import { infoFlag } from '../../native/layout/layouts.ts';
import { ip } from '../../deploy/stage/netns.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { listen } from '../../deploy/stage/sock.ts';
import { netnsOf } from './data-plane.ts';
import { hold, makeMesh, type Pod, PORT } from './mesh.ts';

const [major = 0, minor = 0] = release()
  .split('.')
  .map((part) => Number.parseInt(part, 10));
/** Before Linux 5.11 a subflow is in the kernel's own cgroup (3764b0c5651e), and nobody's. */
const lacks = !existsSync('/proc/sys/net/mptcp')
  ? 'this kernel is built without MPTCP'
  : major < 5 || (major === 5 && minor < 11)
    ? "this kernel leaves subflows in no pod's cgroup"
    : false;

describe('a subflow that the kernel opens', { skip: lacks }, async () => {
  const mesh = await makeMesh('kernel-threads');
  const { plane, network, server, sandbox } = mesh;
  after(() => mesh[Symbol.asyncDispose]());
  afterEach(() => plane.nothingLeft());
  let addresses = 150;

  /** Announces a second address of the peer to whoever connects to it. */
  async function announce(netns: string, address: string): Promise<void> {
    await ip(netns, `address add ${address}/24 dev eth0`);
    await must({ cmd: 'ip', args: ['-n', netns, 'mptcp', 'limits', 'set', 'subflow', '4'] });
    await must({
      cmd: 'ip',
      args: ['-n', netns, 'mptcp', 'endpoint', 'add', address, 'dev', 'eth0', 'signal'],
    });
  }

  async function takesSubflows(pod: Pod): Promise<Pod> {
    const limits = ['limits', 'set', 'subflow', '4', 'add_addr_accepted', '4'];
    await must({ cmd: 'ip', args: ['-n', pod.netns, 'mptcp', ...limits] });
    return pod;
  }

  /** Joins of further subflows that the other end has answered. */
  async function joined(netns: string): Promise<number> {
    const text = await must({ cmd: 'nstat', args: ['-asz', 'MPTcpExtMPJoinSynAckRx'], netns });
    return Number(/MPJoinSynAckRx\s+(\d+)/.exec(text)?.[1] ?? 0);
  }

  for (const { name, flags, branch } of [
    { name: 'enrolled', flags: infoFlag.ambient, branch: 'redirected' },
    { name: 'outside', flags: 0, branch: 'out' },
  ]) {
    test(`of a pod that is ${name} is that pod's, and counted for it`, async () => {
      const proxy = await mesh.addPod(`proxy-${name}`, { inMesh: false, flags: infoFlag.proxy });
      plane.plane.attachProxy({ path: proxy.podCgroup.absolute, id: proxy.podCgroup.id });
      const target = await network.addHost(`target-${name}`);
      await listen(sandbox, proxy, 'proxy', '*', [15001], '--dual', '--mptcp');
      await listen(sandbox, { netns: target.netns }, 'serve', '*', [PORT], '--dual', '--mptcp');
      for (const { netns } of [proxy, target]) await announce(netns, `10.77.0.${++addresses}`);
      plane.setProxy(proxy);
      const pod = await takesSubflows(await mesh.addPod(name));
      for (const cgroup of [pod.podCgroup, pod.cgroup])
        plane.enrol(cgroup, { ...pod, flags, inMesh: flags !== 0, netns: netnsOf(pod.netns) });
      plane.policies({ unknownPods: 'deny', whenProxyDown: 'deny' });
      try {
        const [held, counts] = await mesh.counted(async () => {
          const connection = await hold(sandbox, pod, target.ip4, PORT, '--mptcp');
          assert.ok(connection.result.ok, JSON.stringify(connection.result));
          await eventually('the second subflow stands', async () => (await joined(pod.netns)) > 0);
          return connection;
        });
        assert.deepEqual(counts, { [`${name} ${branch}`]: 2 });
        assert.equal((await held.end()).alive, true);
      } finally {
        plane.policies(undefined);
      }
    });
  }

  test("of a process of the host is the host's", async () => {
    const host = mesh.hostProcess();
    const target = await network.addHost('target-host');
    await listen(sandbox, { netns: target.netns }, 'serve', '*', [PORT], '--dual', '--mptcp');
    await announce(target.netns, `10.77.0.${++addresses}`);
    const limits = ['limits', 'set', 'subflow', '4', 'add_addr_accepted', '4'];
    await must({ cmd: 'ip', args: ['-n', host.netns, 'mptcp', ...limits] });
    const [held, counts] = await mesh.counted(async () => {
      const connection = await hold(sandbox, host, target.ip4, PORT, '--mptcp');
      await eventually('the second subflow stands', async () => (await joined(host.netns)) > 0);
      return connection;
    });
    assert.deepEqual(counts, { 'none hostUntouched': 2 });
    await held.end();
    assert.ok(server.ip4 !== target.ip4);
  });
});
