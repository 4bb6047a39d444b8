/** Whose connection it is: by the process's cgroup, else by the nearest of its ancestors that is known. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, test } from 'node:test';
import { dial } from '../harness/dialler.ts';
import { infoFlag } from '../../native/layout/layouts.ts';
import type { Cgroup } from '../../deploy/stage/cgroup.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { connect, type Connected, sock } from '../../deploy/stage/sock.ts';
import { assertDirect, assertFailed, assertRedirected, makeMesh, type Pod, PORT } from './mesh.ts';
import { at } from '../harness/travel.ts';
import { FOR_NOW } from '../harness/for-now.ts';

const mesh = await makeMesh('identity');
const { plane, app, server, sandbox } = mesh;
const out = await mesh.addPod('out', { inMesh: false });
const NO_KEY = 0;

after(() => mesh[Symbol.asyncDispose]());
afterEach(() => plane.nothingLeft());

/** Connects from a cgroup of the pod's, in the pod's namespace. */
function connectFrom(
  cgroup: Cgroup,
  pod: Pod = app,
  address = server.ip4,
): Promise<[Connected, Record<string, number>]> {
  return mesh.counted(() => connect({ cgroup, netns: pod.netns }, address, PORT));
}

test("first connect in a process's first millisecond: a container's cgroup that is made and used at once is its pod's", async () => {
  for (let i = 0; i < 20; i++) {
    const directory = join(app.podCgroup.absolute, `new-${i}`);
    const address = i % 2 === 0 ? server.ip4 : server.ip6;
    // Born into the cgroup: its first act is connect(), and nobody wrote an entry.
    const [result, counts] = await mesh.counted(() =>
      sock<Connected>(mesh.hostProcess(app.netns), 'first', '--mkdir', directory, address, PORT),
    );
    await assertRedirected(mesh, result, at(address, PORT));
    assert.deepEqual(counts, { 'app redirected': 1 });
  }
});

test("a cgroup inside a pod stays that pod's, whatever its name says", async () => {
  for (const [pod, victim, branch] of [
    [out, app, 'out'],
    [app, out, 'redirected'],
  ] as const) {
    const name = victim.podCgroup.path.split('/').at(-1) ?? '';
    for (const faked of [
      `kubepods/burstable/${name}/c`,
      `kubepods.slice/kubepods-${name}.slice/cri-containerd-1.scope`,
      name,
    ]) {
      const [result, counts] = await connectFrom(sandbox.cgroup(`${pod.cgroup.path}/${faked}`), pod);
      assert.ok(result.ok, JSON.stringify(result));
      assert.deepEqual(counts, { [`${pod.name} ${branch}`]: 1 }, faked);
    }
  }
});

test("ten levels below its container a process is still the pod's", async () => {
  let path = app.cgroup.path;
  for (let level = 0; level < 10; level++) path += `/${level}`;
  const [result, counts] = await connectFrom(sandbox.cgroup(path));
  await assertRedirected(mesh, result, at(server.ip4, PORT));
  assert.deepEqual(counts, { 'app redirected': 1 });
});

test('a container as deep as a kubelet within a container puts it, and what it starts, are known', async () => {
  const pod = sandbox.cgroup(
    'kubepods/system.slice/docker-1.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/x/y/pod',
  );
  const container = sandbox.cgroup(`${pod.path}/cri-containerd-1.scope`);
  assert.equal(container.path.split('/').length - 1, 10);
  plane.enrol(container, { slot: app.slot, ip4: app.ip4, ip6: app.ip6 });
  for (const cgroup of [
    container,
    sandbox.cgroup(`${container.path}/a`),
    sandbox.cgroup(`${container.path}/a/b/c/d/e/f/g/h`),
  ]) {
    const [result, counts] = await connectFrom(cgroup);
    await assertRedirected(mesh, result, at(server.ip4, PORT));
    assert.deepEqual(counts, { 'app redirected': 1 });
  }
});

test('the nearest cgroup that is known decides', async () => {
  const monitor = sandbox.cgroup(`${app.podCgroup.path}/crio-conmon-1`);
  plane.enrol(monitor, { slot: app.slot, inMesh: false, flags: infoFlag.hostNetwork });
  for (const cgroup of [monitor, sandbox.cgroup(`${monitor.path}/below`)]) {
    const [result, counts] = await connectFrom(cgroup);
    await assertDirect(mesh, result, at(server.ip4, PORT));
    assert.deepEqual(counts, { 'app out': 1 });
  }
  const enrolled = sandbox.cgroup(`${out.podCgroup.path}/enrolled`);
  plane.enrol(enrolled, { slot: app.slot, ip4: app.ip4, ip6: app.ip6 });
  await assertRedirected(
    mesh,
    (await connectFrom(sandbox.cgroup(`${enrolled.path}/a/b`)))[0],
    at(server.ip4, PORT),
  );
});

test("a container whose entry is gone is its pod's; without the pod's entry nobody's", async () => {
  const pod = await mesh.addPod('leaving');
  plane.plane.maps.cgroups.delete(pod.cgroup.id);
  const [result, counts] = await connectFrom(pod.cgroup, pod);
  await assertRedirected(mesh, result, at(server.ip4, PORT));
  assert.deepEqual(counts, { 'leaving redirected': 1 });
  plane.plane.maps.cgroups.delete(pod.podCgroup.id);
  plane.policies({ unknownPods: 'deny', whenProxyDown: 'deny' });
  const [denied, deniedCounts] = await connectFrom(pod.cgroup, pod);
  plane.policies(undefined);
  assertFailed(denied, FOR_NOW);
  assert.deepEqual(deniedCounts, { 'none unknownDenied': 1 });
});

test('a verdict that flips counts from the next connect of a running process on', async () => {
  const pod = await mesh.addPod('flipping');
  const loop = dial(sandbox, pod, { ip: server.ip4, port: PORT }, 1000);
  await using running = loop.running;
  const totals = loop.soFar;
  await eventually('it is redirected', () => (plane.counters(pod.slot).redirected ?? 0) > 5);
  for (const [inMesh, on, off] of [
    [false, 'server', 'proxy'],
    [true, 'proxy', 'server'],
  ] as const) {
    for (const cgroup of [pod.podCgroup, pod.cgroup])
      plane.enrol(cgroup, { slot: pod.slot, ip4: pod.ip4, ip6: pod.ip6, inMesh });
    // One connection may have been under way, and take its time on a busy machine.
    const first = await totals();
    await eventually('it is through', async () => (await totals())[on] > first[on]);
    const before = await totals();
    await eventually('it has gone on', async () => (await totals())[on] > before[on] + 5);
    assert.equal((await totals())[off], before[off]);
  }
  const all = await totals();
  // The signal that asks for the totals may interrupt a connect(), which is the asker's fault.
  assert.equal(all.failed - (all.errors['EINTR'] ?? 0), 0, JSON.stringify(all));
  await running.stop('SIGKILL');
});

test('a process moved between cgroups is treated as one of the new one from its next connect on', async () => {
  const loop = dial(sandbox, app, { ip: server.ip4, port: PORT }, 1000);
  await using running = loop.running;
  const below = sandbox.cgroup(`${app.cgroup.path}/moved`);
  const soFar = plane.counters(app.slot).redirected ?? 0;
  await eventually('it connects', () => (plane.counters(app.slot).redirected ?? 0) > soFar);
  for (const [cgroup, pod, branch] of [
    [app.cgroup, app, 'redirected'],
    [out.cgroup, out, 'out'],
    [below, app, 'redirected'],
    [sandbox.hostCgroup, undefined, 'foreignUntouched'],
    [app.podCgroup, app, 'redirected'],
  ] as const) {
    writeFileSync(join(cgroup.absolute, 'cgroup.procs'), String(running.pid));
    await loop.soFar(); // the connection that was under way is over
    const before = plane.counters(pod?.slot ?? 0)[branch] ?? 0;
    const [, counts] = await mesh.counted(() =>
      eventually('it has connected', () => (plane.counters(pod?.slot ?? 0)[branch] ?? 0) > before + 5),
    );
    assert.ok(
      Object.keys(counts).every((name) => name === `${pod?.name ?? 'none'} ${branch}`),
      JSON.stringify(counts),
    );
  }
  await running.stop('SIGKILL');
});

test("a pod outside the trees that have programs of their own is found by the root's, where it is listed", async () => {
  const pod = sandbox.cgroup('other.slice/pod');
  const container = sandbox.cgroup(`${pod.path}/container`);
  plane.enrol(pod, { slot: app.slot, ip4: app.ip4, ip6: app.ip6 });
  const { podTrees } = plane.plane.maps;
  const known = podTrees.get(NO_KEY);
  assert.ok(known);
  const dial = (): Promise<[Connected, Record<string, number>]> => connectFrom(container);
  // Not listed: its processes pass for those of a container of nobody's.
  assert.deepEqual((await dial())[1], { 'none foreignUntouched': 1 });
  try {
    for (const trees of [
      { count: 2, id: [mesh.podTree.id, sandbox.cgroup('other.slice').id] },
      { count: 9, id: [] }, // too many to list: looked for everywhere
    ]) {
      podTrees.set(NO_KEY, trees);
      const [result, counts] = await dial();
      await assertRedirected(mesh, result, at(server.ip4, PORT));
      assert.deepEqual(counts, { 'app redirected': 1 });
      assert.deepEqual((await mesh.counted(() => connect(mesh.hostProcess(), server.ip4, PORT)))[1], {
        'none hostUntouched': 1,
      });
    }
  } finally {
    podTrees.set(NO_KEY, known);
  }
});
