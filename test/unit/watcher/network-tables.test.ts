/** What /proc/PID/net says of a namespace's own addresses and of its ways out, on texts as the kernel writes them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { addressBytes } from '../../../mapper/objects/address.ts';
import { MOST_ADDRESSES, networkTables, type NetworkFiles } from '../../../watcher/network-tables.ts';

const FILES: NetworkFiles = {
  fib_trie: `Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.77.0.0/24 2 0 2
        |-- 10.77.0.0
           /24 link UNICAST
        |-- 10.77.0.5
           /32 host LOCAL
        |-- 10.77.0.6
           /32 host LOCAL
        |-- 10.77.0.255
           /32 link BROADCAST
     |-- 172.17.0.1
        /32 host LOCAL
     |-- 169.254.7.7
        /32 host LOCAL
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
`,
  route: `Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT                                                       
eth0\t00000000\t01004D0A\t0003\t0\t0\t0\t00000000\t0\t0\t0                                                                               
eth0\t00004D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0                                                                               
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0                                                                               
eth1\t00004D0A\t00000000\t0001\t0\t0\t900\t00FFFFFF\t0\t0\t0                                                                               
*\t0000FEA9\t00000000\t0201\t0\t0\t0\t0000FFFF\t0\t0\t0                                                                               
`,
  igmp: `Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter
1\tlo        :     1      V3
\t\t\t\t010000E0     1 0:00000000\t\t0
2\teth0      :     1      V3
\t\t\t\t010000E0     1 0:00000000\t\t0
`,
  if_inet6: `00000000000000000000000000000001 01 80 10 80       lo
fd770000000000000000000000000005 02 40 00 80     eth0
fd990000000000000000000000000002 0b 40 00 80     eth1
fd990000000000000000000000000009 0b 40 00 08     eth1
fe80000000000000000000fffe000001 02 40 20 80     eth0
`,
  ipv6_route: `fd770000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
fd990000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth1
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd770000000000000000000000000001 00000400 00000001 00000000 00000003     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
`,
};
const NOTHING: NetworkFiles = { fib_trie: '', route: '', igmp: '', if_inet6: '', ipv6_route: '' };

test("its own addresses are those of all its interfaces, without loopback and IPv6's link-local ones, each with where it is, if that is told", () => {
  assert.deepEqual(networkTables(FILES).addresses, [
    { ip: '10.77.0.5', device: 'eth0' },
    { ip: '10.77.0.6', device: 'eth0' },
    { ip: '172.17.0.1', device: 'docker0' },
    { ip: '169.254.7.7', device: undefined },
    { ip: 'fd77::5', device: 'eth0' },
    { ip: 'fd99::2', device: 'eth1' },
  ]);
});

test('the way to an address is the longest route that holds it, the nearest among equals, else the default one', () => {
  const { deviceTo } = networkTables(FILES);
  for (const [ip, family, expected] of [
    ['10.77.0.9', 4, { name: 'eth0', index: 2 }],
    ['192.0.2.1', 4, { name: 'eth0', index: 2 }],
    [undefined, 4, { name: 'eth0', index: 2 }],
    ['fd77::9', 6, { name: 'eth0', index: 2 }],
    ['fd99::9', 6, { name: 'eth1', index: 11 }],
    ['2001:db8::1', 6, { name: 'eth0', index: 2 }],
    [undefined, 6, { name: 'eth0', index: 2 }],
    ['172.17.0.2', 4, undefined], // no number of docker0 is told
  ] as const)
    assert.deepEqual(deviceTo(ip && addressBytes(ip), family), expected, `${ip}`);
});

test('where nothing can be read, or it is no such text, nothing is known', () => {
  for (const files of [
    NOTHING,
    Object.fromEntries(Object.keys(FILES).map((name) => [name, 'rubbish\n\n 1 2'])),
  ]) {
    const { addresses, deviceTo } = networkTables(files as NetworkFiles);
    assert.deepEqual(addresses, []);
    assert.equal(deviceTo(addressBytes('10.0.0.1'), 4), undefined);
    assert.equal(deviceTo(undefined, 6), undefined);
  }
});

test("IPv6's routes are of all tables: those of some sources alone do not count, and of several equal ones none", () => {
  const line = (to: string, length: string, from: string, device: string): string =>
    `${to} ${length} ${'0'.repeat(32)} ${from} ${'0'.repeat(32)} 00000400 00000001 00000000 00000001     ${device}\n`;
  const [all, some] = ['0'.repeat(32), `20010db8${'0'.repeat(24)}`];
  const tables = (...lines: readonly string[]) => networkTables({ ...FILES, ipv6_route: lines.join('') });
  const [eth0, eth1] = [line(all, '00', '00', 'eth0'), line(all, '00', '00', 'eth1')];
  assert.equal(tables(eth0, line(all, '00', '40', 'eth1')).deviceTo(undefined, 6)?.name, 'eth0');
  assert.equal(tables(eth0, eth1).deviceTo(undefined, 6), undefined);
  const inside = addressBytes('2001:db8::1');
  assert.equal(tables(eth0, eth1, line(some, '20', '00', 'eth1')).deviceTo(inside, 6)?.name, 'eth1');
});

test('an address outside of all networks that are on an interface is on none that is known', () => {
  const leaf = '     |-- 10.88.0.222\n        /32 host LOCAL\n';
  const { addresses } = networkTables({ ...FILES, fib_trie: FILES.fib_trie + leaf });
  assert.ok(addresses.some(({ ip, device }) => ip === '10.88.0.222' && device === undefined));
});

test('of very many addresses some count, and of very many routes none', () => {
  const leaves = Array.from(
    { length: 5000 },
    (_, n) => `     |-- 10.9.${n >> 8}.${n & 255}\n        /32 host LOCAL\n`,
  );
  assert.equal(networkTables({ ...FILES, fib_trie: leaves.join('') }).addresses.length, MOST_ADDRESSES);
  const [header = '', eth0 = ''] = FILES.route.split('\n');
  const route = `${header}\n${`${eth0}\n`.repeat(5000)}`;
  assert.equal(networkTables({ ...FILES, route }).deviceTo(undefined, 4), undefined);
  assert.equal(
    networkTables({ ...FILES, route: `${header}\n${`${eth0}\n`.repeat(500)}` }).deviceTo(undefined, 4)?.name,
    'eth0',
  );
});
