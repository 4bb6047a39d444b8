/** The level of the watched root in the kernel's hierarchy, from wherever it is looked at. */
import assert from 'node:assert/strict';
import { relative } from 'node:path';
import { test } from 'node:test';
import { probeFeatures } from '../../native/survey/capability.ts';
import { CgrouteError } from '../../native/error.ts';
import { levelOf } from '../../watcher/cgroup-level.ts';
import { isWholeHierarchy, findCgroupMount } from '../../watcher/host.ts';
import { type Cgroup, cgroup2Mount } from '../../deploy/stage/cgroup.ts';
import { type Program, run } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';

/** Where this is missing, the agent says so when it is in a cgroup namespace: the last test but one. */
const UNTOLD =
  probeFeatures().some(
    ({ name, support }) => name === 'bpf_get_current_ancestor_cgroup_id in syscall' && support === 'no',
  ) && 'this kernel has no programs of type syscall that may ask for ancestors; Linux 5.15 has them';

const url = (path: string): string => new URL(`../../${path}`, import.meta.url).href;

/** Prints what {@link levelOf} says of a place, and what the paths alone would say. */
const SCRIPT = `
  const { levelOf, mountLevel } = await import(${JSON.stringify(url('watcher/cgroup-level.ts'))});
  const { findCgroupMount } = await import(${JSON.stringify(url('watcher/host.ts'))});
  const { unifiedPath } = await import(${JSON.stringify(url('watcher/proc.ts'))});
  const { ownCgroups } = await import(${JSON.stringify(url('native/bpf/cgroup-level.ts'))});
  const place = process.argv[1];
  const mount = findCgroupMount('/proc', place);
  const own = unifiedPath((await import('node:fs')).readFileSync('/proc/self/cgroup', 'utf8'));
  const below = place.slice(mount.mountPoint.length).split('/').filter(Boolean).length;
  console.log(JSON.stringify({ mount: mount.root, own, told: levelOf(place), byPath: mountLevel(mount.root, own, ownCgroups().length - 1) + below }));`;

interface Seen {
  /** The mount's root and this process's cgroup, as the namespace writes them. */
  readonly mount: string;
  readonly own: string;
  readonly told: number;
  readonly byPath: number;
}

const look = (place: string): readonly string[] => [
  process.execPath,
  '--input-type=module',
  '-e',
  SCRIPT,
  place,
];

async function seen(program: Program): Promise<Seen> {
  const { code, stdout, stderr } = await run(program);
  assert.equal(code, 0, stderr);
  return JSON.parse(stdout) as Seen;
}

/** A process in `cgroup` makes a cgroup namespace, then runs `script` in a mount namespace, with a place of the host as $0. */
function namespaced(cgroup: Cgroup, script: string, host: string, ...args: readonly string[]): Program {
  return {
    cmd: 'unshare',
    args: ['--cgroup', '--mount', '--propagation', 'private', 'sh', '-ec', script, host, ...args],
    cgroup,
  };
}

const NEW_MOUNT = 'umount --lazy --recursive /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; ';

test('the kernel tells the ids of all cgroups that this process is in, its own last', {
  skip: UNTOLD,
}, async () => {
  await using sandbox = await makeSandbox('level');
  const script = `console.log((await import(${JSON.stringify(url('native/bpf/cgroup-level.ts'))})).ownCgroups().join(' '))`;
  const cgroup = sandbox.cgroup('/a/b');
  const { stdout, stderr } = await run({
    cmd: process.execPath,
    args: ['--input-type=module', '-e', script],
    cgroup,
  });
  const ids = stdout.split(' ').map(BigInt);
  assert.deepEqual(ids.slice(-3), [sandbox.cgroup('/').id, sandbox.cgroup('/a').id, cgroup.id], stderr);
  assert.equal(ids[0], 1n);
});

test('the level is the same from the host, from a node in a cgroup namespace, and from a pod in that', {
  skip: UNTOLD,
}, async (t) => {
  await using sandbox = await makeSandbox('level');
  if (!isWholeHierarchy(findCgroupMount('/proc', sandbox.cgroupRoot)))
    return t.skip('this machine shows a part of the hierarchy only');
  const level = relative(cgroup2Mount(), sandbox.cgroupRoot).split('/').length;
  const node = sandbox.cgroup('/node');
  const pod = sandbox.cgroup('/node/kubepods/pod1/c1');
  const beside = sandbox.cgroup('/beside/d');
  const at = (mount: string, own: string, told: number): Seen => ({ mount, own, told, byPath: told });

  assert.equal(levelOf(node.absolute), level + 1);
  const rows: readonly (readonly [what: string, program: Program, expected: Seen])[] = [
    [
      'the host',
      { cmd: process.execPath, args: look(node.absolute).slice(1), cgroup: pod },
      at('/', pod.absolute.slice(cgroup2Mount().length), level + 1),
    ],
    [
      'a node',
      namespaced(node, `${NEW_MOUNT} exec "$@"`, '-', ...look('/sys/fs/cgroup')),
      at('/', '/', level + 1),
    ],
    [
      'a part of a node',
      namespaced(node, `${NEW_MOUNT} exec "$@"`, '-', ...look('/sys/fs/cgroup/kubepods')),
      at('/', '/', level + 2),
    ],
    [
      "a pod with the node's mount",
      namespaced(
        node,
        `${NEW_MOUNT} echo 0 >/sys/fs/cgroup/kubepods/pod1/c1/cgroup.procs; exec unshare --cgroup "$@"`,
        '-',
        ...look('/sys/fs/cgroup'),
      ),
      at('/../../..', '/', level + 1),
    ],
    [
      'a pod with its own mount',
      namespaced(pod, `${NEW_MOUNT} exec "$@"`, '-', ...look('/sys/fs/cgroup')),
      at('/', '/', level + 4),
    ],
    [
      'a process that has left the namespace',
      namespaced(
        node,
        `exec 9>"$0/cgroup.procs"; ${NEW_MOUNT} echo 0 >&9; exec "$@"`,
        beside.absolute,
        ...look('/sys/fs/cgroup/kubepods'),
      ),
      at('/', '/../beside/d', level + 2),
    ],
    [
      'a pod with the mount of a branch that is not its own',
      namespaced(
        pod,
        'mount --bind "$0" /mnt; umount --lazy --recursive /sys/fs/cgroup; exec "$@"',
        beside.absolute,
        ...look('/mnt'),
      ),
      at('/../../../../beside/d', '/', level + 2),
    ],
  ];
  for (const [what, program, expected] of rows) assert.deepEqual(await seen(program), expected, what);
});

test('where the kernel does not tell it, that is said with what it takes', async () => {
  await using sandbox = await makeSandbox('level');
  const bare = ['setpriv', '--bounding-set=-all', '--inh-caps=-all'];
  const { code, stderr } = await run(
    namespaced(sandbox.cgroup('/node'), `${NEW_MOUNT} exec "$@"`, '-', ...bare, ...look('/sys/fs/cgroup')),
  );
  assert.notEqual(code, 0);
  assert.match(
    stderr,
    /CgrouteError: --cgroup-root \/sys\/fs\/cgroup is seen from inside a cgroup namespace, and its depth on this host could not be told \(.*EPERM.*\): expected CAP_BPF and Linux 5\.15 or later/,
  );
});

test('on the whole hierarchy the kernel is not even asked', (t) => {
  const root = cgroup2Mount();
  if (!isWholeHierarchy(findCgroupMount('/proc', root)))
    return t.skip('this machine shows a part of the hierarchy only');
  assert.equal(
    levelOf(root, '/proc', () => {
      throw new CgrouteError('EBPF', 'asked');
    }),
    0,
  );
});
