/** Whose a connection is by the network that its socket is in: the pod's own, one nested in it, the host's, anybody's. */
import assert from 'node:assert/strict';
import { after, afterEach, test } from 'node:test';
import { infoFlag } from '../../native/layout/layouts.ts';
import { makeNetwork } from '../../deploy/stage/netns.ts';
import { connect, listen, type Connected, type Place } from '../../deploy/stage/sock.ts';
import { at } from '../harness/travel.ts';
import { netnsOf } from './data-plane.ts';
import { assertDirect, assertFailed, assertRedirected, makeMesh, type Pod, PORT } from './mesh.ts';

const mesh = await makeMesh('networks');
const { plane, proxy, server, sandbox } = mesh;
after(() => mesh[Symbol.asyncDispose]());
afterEach(() => plane.nothingLeft());

/** Where the pod's processes are is known from now on. */
function inItsNetwork(pod: Pod, flags: number = infoFlag.ambient, inMesh = true): Pod {
  const { slot, ip4, ip6 } = pod;
  for (const each of [pod.podCgroup, pod.cgroup])
    plane.enrol(each, { slot, ip4, ip6, flags, inMesh, netns: netnsOf(pod.netns) });
  return pod;
}

const FAMILIES = [
  { name: 'IPv4', options: [], of: (host: Addresses) => host.ip4, spell: at, loopback: '127.0.0.1' },
  { name: 'IPv6', options: [], of: (host: Addresses) => host.ip6, spell: at, loopback: '::1' },
  {
    name: 'v4-mapped IPv6',
    options: ['--mapped'],
    of: (host: Addresses) => host.ip4,
    spell: (address: string, port: number) => at(`::ffff:${address}`, port),
    loopback: '127.0.0.1',
  },
] as const;
interface Addresses {
  readonly ip4: string;
  readonly ip6: string;
}

const outer = inItsNetwork(await mesh.addPod('outer'));
const out = inItsNetwork(await mesh.addPod('out'), 0, false);
const bypassed = inItsNetwork(await mesh.addPod('bypassed'), infoFlag.ambient | infoFlag.bypassOutbound);
const nested = await mesh.network.addHost('nested');
const nestedServing = await listen(sandbox, { netns: nested.netns }, 'serve', '*', [PORT], '--dual');

for (const { name, options, of, spell, loopback } of FAMILIES) {
  const dial = (place: Place, address: string, port = PORT): Promise<[Connected, Record<string, number>]> =>
    mesh.counted(() => connect(place, address, port, ...options));

  test(`${name}: what is nested in an enrolled pod, in a network of its own, is left alone and counted apart, and the pod is not`, async () => {
    const [own, counts] = await dial(outer, of(server));
    await assertRedirected(mesh, own, spell(of(server), PORT));
    assert.deepEqual(counts, { 'outer redirected': 1 });
    const inside = sandbox.cgroup(`${outer.cgroup.path}/docker/container`);
    for (const cgroup of [outer.cgroup, inside]) {
      const [result, nestedCounts] = await dial({ cgroup, netns: nested.netns }, of(server));
      await assertDirect(mesh, result, spell(of(server), PORT));
      assert.deepEqual(nestedCounts, { 'outer nestedUntouched': 1 });
    }
  });

  test(`${name}: it is denied where the policy says so, but for its loopback`, async () => {
    plane.policies({ unknownPods: 'deny', whenProxyDown: 'deny', nestedNetworks: 'deny' });
    try {
      const place = { cgroup: outer.cgroup, netns: nested.netns };
      const [denied, counts] = await dial(place, of(server));
      assertFailed(denied, 'EPERM');
      assert.deepEqual(counts, { 'outer nestedDenied': 1 });
      const [within, withinCounts] = await dial(place, loopback);
      await assertDirect({ serving: nestedServing }, within, spell(loopback, PORT));
      assert.deepEqual(withinCounts, { 'outer local': 1 });
      // Where there is no mesh nothing is denied by it.
      for (const [pod, branch] of [
        [out, 'out'],
        [bypassed, 'bypassed'],
      ] as const) {
        const [result, theirs] = await dial({ cgroup: pod.cgroup, netns: nested.netns }, of(server));
        await assertDirect(mesh, result, spell(of(server), PORT));
        assert.deepEqual(theirs, { [`${pod.name} ${branch}`]: 1 });
      }
    } finally {
      plane.policies(undefined);
    }
  });

  test(`${name}: the proxy is told by its cgroup, in whatever network its sockets are`, async () => {
    inItsNetwork(proxy, infoFlag.proxy, false);
    for (const netns of [proxy.netns, outer.netns, mesh.hostProcess().netns ?? '']) {
      const [result, counts] = await dial({ cgroup: proxy.cgroup, netns }, of(server));
      await assertDirect(mesh, result, spell(of(server), PORT));
      assert.deepEqual(counts, { 'proxy proxy': 1 });
    }
  });

  test(`${name}: a process of the host that has entered a pod's network is left alone`, async () => {
    for (const pod of [outer, out]) {
      const [result, counts] = await dial(mesh.hostProcess(pod.netns), of(server));
      await assertDirect(mesh, result, spell(of(server), PORT));
      assert.deepEqual(counts, { 'none foreignUntouched': 1 });
    }
  });

  test(`${name}: a container of nobody's, in a network of its own with the same numbers, never meets the proxy's`, async () => {
    plane.captureInbound(of(outer), outer.slot);
    const apart = await makeNetwork(sandbox);
    const client = await apart.addHost('apart-client', { ip4: '10.77.0.99', ip6: 'fd77::99' });
    const double = await apart.addHost('apart-double', outer);
    const stranger = await apart.addHost('apart-stranger', proxy);
    const serving = await listen(sandbox, { netns: double.netns }, 'serve', '*', [PORT], '--dual');
    const strange = await listen(sandbox, { netns: stranger.netns }, 'serve', '*', [15001, 15006], '--dual');
    const [result, counts] = await dial(mesh.hostProcess(client.netns), of(outer));
    await assertDirect({ serving }, result, spell(of(outer), PORT));
    assert.deepEqual(counts, { 'none foreignUntouched': 1 });
    assert.deepEqual(strange.accepted(), []);
    // From the host's own network the same number is the pod's.
    const [inward, inwardCounts] = await dial(mesh.hostProcess(), of(outer));
    await assertRedirected(mesh, inward, spell(of(outer), PORT), 15006);
    assert.deepEqual(inwardCounts, { 'outer inboundRedirected': 1 });
  });
}

test("what is in the host's network is no pod's, whatever its cgroup, and known ones count it", async () => {
  const { netns } = mesh.hostProcess();
  plane.policies({ unknownPods: 'deny', whenProxyDown: 'deny', nestedNetworks: 'deny' });
  try {
    const bare = sandbox.cgroup('kubepods/podbare/c');
    for (const [cgroup, count] of [
      [bare, 'none hostUntouched'],
      [outer.cgroup, 'outer out'],
      [out.cgroup, 'out out'],
    ] as const) {
      const [result, counts] = await mesh.counted(() => connect({ cgroup, netns }, server.ip4, PORT));
      await assertDirect(mesh, result, at(server.ip4, PORT));
      assert.deepEqual(counts, { [count]: 1 });
    }
  } finally {
    plane.policies(undefined);
  }
});
