/** A pod with more than one network: all its own addresses are local, and what is bound to where no proxy is never goes to a stranger. */
import assert from 'node:assert/strict';
import { after, afterEach, test } from 'node:test';
import { infoFlag, localAddress } from '../../native/layout/layouts.ts';
import { ip } from '../../deploy/stage/netns.ts';
import { must } from '../../deploy/stage/process.ts';
import { connect, listen, type Connected } from '../../deploy/stage/sock.ts';
import { at } from '../harness/travel.ts';
import { bytesOf, netnsOf } from './data-plane.ts';
import { assertDirect, assertFailed, assertRedirected, makeMesh, PORT } from './mesh.ts';

const mesh = await makeMesh('other-networks');
const { plane, proxy, server, sandbox } = mesh;
after(() => mesh[Symbol.asyncDispose]());
afterEach(() => plane.nothingLeft());

/** Its second interface is in a network where a stranger has the numbers of the proxy and the server. */
const SECOND = { ip4: '10.99.0.2', ip6: 'fd99::2' };
const pod = await mesh.addPod('two-legged');
const stranger = sandbox.netnsName('stranger');
await ip(undefined, `netns add ${stranger}`);
await ip(pod.netns, `link add eth1 type veth peer name eth0 netns ${stranger}`);
const leg = (own: readonly string[], device: string): readonly string[] => [
  'link set lo up',
  ...own.map((address) => `address add ${address} dev ${device}${address.includes(':') ? ' nodad' : ''}`),
  `link set ${device} up`,
];
await ip(
  pod.netns,
  ...leg([`${SECOND.ip4}/24`, `${SECOND.ip6}/64`], 'eth1'),
  'route add 10.77.0.0/24 dev eth1 metric 9000',
  'route add fd77::/64 dev eth1 metric 9000',
);
await ip(
  stranger,
  ...leg(
    [
      '10.99.0.1/24',
      'fd99::1/64',
      ...[server, proxy].flatMap((host) => [`${host.ip4}/32`, `${host.ip6}/128`]),
    ],
    'eth0',
  ),
);
const strangers = await listen(sandbox, { netns: stranger }, 'serve', '*', [PORT, 15001], '--dual');
const serving = await listen(sandbox, pod, 'serve', '*', [PORT], '--dual');

const links = JSON.parse(await must({ cmd: 'ip', args: ['-n', pod.netns, '-j', 'link'] })) as readonly {
  readonly ifname: string;
  readonly ifindex: number;
}[];
const eth0 = links.find(({ ifname }) => ifname === 'eth0')?.ifindex ?? 0;
assert.ok(eth0 > 0);
plane.plane.maps.podDevices.set(pod.slot, { ip4: eth0, ip6: eth0 });
const know = (address: string, value: number): void =>
  plane.plane.maps.podLocals.set({ slot: pod.slot, address: { word: bytesOf(address) } }, value);
for (const address of Object.values(SECOND)) know(address, localAddress.elsewhere);
/** @param netns where nobody knows its network: none */
function enrol(netns?: ReturnType<typeof netnsOf>): void {
  for (const cgroup of [pod.podCgroup, pod.cgroup])
    plane.enrol(cgroup, {
      slot: pod.slot,
      ip4: pod.ip4,
      ip6: pod.ip6,
      flags: infoFlag.ambient | infoFlag.addresses,
      ...(netns === undefined ? {} : { netns }),
    });
}
enrol(netnsOf(pod.netns));

const dial = (address: string, ...options: readonly string[]): Promise<[Connected, Record<string, number>]> =>
  mesh.counted(() => connect(pod, address, PORT, '--timeout', '10000', ...options));

for (const { name, of, options, spell } of [
  { name: 'IPv4', of: ({ ip4 }: Two) => ip4, options: [], spell: at },
  { name: 'IPv6', of: ({ ip6 }: Two) => ip6, options: [], spell: at },
  {
    name: 'v4-mapped IPv6',
    of: ({ ip4 }: Two) => ip4,
    options: ['--mapped'],
    spell: (address: string, port: number) => at(`::ffff:${address}`, port),
  },
] as const) {
  test(`${name}: each address of the pod's own network is local`, async () => {
    for (const address of [of(pod), of(SECOND)]) {
      const [result, counts] = await dial(address, ...options);
      await assertDirect({ serving }, result, spell(address, PORT));
      assert.deepEqual(counts, { 'two-legged local': 1 }, address);
    }
  });

  test(`${name}: a socket that is bound to another interface or address than the proxy's is left alone, or denied, and never meets a stranger on the proxy's port`, async () => {
    for (const bound of [
      ['--device', 'eth1'],
      ['--device', 'eth1', '--bind', of(SECOND)],
    ]) {
      const [result, counts] = await dial(of(server), ...options, ...bound);
      await assertDirect({ serving: strangers }, result, spell(of(server), PORT));
      assert.deepEqual(counts, { 'two-legged otherNetworkUntouched': 1 }, bound.join(' '));
      plane.policies({ unknownPods: 'allow', whenProxyDown: 'deny', otherNetworks: 'deny' });
      const [denied, deniedCounts] = await dial(of(server), ...options, ...bound);
      plane.policies(undefined);
      assertFailed(denied, 'EPERM');
      assert.deepEqual(deniedCounts, { 'two-legged otherNetworkDenied': 1 }, bound.join(' '));
    }
    const short = await mesh.counted(() =>
      connect(pod, of(server), PORT, ...options, '--bind', of(SECOND), '--timeout', '300'),
    );
    assert.deepEqual(short[1], { 'two-legged otherNetworkUntouched': 1 }, 'by its address alone');
    assert.ok(strangers.accepted().every(({ local }) => !local.endsWith(':15001')));
  });

  test(`${name}: one that is bound to the proxy's interface, or to an address there, is redirected`, async () => {
    for (const bound of [
      ['--device', 'eth0'],
      ['--bind', of(pod)],
      ['--device', 'eth0', '--bind', of(pod)],
    ]) {
      const [result, counts] = await dial(of(server), ...options, ...bound);
      await assertRedirected(mesh, result, spell(of(server), PORT));
      assert.deepEqual(counts, { 'two-legged redirected': 1 }, bound.join(' '));
    }
  });
}
interface Two {
  readonly ip4: string;
  readonly ip6: string;
}

test('an address beside the first, on the same interface, leads to the proxy too', async () => {
  const beside = '10.77.0.211';
  await ip(pod.netns, `address add ${beside}/24 dev eth0`);
  know(beside, localAddress.leads);
  const [result, counts] = await dial(server.ip4, '--bind', beside);
  await assertRedirected(mesh, result, at(server.ip4, PORT));
  assert.deepEqual(counts, { 'two-legged redirected': 1 });
});

test('link-local destinations are left alone, and 169.254.0.0/16 is not', async () => {
  const [, counts] = await dial('169.254.169.254');
  assert.deepEqual(counts, { 'two-legged redirected': 1 });
  const [result, near] = await mesh.counted(() => connect(pod, 'fe80::1', PORT, '--timeout', '10000'));
  assert.ok(!result.ok, 'nobody has it');
  assert.deepEqual(near, { 'two-legged local': 1 });
});

test('a socket that is bound to a link-local address is where its interface is', async () => {
  const own = ['eth0', 'eth1'].map((device) => `address add fe80::2/64 dev ${device} nodad`);
  await ip(pod.netns, ...own);
  for (const [device, branch] of [
    ['eth0', 'redirected'],
    ['eth1', 'otherNetworkUntouched'],
  ] as const) {
    const [, counts] = await dial(server.ip6, '--device', device, '--bind', 'fe80::2');
    assert.deepEqual(counts, { [`two-legged ${branch}`]: 1 }, device);
  }
});

test('what is not known to be elsewhere is redirected, in a network that is not known everything', async () => {
  const { podDevices } = plane.plane.maps;
  await ip(pod.netns, 'address add 10.77.0.212/32 dev eth0');
  assert.deepEqual((await dial(server.ip4, '--bind', '10.77.0.212'))[1], { 'two-legged redirected': 1 });
  const wrong = { ip4: eth0 + 100, ip6: eth0 + 100 };
  podDevices.set(pod.slot, wrong);
  const bound = ['--device', 'eth0', '--timeout', '10000'] as const;
  assert.deepEqual((await dial(server.ip4, ...bound))[1], { 'two-legged otherNetworkUntouched': 1 });
  podDevices.set(pod.slot, { ip4: 0, ip6: 0 });
  assert.deepEqual((await dial(server.ip4, ...bound))[1], { 'two-legged redirected': 1 });
  podDevices.set(pod.slot, wrong);
  know('10.77.0.212', localAddress.elsewhere);
  enrol();
  for (const options of [bound, ['--bind', '10.77.0.212']])
    assert.deepEqual((await dial(server.ip4, ...options))[1], { 'two-legged redirected': 1 });
});
