/** Pods with more than one network, and what is nested in them: as the agent finds it, and as status and explain say it. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { cgroute } from '../../deploy/stage/agent.ts';
import { ip, sysctl } from '../../deploy/stage/netns.ts';
import { SERVER_PORT, type NodePod } from '../../deploy/stage/node.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';
import { type TestNode, startNode } from '../harness/node.ts';

describe('a pod', () => {
  let node: TestNode;
  const configure = (...lines: readonly string[]): readonly string[] => {
    const file = node.sandbox.file('config.yaml');
    writeFileSync(file, ['sweepSeconds: 1', ...lines, ''].join('\n'));
    return ['--config', file];
  };
  before(async () => {
    node = await startNode('networks', { agent: false });
    await node.startAgent({ args: configure() });
  });
  after(() => node?.[Symbol.asyncDispose]());

  /** A pod whose network the agent has seen. */
  async function running(name: string): Promise<NodePod> {
    const pod = await node.addPod({ name });
    await node.apply();
    node.sandbox.spawn({ ...pod.place, cmd: 'sleep', args: ['1000'] });
    await eventually('its network is known', async () =>
      (await node.entries('pod_info_map')).some(
        ({ value }) => value['uid'] === pod.uid && value['netns'] !== 0,
      ),
    );
    return pod;
  }
  const counted = async (pod: NodePod): Promise<Record<string, number>> =>
    Object.fromEntries(
      Object.entries((await node.podStatus(pod)).connections).filter(([, count]) => count > 0),
    );

  test('with Docker in it: containers behind its NAT have a network, are counted apart, and explain says it; or are denied', async () => {
    const pod = await running('dind');
    const inner = node.sandbox.netnsName('inner');
    await ip(undefined, `netns add ${inner}`);
    await ip(
      pod.host.netns,
      'link add docker0 type bridge',
      'address add 172.17.0.1/16 dev docker0',
      'link set docker0 up',
      `link add veth0 type veth peer name eth0 netns ${inner}`,
      'link set veth0 master docker0 up',
    );
    await ip(
      inner,
      'link set lo up',
      'address add 172.17.0.2/16 dev eth0',
      'link set eth0 up',
      'route add default via 172.17.0.1',
    );
    await sysctl(pod.host.netns, 'ipv4.ip_forward=1');
    const nat = ['-t', 'nat', '-A', 'POSTROUTING', '-s', '172.17.0.0/16', '-j', 'MASQUERADE'];
    await must({ cmd: 'iptables', args: nat, netns: pod.host.netns });
    const nested = { cgroup: node.sandbox.cgroup(`${pod.cgroup.path}/docker/c1`), netns: inner };
    assert.equal(await node.travel(pod.place), 'redirected');
    // What the server sees of it is the pod's address, by NAT.
    const fromNested = async (): Promise<string> => {
      const result = await connect(nested, node.server.ip4, SERVER_PORT);
      return result.ok ? (result.reply.split(' ')[0] ?? '') : result.errno;
    };
    assert.equal(await fromNested(), 'server');
    assert.deepEqual(await counted(pod), { redirected: 1, nestedUntouched: 1 });
    const { stdout } = await cgroute(node.sandbox, ['explain', 'demo/dind']);
    assert.match(stdout, /1 +opened in a network within it that is not its own, .*nestedNetworks: untouched/);
    await node.agent.stop();
    await node.startAgent({ args: configure('nestedNetworks: deny') });
    assert.equal(await fromNested(), 'EPERM');
    assert.equal(await node.travel(pod.place), 'redirected');
    assert.deepEqual(await counted(pod), { redirected: 2, nestedUntouched: 1, nestedDenied: 1 });
    await node.agent.stop();
    await node.startAgent({ args: configure() });
  });

  test('has all the addresses of its network for its own, from the next sweep on, and no more when they are gone', async () => {
    const pod = await running('bridged');
    const bridge = '172.18.0.1';
    await listen(node.sandbox, pod.place, 'serve', '*', [80], '--dual');
    const to = (): Promise<string> =>
      connect(pod.place, bridge, 80, '--timeout', '2000').then((result) =>
        result.ok ? (result.reply.split(' ')[0] ?? '') : result.errno,
      );
    await ip(
      pod.host.netns,
      'link add br1 type bridge',
      `address add ${bridge}/16 dev br1`,
      'link set br1 up',
    );
    await eventually('it is local', async () => (await to()) === 'server');
    const before = await counted(pod);
    assert.equal(await to(), 'server');
    assert.equal((await counted(pod))['local'], (before['local'] ?? 0) + 1);
    await ip(pod.host.netns, 'link delete br1');
    await eventually('it is a destination like any', async () => {
      const { redirected = 0 } = await counted(pod);
      await to();
      return ((await counted(pod))['redirected'] ?? 0) > redirected;
    });
  });

  test('that binds a socket to its second interface is left alone, and to the first one redirected', async () => {
    const pod = await running('two-legged');
    const other = node.sandbox.netnsName('other');
    await ip(undefined, `netns add ${other}`);
    await ip(
      pod.host.netns,
      `link add eth1 type veth peer name eth0 netns ${other}`,
      'address add 10.99.0.2/24 dev eth1',
      'link set eth1 up',
    );
    await ip(other, 'link set lo up', 'address add 10.99.0.1/24 dev eth0', 'link set eth0 up');
    await listen(node.sandbox, { netns: other }, 'serve', '*', [8080]);
    const bound = (device: string): Promise<Record<string, number>> =>
      connect(pod.place, '10.99.0.1', 8080, '--device', device, '--timeout', '5000').then(() => counted(pod));
    assert.deepEqual(await bound('eth1'), { otherNetworkUntouched: 1 });
    assert.deepEqual(await bound('eth0'), { otherNetworkUntouched: 1, redirected: 1 });
  });
});
