import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, describe, test } from 'node:test';
import fc from 'fast-check';
import type { CgroupMount } from '../../../watcher/host.ts';
import {
  fromMount,
  localAddresses4,
  localAddresses6,
  ofOneProcess,
  openProc,
  startTime,
  unifiedPath,
} from '../../../watcher/proc.ts';

const FIB_TRIE = `Main:
  +-- 0.0.0.0/0 3 0 4
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.244.0.0/24 2 0 2
        |-- 10.244.0.0
           /24 link UNICAST
        |-- 10.244.0.9
           /32 link UNICAST
Local:
  +-- 0.0.0.0/0 3 0 4
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.244.0.0/24 2 0 2
        |-- 10.244.0.0
           /24 link UNICAST
        |-- 10.244.0.5
           /32 host LOCAL
        |-- 10.244.0.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        +-- 127.0.0.0/31 1 0 0
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
     |-- 169.254.7.7
        /32 host LOCAL
     |-- 192.168.9.9
        /32 host LOCAL
`;
const IF_INET6 = `fd770000000000000000000000000005 03 40 00 80     eth0
fe800000000000005054fffffe000001 03 40 20 80     eth0
00000000000000000000000000000001 01 80 10 80       lo
0000000000000000000000000af40005 03 80 00 80     eth0
fd770000000000000000000000000bad 03 40 00 88     eth0
fd770000000000010000000000000009 03 40 00 c0     eth0
`;

function stat(start: number, command = 'app'): string {
  return `7 (${command}) S ${Array.from({ length: 18 }, (_, i) => i).join(' ')} ${start} 0 0\n`;
}

describe('/proc on a fixture tree', () => {
  const roots: string[] = [];
  after(() => roots.forEach((root) => rmSync(root, { recursive: true })));

  function fixture(files: Record<string, string>, links: Record<string, string> = {}): string {
    const root = mkdtempSync(join(tmpdir(), 'cgroute-test-proc-'));
    roots.push(root);
    for (const file of [...Object.keys(files), ...Object.keys(links)])
      mkdirSync(dirname(join(root, file)), { recursive: true });
    for (const [file, text] of Object.entries(files)) writeFileSync(join(root, file), text);
    for (const [file, target] of Object.entries(links)) symlinkSync(target, join(root, file));
    return root;
  }

  const mount: CgroupMount = { version: 2, mountPoint: '/sys/fs/cgroup', root: '/' };
  const open = (
    files: Record<string, string>,
    links?: Record<string, string>,
    cgroupRoot = '/sys/fs/cgroup',
  ) => openProc({ procRoot: fixture(files, links), cgroupRoot, mount });

  test('the cgroup is that of the 0:: line, wherever it stands', () => {
    const proc = open({
      '1/cgroup': '0::/a/b\n',
      '2/cgroup': '9:name=systemd:/x\n0::/a/b\n1:cpu:/y\n',
      '3/cgroup': '0::/a/b\n12:memory:/last\n',
      '4/cgroup': '12:memory:/only/v1\n10::/not/this\n',
      '5/cgroup': '',
      '6/cgroup': '0::/\n',
      '7/cgroup': '0::/a/b (deleted)\n',
    });
    assert.deepEqual([1, 2, 3, 4, 5, 6, 7, 8].map(proc.cgroupOfPid), [
      '/a/b',
      '/a/b',
      '/a/b',
      undefined,
      undefined,
      '/',
      '/a/b',
      undefined,
    ]);
  });

  test('a cgroup is told relative to the watched root, and none outside of it', () => {
    const proc = open(
      {
        '1/cgroup': '0::/node/a\n',
        '2/cgroup': '0::/node\n',
        '3/cgroup': '0::/nodeb/a\n',
        '4/cgroup': '0::/a\n',
        '5/cgroup': '0::/node (deleted)\n',
        '6/cgroup': '0::/node b\n',
        '7/cgroup': '0::/../node/a\n',
      },
      {},
      '/sys/fs/cgroup/node',
    );
    assert.deepEqual([1, 2, 3, 4, 5, 6, 7].map(proc.cgroupOfPid), [
      '/a',
      '/',
      undefined,
      undefined,
      '/',
      undefined,
      undefined,
    ]);
  });

  test('a mount that starts above the own cgroup namespace shows the cgroups beside it', () => {
    const files = {
      '1/cgroup': '0::/../../system.slice/x\n',
      '2/cgroup': '0::/\n',
      '3/cgroup': '0::/init\n',
      '4/cgroup': '0::/../other\n',
      '5/cgroup': '0::/../../../above\n',
    };
    const options = {
      procRoot: fixture(files),
      cgroupRoot: '/host/cgroup',
      mount: { ...mount, mountPoint: '/host/cgroup', root: '/../..' },
    };
    const blind = openProc(options);
    assert.deepEqual([1, 2, 3, 4, 5].map(blind.cgroupOfPid), [
      '/system.slice/x',
      undefined,
      undefined,
      undefined,
      undefined,
    ]);
    const seeing = openProc({ ...options, namespacePath: '/kubepods/pod1' });
    assert.deepEqual([1, 2, 3, 4, 5].map(seeing.cgroupOfPid), [
      '/system.slice/x',
      '/kubepods/pod1',
      '/kubepods/pod1/init',
      '/kubepods/other',
      undefined,
    ]);
    const below = openProc({
      ...options,
      cgroupRoot: '/host/cgroup/kubepods',
      namespacePath: '/kubepods/pod1',
    });
    assert.deepEqual([1, 2, 3, 4, 5].map(below.cgroupOfPid), [
      undefined,
      '/pod1',
      '/pod1/init',
      '/other',
      undefined,
    ]);
  });

  test('addresses are those of another namespace than the host: no loopback, no link-local, none of the host', () => {
    const proc = open(
      {
        '1/stat': stat(1),
        '1/net/fib_trie': 'Local:\n     |-- 192.168.9.9\n        /32 host LOCAL\n',
        '1/net/if_inet6': 'fd770000000000010000000000000009 03 40 00 c0     eth0\n',
        '7/stat': stat(9),
        '7/net/fib_trie': FIB_TRIE,
        '7/net/if_inet6': IF_INET6,
        '8/stat': stat(9),
        '8/net/fib_trie': FIB_TRIE,
        '9/stat': stat(9),
        '9/net/fib_trie': 'Local:\n     |-- 10.0.0.1\n        /32 host LOCAL\n',
      },
      { '1/ns/net': 'net:[100]', '7/ns/net': 'net:[200]', '8/ns/net': 'net:[100]', '9/ns/net': 'net:[300]' },
    );
    assert.deepEqual(proc.addressesOf(7), {
      netns: 200,
      isHost: false,
      ips: ['10.244.0.5', 'fd77::5'],
      startedTicks: 9,
    });
    assert.deepEqual(proc.addressesOf(8), { netns: 100, isHost: true, ips: [], startedTicks: 9 });
    assert.deepEqual(
      proc.addressesOf(9),
      { netns: 300, isHost: false, ips: ['10.0.0.1'], startedTicks: 9 },
      'a kernel without IPv6',
    );
    assert.equal(proc.addressesOf(10), undefined);
    assert.equal(proc.hostNetns(), 100);
  });

  test('a process that is half gone is undefined, never an exception', () => {
    const links = {
      '1/ns/net': 'net:[1]',
      '3/ns/net': 'net:[1]',
      '4/ns/net': 'rubbish',
      '5/ns/net': 'net:[1]',
    };
    const proc = open(
      {
        '1/stat': stat(1),
        '2/stat': stat(1),
        '2/cgroup': '0::/a\n',
        '3/cgroup': '0::/a\n',
        '4/stat': stat(1),
        '4/cgroup': '0::/a\n',
        '5/stat': stat(1, 'a) b (c'),
        '5/cgroup': '0::/a\n',
      },
      links,
    );
    assert.deepEqual([1, 2, 3, 4].map(proc.processOf), [undefined, undefined, undefined, undefined]);
    assert.deepEqual(proc.processOf(5), { pid: 5, path: '/a', netns: 1 });
  });

  test('no text in the files makes a reader throw', () => {
    const root = fixture({ '7/stat': '' }, { '7/ns/net': 'net:[1]' });
    const proc = openProc({ procRoot: root, cgroupRoot: '/sys/fs/cgroup', mount });
    mkdirSync(join(root, '7/net'));
    fc.assert(
      fc.property(
        fc.string({ unit: 'binary', maxLength: 300 }),
        fc.string({ unit: 'binary', maxLength: 300 }),
        (a, b) => {
          writeFileSync(join(root, '7/cgroup'), a);
          writeFileSync(join(root, '7/stat'), b);
          writeFileSync(join(root, '7/net/fib_trie'), a);
          writeFileSync(join(root, '7/net/if_inet6'), b);
          proc.cgroupOfPid(7);
          proc.processOf(7);
          proc.addressesOf(7);
          localAddresses6(a);
          fromMount(a, b, a);
        },
      ),
      { numRuns: 60 },
    );
  });
});

test('a PID that changes hands in the middle of reading is nobody', () => {
  const starts = ['100', '100', '100', '200', '100', undefined];
  const next = () => starts.shift();
  assert.equal(
    ofOneProcess(next, () => 'one'),
    'one',
  );
  assert.equal(
    ofOneProcess(next, () => 'two'),
    undefined,
    'reused',
  );
  assert.equal(
    ofOneProcess(next, () => 'three'),
    undefined,
    'gone',
  );
  assert.equal(
    ofOneProcess(next, () => assert.fail('read although it was gone')),
    undefined,
  );
});

test('the start time is found behind a command with spaces and parentheses', () => {
  assert.equal(startTime(stat(4711, 'sh) R 1 (x')), '4711');
  assert.equal(
    startTime(stat(4711).replace(') S ', ') Z ')),
    undefined,
    'one that has ended has no addresses any more',
  );
  assert.equal(startTime('no parenthesis'), undefined);
});

test('the addresses of a namespace are read from both tables, once each', () => {
  assert.deepEqual(localAddresses4(FIB_TRIE + FIB_TRIE), ['10.244.0.5', '192.168.9.9']);
  assert.deepEqual(
    localAddresses4('     |-- 10.0.0.0\n        /24 link UNICAST\n        /32 host LOCAL\n'),
    ['10.0.0.0'],
    'a leaf with two prefixes',
  );
  assert.deepEqual(localAddresses6(IF_INET6), ['fd77::5', 'fd77:0:0:1::9']);
});

test('only a line that begins with 0:: is the unified one', () => {
  assert.equal(unifiedPath('10::/x\n0::/a b:c::d\n'), '/a b:c::d');
  assert.equal(unifiedPath('0:cpu:/x'), undefined);
});
