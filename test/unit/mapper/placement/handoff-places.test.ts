import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { HandoffPlaces, type HandoffOptions } from '../../../../mapper/placement/handoff-places.ts';
import { branch, handoff } from '../../../../native/layout/layouts.ts';
import type { Cgroup } from '../../../../watcher/cgroup-tree.ts';
import { ownerOf } from '../../../../mapper/decisions/cgroup-path.ts';
import type { OwnedCgroup } from '../../../../mapper/inventory/owned-cgroup.ts';

const UID = '2c48913c-b29f-11e7-9350-020968147796';
const MINUTE = 60_000;

const cgroup = (id: bigint, path: string, parent = 1n): Cgroup => ({ id, path, parent });
const owned = (of: Cgroup): OwnedCgroup => ({ cgroup: of, owner: ownerOf(of.path) });
const HOST = [cgroup(2n, '/system.slice'), cgroup(3n, '/user.slice')];
const TREE = cgroup(10n, '/kubepods');
const POD = cgroup(11n, `/kubepods/pod${UID}`, 10n);
const CONTAINER = cgroup(12n, `${POD.path}/${'c'.repeat(64)}`, 11n);

/** A kernel of the test's own: what is attached where, what is told, and the order in which it happened. */
function setUp(given: { told?: readonly bigint[]; now?: { ms: number } } = {}) {
  const clock = given.now ?? { ms: 0 };
  const steps: string[] = [];
  const attached = new Set<string>();
  const told = new Set<bigint>(given.told ?? []);
  const values = new Map<bigint, number>([...told].map((id) => [id, 1]));
  const kernel = { denied: 0n, rootProcesses: false, refuses: '' };
  const dataPlane = {
    attachHandoff({ path }: { path: string }) {
      if (path === kernel.refuses) throw new Error('refused');
      steps.push(`attach ${path}`);
      attached.add(path);
    },
    detachHandoff: (id: bigint) => void steps.push(`detach ${id}`),
    maps: {
      handoffs: {
        entries: () => [...told].map((id) => [id, 1]),
        set: (id: bigint, value: number) => {
          told.add(id);
          values.set(id, value);
          steps.push(`tell ${id}`);
        },
        delete: (id: bigint) => {
          steps.push(`untell ${id}`);
          values.delete(id);
          return told.delete(id);
        },
      },
      counters: { get: () => ({ count: Object.assign([], { [branch.errorDenied]: kernel.denied }) }) },
    },
  } as unknown as HandoffOptions['dataPlane'];
  const places = new HandoffPlaces({
    dataPlane,
    root: { path: '/root', id: 1n },
    logger: pino({ level: 'silent' }),
    hasRootProcesses: () => kernel.rootProcesses,
    now: () => clock.ms,
  });
  for (const each of [...HOST, TREE, POD, CONTAINER]) places.cgroupAppeared(owned(each));
  return { places, steps, told, values, kernel, clock };
}

test('nothing is attached while nothing is redirected', () => {
  const { places, steps } = setUp();
  places.look(false);
  assert.deepEqual(steps, []);
});

test("a pod's outermost cgroup serves its containers", () => {
  const { places, steps } = setUp();
  places.podRedirected(POD);
  places.podRedirected(CONTAINER);
  places.podRedirected(POD);
  assert.deepEqual(steps, [`attach /root${POD.path}`]);
});

test('a container whose pod was not seen is attached by itself', () => {
  const { places, steps } = setUp();
  places.podRedirected(CONTAINER);
  assert.deepEqual(steps, [`attach /root${CONTAINER.path}`]);
});

test('branches of host processes are attached before they are told, and those of pods are not among them', () => {
  const { places, steps } = setUp();
  places.hostRedirected();
  places.hostRedirected();
  assert.deepEqual(steps, ['attach /root/system.slice', 'tell 2', 'attach /root/user.slice', 'tell 3']);
  places.cgroupAppeared(owned(cgroup(4n, '/machine.slice')));
  places.cgroupAppeared(owned(cgroup(5n, '/machine.slice/vm', 4n)));
  places.cgroupAppeared(owned(cgroup(6n, `/kubepods-pod${UID.replaceAll('-', '_')}.slice`)));
  assert.deepEqual(steps.slice(4), ['attach /root/machine.slice', 'tell 4']);
});

test('what is needed no more is told at once and detached when its last connection must be through', () => {
  const { places, steps, clock } = setUp();
  places.podRedirected(POD);
  places.hostRedirected();
  places.podReleased(POD.id);
  steps.splice(0);
  places.look(false);
  assert.deepEqual(steps.splice(0), ['untell 2', 'untell 3']);
  clock.ms += 2 * MINUTE;
  places.look(false);
  assert.deepEqual(steps.splice(0), []);
  clock.ms += MINUTE;
  places.look(false);
  assert.deepEqual(steps.splice(0).toSorted(), ['detach 11', 'detach 2', 'detach 3']);
});

test('a pod that comes back before its time is up stays attached', () => {
  const { places, steps, clock } = setUp();
  places.podRedirected(POD);
  places.podReleased(POD.id);
  places.look(false);
  places.podRedirected(POD);
  clock.ms += 5 * MINUTE;
  places.look(false);
  assert.deepEqual(steps, [`attach /root${POD.path}`]);
});

test('a cgroup that is gone is detached at once', () => {
  const { places, steps } = setUp();
  places.podRedirected(POD);
  places.hostRedirected();
  steps.splice(0);
  places.cgroupGone(owned(POD));
  places.cgroupGone(owned(HOST[0] as Cgroup));
  assert.deepEqual(steps, ['detach 11', 'untell 2', 'detach 2']);
});

for (const [what, prepare] of [
  [
    'processes live in the root itself',
    (kernel: { rootProcesses: boolean }) => void (kernel.rootProcesses = true),
  ],
  ['a process that no branch holds was denied', (kernel: { denied: bigint }) => void (kernel.denied += 1n)],
] as const) {
  test(`when ${what}, the root serves all, and the rest is let go`, () => {
    const { places, steps, told, kernel, clock } = setUp();
    places.podRedirected(POD);
    places.hostRedirected();
    steps.splice(0);
    prepare(kernel);
    places.look(true);
    assert.deepEqual(steps.splice(0), ['attach /root', 'tell 1', 'untell 2', 'untell 3']);
    assert.deepEqual([...told], [1n]);
    clock.ms += 3 * MINUTE;
    places.look(true);
    assert.deepEqual(steps.splice(0).toSorted(), ['detach 11', 'detach 2', 'detach 3']);
    places.podRedirected(cgroup(13n, '/kubepods/pod0', 10n));
    assert.deepEqual(steps, []);
  });
}

test('with very many branches the root serves all', () => {
  const { places, steps } = setUp();
  for (let n = 0n; n < 70n; n++) places.cgroupAppeared(owned(cgroup(100n + n, `/b${n}`)));
  places.hostRedirected();
  assert.deepEqual(steps, ['attach /root', 'tell 1']);
});

test('what an earlier agent had told stands until all that runs has been seen', () => {
  const { places, steps, told } = setUp({ told: [1n, 2n, 3n, 99n] });
  places.hostRedirected();
  assert.deepEqual([...told], [1n, 2n, 3n, 99n]);
  places.look(true);
  assert.deepEqual([...told], [2n, 3n]);
  assert.deepEqual(
    steps.filter((step) => step.startsWith('detach')),
    [],
  );
});

test('a refusal is thrown, nothing is told, and the next look tries again', () => {
  const { places, told, kernel } = setUp();
  kernel.refuses = '/root/user.slice';
  assert.throws(() => places.hostRedirected(), /refused/);
  assert.deepEqual([...told], [2n]);
  kernel.refuses = '';
  places.look(true);
  assert.deepEqual([...told], [2n, 3n]);
});

test('the root serves while a pod has no cgroup yet, and not a look longer', () => {
  const { places, steps, told } = setUp();
  places.podAwaited('a');
  places.podAwaited('b');
  places.look(false);
  assert.deepEqual(steps.splice(0), ['attach /root', 'tell 1'], 'attached before it is told');
  places.podRedirected(POD);
  places.podArrived('a');
  places.look(false);
  assert.deepEqual(steps.splice(0), [`attach /root${POD.path}`]);
  places.podArrived('b');
  places.look(false);
  assert.deepEqual(steps, ['untell 1', 'detach 1']);
  assert.deepEqual([...told], []);
});

test('what the root serves is told: awaited pods alone, or host processes, too', () => {
  const { places, values, kernel } = setUp();
  places.podAwaited('a');
  assert.deepEqual([...values], [[1n, handoff.pods]]);
  kernel.rootProcesses = true;
  places.look(true);
  assert.deepEqual([...values], [[1n, handoff.all]]);
  places.podAwaited('b');
  assert.deepEqual([...values], [[1n, handoff.all]]);
  kernel.rootProcesses = false;
  const next = setUp({ told: [1n] });
  next.places.podAwaited('a');
  next.places.look(false);
  assert.deepEqual(
    [...next.values],
    [[1n, handoff.pods]],
    'what an earlier agent told for host processes is no longer so',
  );
});

test('an agent that leaves has the root serve what appears later', () => {
  const { places, steps } = setUp();
  places.leave();
  assert.deepEqual(steps, []);
  const other = setUp();
  other.places.podRedirected(POD);
  other.steps.splice(0);
  other.places.leave();
  assert.deepEqual(other.steps, ['attach /root', 'tell 1']);
});
