/** The network of a pod: that of its oldest process, and another one only when none of the pod's is in it any more. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { witnessHost } from '../../../../mapper/agent/address-host.ts';
import { addressText } from '../../../../mapper/objects/address.ts';
import type { NetworkTables } from '../../../../watcher/network-tables.ts';
import { NO_NETWORK, PodNetworks } from '../../../../mapper/inventory/pod-networks.ts';

const HOST = 1;
const POD = { hostNetwork: false, ips: ['10.0.0.5'] };
const HOST_POD = { hostNetwork: true, ips: [] };
const EMPTY: NetworkTables = { addresses: [], deviceTo: () => undefined };
const withAddress = (...ips: readonly string[]): NetworkTables => ({
  addresses: ips.map((ip) => ({ ip, device: 'eth0' })),
  deviceTo: () => ({ name: 'eth0', index: 2 }),
});

/** A host whose processes are what the test says: by cgroup, each with its network and when it began. */
function fixture({ remembered = 0n } = {}) {
  const processes = new Map<number, { path: string; netns: number; startedTicks: number }>();
  const tables = new Map<number, NetworkTables>();
  let asked = 0;
  const read: number[] = [];
  const host = witnessHost({
    isOwnAddress: () => false,
    addressesOf: () => undefined,
    networkTablesOf(pid, netns) {
      read.push(netns);
      return processes.get(pid)?.netns === netns ? (tables.get(netns) ?? EMPTY) : undefined;
    },
    pidsOf: (path) => [...processes].filter(([, { path: where }]) => where === path).map(([pid]) => pid),
    netnsOf: (pid) => processes.get(pid)?.netns,
    networkOf(pid) {
      asked++;
      const process = processes.get(pid);
      return process === undefined ? undefined : { pid, isHost: process.netns === HOST, ...process };
    },
  });
  const networks = new PodNetworks({
    host,
    pathsOf: (key) => [`/${key}`, `/${key}/c`],
    proxyIps: () => ['10.0.0.9'],
    remembered: () => remembered,
  });
  return { processes, networks, tables, asked: () => asked, read };
}

test('nobody knows it before a process shows it, and one in the network of the host shows nothing', () => {
  const { processes, networks } = fixture();
  assert.equal(networks.of('a', POD), NO_NETWORK);
  assert.ok(networks.isWanting('a', POD));
  processes.set(10, { path: '/a', netns: HOST, startedTicks: 1 });
  assert.equal(networks.of('a', POD), NO_NETWORK);
  processes.set(11, { path: '/a/c', netns: 7, startedTicks: 2 });
  assert.equal(networks.of('a', POD).netns, 7n);
  assert.ok(!networks.isWanting('a', POD));
});

test("the oldest process counts, and is asked alone while it stands; its PID's next owner is another", () => {
  const { processes, networks, asked, tables } = fixture();
  processes.set(12, { path: '/a', netns: 8, startedTicks: 20 });
  processes.set(11, { path: '/a/c', netns: 7, startedTicks: 10 });
  assert.equal(networks.of('a', POD).netns, 7n);
  const before = asked();
  assert.equal(networks.of('a', POD).netns, 7n);
  assert.equal(asked(), before + 1);
  assert.ok(!networks.hasChanged('a'));
  processes.set(11, { path: '/a/c', netns: 9, startedTicks: 30 });
  assert.ok(networks.hasChanged('a'));
  tables.set(8, withAddress('10.0.0.5'));
  assert.equal(networks.of('a', POD).netns, 8n);
});

test('a process that leaves the network takes nobody along: it stays while any process of the pod is in it', () => {
  const { processes, networks } = fixture();
  processes.set(11, { path: '/a/c', netns: 7, startedTicks: 10 });
  for (let pid = 20; pid < 60; pid++) processes.set(pid, { path: '/a/c', netns: 7, startedTicks: pid });
  assert.equal(networks.of('a', POD).netns, 7n);
  for (const pid of [11, ...Array.from({ length: 39 }, (_, n) => 20 + n)])
    processes.set(pid, { path: '/a/c', netns: 66, startedTicks: pid });
  assert.ok(networks.hasChanged('a'));
  assert.equal(networks.of('a', POD).netns, 7n, 'the last one is there');
});

test('another network is believed where it has the address that the status says, else it is not known', () => {
  const { processes, networks, tables } = fixture();
  processes.set(11, { path: '/a', netns: 7, startedTicks: 10 });
  assert.equal(networks.of('a', POD).netns, 7n);
  processes.set(11, { path: '/a', netns: 66, startedTicks: 10 });
  processes.set(12, { path: '/a/c', netns: 8, startedTicks: 20 });
  assert.equal(networks.of('a', POD), NO_NETWORK);
  assert.equal(networks.of('a', POD).netns, 66n, 'nothing is known any more: the oldest counts');
  processes.clear();
  processes.set(12, { path: '/a/c', netns: 8, startedTicks: 20 });
  tables.set(8, withAddress('10.0.0.5'));
  assert.equal(networks.of('a', POD).netns, 8n);
});

test('of several at the first look, that counts which an earlier agent knew, or which has the address', () => {
  for (const [remembered, expected] of [
    [8n, 8n],
    [0n, 9n],
  ] as const) {
    const { processes, networks, tables } = fixture({ remembered });
    tables.set(9, withAddress('10.0.0.5'));
    for (const netns of [7, 8, 9]) processes.set(netns, { path: '/a', netns, startedTicks: netns });
    assert.equal(networks.of('a', POD).netns, expected);
  }
});

test('without any process it is unknown again, and a pod in the network of the host has none', () => {
  const { processes, networks } = fixture();
  processes.set(11, { path: '/a/c', netns: 7, startedTicks: 10 });
  assert.equal(networks.of('a', POD).netns, 7n);
  assert.equal(networks.of('a', HOST_POD), NO_NETWORK);
  assert.ok(!networks.isWanting('a', HOST_POD));
  assert.equal(networks.of('a', POD).netns, 7n);
  processes.clear();
  assert.equal(networks.of('a', POD), NO_NETWORK);
  assert.ok(networks.isWanting('a', POD));
});

test('its addresses and the way to the proxy are those of the last look, and read only where somebody wants them', () => {
  const { processes, networks, tables, read } = fixture();
  processes.set(11, { path: '/a', netns: 7, startedTicks: 10 });
  assert.deepEqual(networks.of('a', POD), { netns: 7n, addresses: [], devices: { ip4: 0, ip6: 0 } });
  assert.ok(!networks.hasChanged('a'));
  assert.deepEqual(read, [], 'nobody has asked for them');
  assert.equal(networks.of('a', POD, true).addresses.length, 0);
  assert.ok(networks.isWanting('a', POD), 'a runtime may fill it later');
  const asked: unknown[] = [];
  tables.set(7, {
    addresses: [
      { ip: '10.0.0.5', device: 'eth0' },
      { ip: '172.17.0.1', device: 'docker0' },
      { ip: '10.0.9.9', device: undefined },
      { ip: 'fd00::5', device: 'eth0' },
    ],
    deviceTo(to, family) {
      asked.push([to && addressText(to), family]);
      return family === 4 ? { name: 'eth0', index: 2 } : undefined;
    },
  });
  assert.ok(networks.hasChanged('a'));
  assert.ok(!networks.hasChanged('a'));
  assert.ok(!networks.isWanting('a', POD));
  assert.deepEqual(asked.slice(0, 2), [
    ['10.0.0.9', 4],
    [undefined, 6],
  ]);
  assert.deepEqual(networks.of('a', POD, true), {
    netns: 7n,
    addresses: [
      { ip: '10.0.0.5', isElsewhere: false },
      { ip: '172.17.0.1', isElsewhere: true },
      { ip: '10.0.9.9', isElsewhere: false },
      { ip: 'fd00::5', isElsewhere: false },
    ],
    devices: { ip4: 2, ip6: 0 },
  });
});
