import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { CgrouteError } from '../../../native/error.ts';
import { topmost } from '../../../watcher/cgroup-watch.ts';
import { mountLevel } from '../../../watcher/cgroup-level.ts';
import { findCgroupMount, parseMountinfo, refuseV1Only } from '../../../watcher/host.ts';

const UNIFIED = '31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n';
const HYBRID =
  '31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n';
const V1 = '32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n';

function procWith(t: TestContext, mountinfo: string): string {
  const root = mkdtempSync(join(tmpdir(), 'cgroute-test-host-'));
  t.after(() => rmSync(root, { recursive: true }));
  mkdirSync(join(root, 'self'));
  writeFileSync(join(root, 'self/mountinfo'), mountinfo);
  return root;
}

function refusal(code: string, ...words: RegExp[]): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof CgrouteError);
    assert.equal(error.code, code);
    for (const word of words) assert.match(error.message, word);
    return true;
  };
}

test('cgroup mounts are read with their version and root, and with escaped characters', () => {
  assert.deepEqual(
    parseMountinfo(
      `${HYBRID}9 9 0:1 /../.. /mnt/a\\040b rw master:1 propagate_from:2 - cgroup2 none rw\nrubbish\n - cgroup2\n`,
    ),
    [
      { version: 1, root: '/', mountPoint: '/sys/fs/cgroup/cpu' },
      { version: 2, root: '/', mountPoint: '/sys/fs/cgroup/unified' },
      { version: 2, root: '/../..', mountPoint: '/mnt/a b' },
    ],
  );
});

test('the cgroup2 mount is found in unified and hybrid mounting', (t) => {
  assert.equal(findCgroupMount(procWith(t, UNIFIED)).mountPoint, '/sys/fs/cgroup');
  assert.equal(findCgroupMount(procWith(t, HYBRID)).mountPoint, '/sys/fs/cgroup/unified');
});

test("of a container's own mount and the host's, the host's is taken", (t) => {
  const both = `${UNIFIED}99 23 0:28 /../../.. /host/cgroup rw - cgroup2 cgroup rw\n`;
  assert.equal(findCgroupMount(procWith(t, both)).mountPoint, '/host/cgroup');
});

test('a host without cgroup v2 is refused, and told how to check', (t) => {
  assert.throws(() => findCgroupMount(procWith(t, V1)), refusal('ENOCGROUP2', /v1 only/, /stat -fc %T/));
  assert.throws(() => findCgroupMount(procWith(t, '')), refusal('ENOCGROUP2', /no cgroup file system/));
});

test('a proc root that is none is refused by name', () => {
  assert.throws(
    () => findCgroupMount('/nonexistent'),
    refusal('EPROC', /--proc-root/, /\/nonexistent\/self\/mountinfo/),
  );
});

test('a cgroup root outside cgroup2 is refused by name', () => {
  assert.throws(
    () => findCgroupMount('/proc', tmpdir()),
    refusal('ECGROUPROOT', /--cgroup-root/, /0x63677270/),
  );
  assert.throws(
    () => findCgroupMount('/proc', '/nonexistent'),
    refusal('ECGROUPROOT', /--cgroup-root/, /ENOENT/),
  );
});

test('a hybrid host whose containers are on v1 alone is refused', (t) => {
  const tree = mkdtempSync(join(tmpdir(), 'cgroute-test-v1-'));
  t.after(() => rmSync(tree, { recursive: true }));
  mkdirSync(join(tree, 'memory/kubelet.slice/kubepods.slice'), { recursive: true });
  mkdirSync(join(tree, 'unified/system.slice'), { recursive: true });
  const proc = procWith(
    t,
    `1 1 0:1 / ${tree}/memory rw - cgroup c rw\n2 1 0:2 / ${tree}/unified rw - cgroup2 c rw\n`,
  );
  assert.throws(
    () => refuseV1Only(['kubepods.slice'], proc),
    refusal('ECGROUPV1', /memory\/kubelet.slice\/kubepods.slice/, /stat -fc %T/),
  );
  refuseV1Only(['machine.slice'], proc);
  mkdirSync(join(tree, 'unified/kubepods.slice'));
  refuseV1Only(['kubepods.slice'], proc);
});

test("a mount's level follows from the reader's own level and the two paths", () => {
  const rows: readonly (readonly [mountRoot: string, ownPath: string, ownLevel: number, level: number])[] = [
    ['/', '/system.slice/a.service', 2, 0], // the host
    ['/', '/', 3, 3], // a node, in its root
    ['/', '/kubelet.slice/agent', 5, 3], // a node, and the reader further down
    ['/../../..', '/', 6, 3], // a pod with the node's mount
    ['/../../..', '/inner', 7, 3], // the same in a cgroup that the container has made
    ['/', '/../../user.slice/shell', 3, 3], // entered from outside: the common ancestor is at level 1
    ['/../../x', '/', 4, 3], // the mount of a branch beside
  ];
  for (const [mountRoot, ownPath, ownLevel, level] of rows)
    assert.equal(mountLevel(mountRoot, ownPath, ownLevel), level, `${mountRoot} ${ownPath}`);
});

test('hints below another hint are left out', () => {
  assert.deepEqual(topmost(['/a/b/c', '/a', '/ab', '/b/c', '/b/d']), ['/a', '/ab', '/b/c', '/b/d']);
  assert.deepEqual(topmost(['/a', '/']), ['/']);
});
