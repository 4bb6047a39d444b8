/** The network of a pod: where a process of it is, and an address that its status says. */
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
  const host = witnessHost({
    isOwnAddress: () => false,
    addressesOf: () => undefined,
    networkTablesOf: (pid, netns) =>
      processes.get(pid)?.netns === netns ? (tables.get(netns) ?? EMPTY) : undefined,
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
  return { processes, networks, tables, asked: () => asked };
}

const OURS = withAddress('10.0.0.5');

test('nobody knows it before a process shows it, and one in the network of the host shows nothing', () => {
  const { processes, networks, tables } = fixture();
  tables.set(7, OURS);
  assert.equal(networks.of('a', POD), NO_NETWORK);
  assert.ok(networks.isWanting('a', POD));
  processes.set(10, { path: '/a', netns: HOST, startedTicks: 1 });
  assert.equal(networks.of('a', POD), NO_NETWORK);
  assert.ok(networks.isWanting('a', POD));
  processes.set(11, { path: '/a/c', netns: 7, startedTicks: 2 });
  assert.equal(networks.of('a', POD).netns, 7n);
  assert.ok(!networks.isWanting('a', POD));
});

test('a network that has no address which the status says is not believed, and looked at again after a while', () => {
  const { processes, networks, tables } = fixture();
  processes.set(11, { path: '/a', netns: 66, startedTicks: 10 });
  tables.set(66, withAddress('10.9.9.9'));
  for (const pod of [POD, { hostNetwork: false, ips: [] }]) assert.equal(networks.of('a', pod), NO_NETWORK);
  assert.ok(!networks.isWanting('a', POD), 'not at each process that begins');
  assert.ok(networks.hasChanged('a'), 'at each sweep');
  processes.set(11, { path: '/a', netns: 7, startedTicks: 10 });
  tables.set(7, OURS);
  assert.equal(networks.of('a', POD).netns, 7n);
  assert.ok(!networks.hasChanged('a'));
});

test('the oldest process of several that fit is asked alone while it stands, and another one after it', () => {
  const { processes, networks, asked, tables } = fixture();
  tables.set(7, OURS);
  tables.set(8, OURS);
  processes.set(12, { path: '/a', netns: 8, startedTicks: 20 });
  processes.set(11, { path: '/a/c', netns: 7, startedTicks: 10 });
  assert.equal(networks.of('a', POD).netns, 7n);
  const before = asked();
  assert.equal(networks.of('a', POD).netns, 7n);
  assert.equal(asked(), before + 1);
  assert.ok(!networks.hasChanged('a'));
  processes.delete(11);
  assert.ok(networks.hasChanged('a'));
  assert.equal(networks.of('a', POD).netns, 8n);
});

test('a process that leaves the network takes nobody along: it stays while any process of the pod is in it', () => {
  const { processes, networks, tables } = fixture();
  tables.set(7, OURS);
  tables.set(66, OURS);
  for (let pid = 20; pid < 60; pid++) processes.set(pid, { path: '/a/c', netns: 7, startedTicks: pid });
  assert.equal(networks.of('a', POD).netns, 7n);
  for (let pid = 20; pid < 59; pid++) processes.set(pid, { path: '/a/c', netns: 66, startedTicks: pid });
  assert.ok(networks.hasChanged('a'));
  assert.equal(networks.of('a', POD).netns, 7n, 'the last one is there');
});

test('when the status says another address, that network counts which has it', () => {
  const { processes, networks, tables } = fixture();
  tables.set(7, OURS);
  tables.set(8, withAddress('10.0.0.8'));
  processes.set(11, { path: '/a', netns: 7, startedTicks: 10 });
  processes.set(12, { path: '/a/c', netns: 8, startedTicks: 20 });
  assert.equal(networks.of('a', POD).netns, 7n);
  assert.equal(networks.of('a', { hostNetwork: false, ips: ['10.0.0.8'] }).netns, 8n);
  assert.equal(networks.of('a', { hostNetwork: false, ips: ['10.0.0.77'] }), NO_NETWORK);
});

test('what an earlier agent knew stands where nobody says the address, while a process is there', () => {
  const { processes, networks } = fixture({ remembered: 8n });
  for (const netns of [7, 8, 9]) processes.set(netns, { path: '/a', netns, startedTicks: netns });
  assert.equal(networks.of('a').netns, 8n);
  processes.delete(8);
  assert.equal(networks.of('a'), NO_NETWORK);
});

test('without any process it is unknown again, and a pod in the network of the host has none', () => {
  const { processes, networks, tables } = fixture();
  tables.set(7, OURS);
  processes.set(11, { path: '/a/c', netns: 7, startedTicks: 10 });
  assert.equal(networks.of('a', POD).netns, 7n);
  assert.equal(networks.of('a', HOST_POD), NO_NETWORK);
  assert.ok(!networks.isWanting('a', HOST_POD));
  assert.equal(networks.of('a', POD).netns, 7n);
  processes.clear();
  assert.equal(networks.of('a', POD), NO_NETWORK);
  assert.ok(networks.isWanting('a', POD));
  networks.forget('a');
  assert.deepEqual(networks.keys(), []);
});

test('its addresses and the way to the proxy are those of the last look', () => {
  const { processes, networks, tables } = fixture();
  processes.set(11, { path: '/a', netns: 7, startedTicks: 10 });
  tables.set(7, { addresses: [{ ip: '10.0.0.5', device: undefined }], deviceTo: () => undefined });
  const own = { ip: '10.0.0.5', isElsewhere: false };
  assert.deepEqual(networks.of('a', POD), { netns: 7n, addresses: [own], devices: { ip4: 0, ip6: 0 } });
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
  assert.equal(networks.of('a', POD).addresses.length, 1, 'not before it is looked at again');
  assert.ok(networks.hasChanged('a'));
  assert.ok(!networks.hasChanged('a'));
  assert.deepEqual(asked.slice(0, 2), [
    ['10.0.0.9', 4],
    [undefined, 6],
  ]);
  assert.deepEqual(networks.of('a', POD), {
    netns: 7n,
    addresses: [
      own,
      { ip: '172.17.0.1', isElsewhere: true },
      { ip: '10.0.9.9', isElsewhere: false },
      { ip: 'fd00::5', isElsewhere: false },
    ],
    devices: { ip4: 2, ip6: 0 },
  });
});
