/** The network of a pod is that of its oldest process, for as long as that stands. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { witnessHost } from '../../../../mapper/agent/address-host.ts';
import type { NetworkTables } from '../../../../watcher/network-tables.ts';
import { NO_NETWORK, PodNetworks } from '../../../../mapper/inventory/pod-networks.ts';

const HOST = 1;
const POD = { hostNetwork: false };

/** A host whose processes are what the test says: by cgroup, each with its network and when it began. */
function fixture() {
  const processes = new Map<number, { path: string; netns: number; startedTicks: number }>();
  let asked = 0;
  const tables: { now: NetworkTables } = { now: { addresses: [], deviceTo: () => undefined } };
  const host = witnessHost({
    isOwnAddress: () => false,
    addressesOf: () => undefined,
    networkTablesOf: () => tables.now,
    pidsOf: (path) => [...processes].filter(([, { path: where }]) => where === path).map(([pid]) => pid),
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
  });
  return { processes, networks, tables, asked: () => asked };
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
  const { processes, networks, asked } = fixture();
  processes.set(12, { path: '/a', netns: 8, startedTicks: 20 });
  processes.set(11, { path: '/a/c', netns: 7, startedTicks: 10 });
  assert.equal(networks.of('a', POD).netns, 7n);
  const before = asked();
  assert.equal(networks.of('a', POD).netns, 7n);
  assert.equal(asked(), before + 1);
  assert.ok(!networks.hasChanged('a'));
  processes.set(11, { path: '/a/c', netns: 9, startedTicks: 30 });
  assert.ok(networks.hasChanged('a'));
  assert.equal(networks.of('a', POD).netns, 8n);
});

test('without any process it is unknown again, and a pod in the network of the host has none', () => {
  const { processes, networks } = fixture();
  processes.set(11, { path: '/a/c', netns: 7, startedTicks: 10 });
  assert.equal(networks.of('a', POD).netns, 7n);
  assert.equal(networks.of('a', { hostNetwork: true }), NO_NETWORK);
  assert.ok(!networks.isWanting('a', { hostNetwork: true }));
  assert.equal(networks.of('a', POD).netns, 7n);
  processes.clear();
  assert.equal(networks.of('a', POD), NO_NETWORK);
  assert.ok(networks.isWanting('a', POD));
});

test('its addresses and the way to the proxy are those of the last look', () => {
  const { processes, networks, tables } = fixture();
  processes.set(11, { path: '/a', netns: 7, startedTicks: 10 });
  assert.deepEqual(networks.of('a', POD), { netns: 7n, addresses: [], devices: { ip4: 0, ip6: 0 } });
  assert.deepEqual(networks.keys(), ['a']);
  const asked: unknown[] = [];
  tables.now = {
    addresses: [
      { ip: '10.0.0.5', device: 'eth0' },
      { ip: '172.17.0.1', device: 'docker0' },
      { ip: 'fd00::5', device: 'eth0' },
    ],
    deviceTo(ip, family) {
      asked.push([ip, family]);
      return family === 4 ? { name: 'eth0', index: 2 } : undefined;
    },
  };
  assert.equal(networks.of('a', POD).addresses.length, 0, 'not before it is looked at again');
  assert.ok(networks.hasChanged('a'));
  assert.ok(!networks.hasChanged('a'));
  assert.deepEqual(asked.slice(0, 2), [
    ['10.0.0.9', 4],
    [undefined, 6],
  ]);
  assert.deepEqual(networks.of('a', POD), {
    netns: 7n,
    addresses: [
      { ip: '10.0.0.5', leads: true },
      { ip: '172.17.0.1', leads: false },
      { ip: 'fd00::5', leads: false },
    ],
    devices: { ip4: 2, ip6: 0 },
  });
});
