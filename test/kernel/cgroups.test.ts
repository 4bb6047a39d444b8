/** The kernel knows a pod's cgroup when mkdir() returns, believes no name below a pod, and tells of all below the root. */
import assert from 'node:assert/strict';
import { mkdirSync, rmdirSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { ownerOf } from '../../mapper/decisions/cgroup-path.ts';
import { monitorEntry, unknownEntry } from '../../mapper/maps/pod-entry.ts';
import {
  cgroupChange,
  handoff,
  infoFlag,
  proxyMode,
  type CgroupEvent,
  type CgroupInfo,
  type PodInfo,
} from '../../native/layout/layouts.ts';
import { cgroup2Mount } from '../../deploy/stage/cgroup.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import { bytesOf, openTestPlane, type TestPlane } from './data-plane.ts';

const UID = '2c48913c-b29f-11e7-9350-020968147796';
const SLICE_UID = UID.replaceAll('-', '_');
const OTHER = '9b1c6d3e-0001-4a4b-8c8d-1234567890ab';
const HASH = '0123456789abcdef0123456789abcdef';
const C = 'c'.repeat(64);

const POD: PodInfo = {
  slot: 7,
  isInMesh: 1,
  namespaceMode: 0,
  flags: infoFlag.ambient | infoFlag.bypassInbound,
  detectedFlags: 0xfd,
  ip4: bytesOf('10.1.2.3'),
  ip6: bytesOf('fd00::3'),
  proxyMode: proxyMode.inPod,
  netns: 4026531841n,
  uid: UID,
  verdict: 'bypass',
  reason: 'bypass-inbound',
  podNamespace: 'shop',
  podName: 'web',
  serviceAccount: 'default',
};
const fails = (error: unknown): void => void assert.fail(String(error));
const entryOf = (id: bigint, pod = POD): CgroupInfo => ({
  id,
  slot: pod.slot,
  isInMesh: pod.isInMesh,
  flags: pod.flags,
  detectedFlags: pod.detectedFlags,
  cgroupIp: pod.ip4,
  cgroupIp6: pod.ip6,
  proxyMode: pod.proxyMode,
  // Where its network is nobody has seen, when a pod's cgroup is made.
  netns: 0n,
});

describe('a cgroup that is made', () => {
  let sandbox: Sandbox;
  let plane: TestPlane;
  const events: CgroupEvent[] = [];
  before(async () => {
    sandbox = await makeSandbox('mkdir');
    plane = openTestPlane(sandbox);
    assert.equal(plane.plane.attachIdentity(), true, plane.plane.notes.join());
    plane.plane.maps.handoffs.set(plane.root.id, handoff.pods);
    plane.plane.maps.pods.set({ text: UID }, POD);
    plane.plane.maps.pods.set({ text: HASH }, { ...POD, slot: 8 });
  });
  after(async () => {
    plane?.[Symbol.dispose]();
    await sandbox?.[Symbol.asyncDispose]();
  });

  /** Makes a cgroup and its parents, and says what the map has for it at once. */
  function make(path: string): { readonly id: bigint; readonly entry: CgroupInfo | undefined } {
    const absolute = `${sandbox.cgroupRoot}${path}`;
    mkdirSync(dirname(absolute), { recursive: true });
    mkdirSync(absolute);
    const id = statSync(absolute, { bigint: true }).ino;
    return { id, entry: plane.plane.maps.cgroups.get(id) };
  }
  /** With all below it. */
  function remove(path: string): void {
    rmdirSync(`${sandbox.cgroupRoot}${path}`);
  }

  const slice = (qos: string, uid = SLICE_UID, head = ''): string =>
    `/kubepods.slice/${head}kubepods${qos}-pod${uid}.slice`;
  for (const path of [
    `/kubepods/pod${UID}`,
    `/kubepods/burstable/pod${UID}`,
    `/kubepods/besteffort/pod${UID}`,
    slice(''),
    `/kubepods.slice/kubepods-burstable.slice${slice('-burstable').slice('/kubepods.slice'.length)}`,
    slice('-besteffort'),
    slice('-besteffort', SLICE_UID, 'kubelet-'),
    slice('-burstable', SLICE_UID, 'a-root-of-its-own-'),
    `/kubepods-besteffort-pod${SLICE_UID}.slice:cri-containerd:${C}`,
    `/docker/${C}/kubepods/besteffort/pod${UID}`,
    `/system.slice/docker-${C}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod${SLICE_UID}.slice`,
  ]) {
    test(`is the pod's when mkdir() returns: ${path}`, () => {
      const owner = ownerOf(path);
      assert.equal(owner.kind === 'pod' && owner.uid, UID, 'as the agent reads it');
      const { id, entry } = make(path);
      assert.deepEqual(entry, entryOf(id));
      remove(path);
      assert.equal(plane.plane.maps.cgroups.get(id), undefined, "and is nobody's when it is gone");
    });
  }

  for (const path of [`/kubepods/burstable/pod${HASH}`, `/kubepods.slice/kubepods-pod${HASH}.slice`]) {
    test(`is the static pod's by its hash: ${path}`, () => {
      const { id, entry } = make(path);
      assert.deepEqual(entry, entryOf(id, { ...POD, slot: 8 }));
      remove(path);
    });
  }

  for (const path of [
    `/kubepods/pod${OTHER}`,
    slice('', OTHER.replaceAll('-', '_')),
    `/kubepods/besteffort/pod${'f'.repeat(32)}`,
  ]) {
    test(`is marked while nobody knows the pod: ${path}`, () => {
      const { id, entry } = make(path);
      assert.deepEqual(entry, unknownEntry(id));
      remove(path);
    });
  }

  for (const path of [
    `/pod${UID}`,
    `/elsewhere/pod${UID}`,
    `/kubepods/pod${UID}0`,
    `/kubepods/pod${UID.slice(1)}`,
    `/kubepods/pod${SLICE_UID}`,
    `/kubepods/Pod${UID}`,
    slice('', UID),
    slice('-guaranteed'),
    `/kubepods.slice/xkubepods-pod${SLICE_UID}.slice`,
    `/kubepods.slice/kubepods-pod${SLICE_UID}.scope`,
    `/kubepods-pod${SLICE_UID}.slice:other:${C}`,
    `/user.slice/kubepods/pod${UID}`,
    `/user.slice/user-1000.slice/kubepods-pod${SLICE_UID}.slice`,
    '/p',
    '/pod',
    '/kubepods-pod.slice',
    '/.slice',
    `/${'x'.repeat(255)}`,
  ]) {
    test(`is nobody's by a name that no kubelet gives, or in a place that is no kubelet's: ${path.slice(0, 80)}`, () => {
      assert.equal(make(path).entry, undefined);
      remove(path);
    });
  }

  for (const name of [C, `cri-containerd-${C}.scope`, `crio-${C}.scope`, `docker-${C}.scope`]) {
    test(`is its pod's container: ${name.slice(0, 20)}`, () => {
      const pod = `/kubepods.slice/kubepods-burstable-pod${SLICE_UID}.slice`;
      make(pod);
      const owner = ownerOf(`${pod}/${name}`);
      assert.ok(owner.kind === 'pod' && !owner.nested && owner.container === C);
      const { id, entry } = make(`${pod}/${name}`);
      assert.deepEqual(entry, entryOf(id));
      assert.equal(
        make(`${pod}/${name}/init.scope`).entry,
        undefined,
        'what is nested has its identity by its ancestors',
      );
      assert.equal(make(`${pod}/${name}/${C}`).entry, undefined);
      for (const below of ['/init.scope', `/${C}`, '']) remove(`${pod}/${name}${below}`);
      remove(pod);
      assert.equal(plane.plane.maps.cgroups.get(id), undefined);
    });
  }

  test("is in its pod's network where that is known, and the first container in one that nobody has seen", () => {
    const pod = `/kubepods.slice/kubepods-pod${SLICE_UID}.slice`;
    const container = (first: string): string => `${pod}/cri-containerd-${first}${C.slice(1)}.scope`;
    const { cgroups } = plane.plane.maps;
    const learn = (entry: CgroupInfo | undefined): void => {
      assert.ok(entry);
      cgroups.set(entry.id, { ...entry, netns: POD.netns });
    };
    const { id, entry } = make(pod);
    assert.equal(make(container('a')).entry?.netns, 0n);
    learn(entry);
    assert.equal(make(container('b')).entry?.netns, POD.netns);
    for (const first of ['a', 'b']) remove(container(first));
    assert.equal(cgroups.get(id)?.netns, POD.netns);
    for (const first of ['c', 'd']) assert.equal(make(container(first)).entry?.netns, 0n);
    assert.equal(cgroups.get(id)?.netns, 0n);
    for (const first of ['c', 'd']) remove(container(first));
    remove(pod);
  });

  test("is CRI-O's monitor, which is in the host's network, and is never redirected", () => {
    const pod = `/kubepods.slice/kubepods-pod${SLICE_UID}.slice`;
    make(pod);
    const { id, entry } = make(`${pod}/crio-conmon-${C}.scope`);
    assert.deepEqual(entry, monitorEntry(id, POD.slot));
    remove(`${pod}/crio-conmon-${C}.scope`);
    remove(pod);
  });

  test("is nobody's inside a pod that is its own container, whatever it is called: a monitor's name least of all", () => {
    for (const tree of ['', '/kubepods']) {
      const pod = `${tree}/kubepods-besteffort-pod${SLICE_UID}.slice:cri-containerd:${C}`;
      assert.notEqual(make(pod).entry, undefined);
      for (const name of [`crio-conmon-${C}.scope`, `libpod-conmon-${C}.scope`, `docker-${C}.scope`, C]) {
        const owner = ownerOf(`${pod}/${name}`);
        assert.ok(owner.kind === 'pod' && owner.nested && !owner.monitor, 'as the agent reads it');
        assert.equal(make(`${pod}/${name}`).entry, undefined, name);
        remove(`${pod}/${name}`);
      }
      remove(pod);
    }
  });

  test('in a branch that is new has pods looked for there', () => {
    const trees = (): readonly bigint[] => {
      const { count = 0, id = [] } = plane.plane.maps.podTrees.get(0) ?? {};
      return id.slice(0, count);
    };
    const branchOf = (name: string): bigint =>
      statSync(`${sandbox.cgroupRoot}/${name}`, { bigint: true }).ino;
    assert.ok(trees().includes(branchOf('kubepods')) && trees().includes(branchOf('kubepods.slice')));
    assert.ok(!trees().includes(branchOf('user.slice')));
    assert.equal(new Set(trees()).size, trees().length, 'each once');
  });

  test('never passes for another pod below one, however deep', () => {
    const outer = make(`/kubepods/pod${OTHER}`);
    for (const below of [
      `/pod${UID}`,
      `/kubepods/pod${UID}`,
      `/${C}/kubepods.slice/kubepods-pod${SLICE_UID}.slice`,
      `/${C}/a/b/c/kubepods/burstable/pod${UID}`,
    ]) {
      assert.equal(make(`/kubepods/pod${OTHER}${below}`).entry, undefined, below);
    }
    assert.deepEqual(plane.plane.maps.cgroups.get(outer.id), unknownEntry(outer.id));
  });

  test('is left to the agent where it lies too deep', () => {
    const deep = '/1/2/3/4/5/6/7/8';
    assert.notEqual(make(`${deep}/kubepods/pod${UID}`).entry, undefined, 'the tenth level');
    assert.equal(make(`${deep}/9/kubepods/pod${UID}`).entry, undefined);
  });

  test('outside the watched root is none of its business', async () => {
    await using other = await makeSandbox('beside');
    const path = `${other.cgroupRoot}/kubepods/pod${UID}`;
    const heard: CgroupEvent[] = [];
    using _ = plane.plane.watchCgroupEvents((event) => void heard.push(event), fails);
    const start = make('/start');
    mkdirSync(path, { recursive: true });
    assert.equal(plane.plane.maps.cgroups.get(statSync(path, { bigint: true }).ino), undefined);
    assert.ok(other.cgroupRoot.startsWith(cgroup2Mount()));
    const inside = make('/heard');
    await eventually('what comes after it', () => heard.some(({ id }) => id === inside.id));
    // What nobody had read before comes first.
    assert.deepEqual(
      heard.slice(heard.findIndex(({ id }) => id === start.id)).map(({ name }) => name),
      ['start', 'heard'],
    );
  });

  test('and removed, both are told, with their names', async () => {
    using _ = plane.plane.watchCgroupEvents((event) => void events.push(event), fails);
    const first = make('/first');
    const parent = make('/told');
    const child = make('/told/child');
    const long = make(`/told/${'y'.repeat(200)}`);
    remove('/told/child');
    const told = (): CgroupEvent[] => events.slice(events.findIndex(({ id }) => id === first.id) + 1);
    await eventually('four events', () => told().length >= 4);
    assert.deepEqual(told(), [
      {
        id: parent.id,
        parent: statSync(sandbox.cgroupRoot, { bigint: true }).ino,
        change: cgroupChange.made,
        name: 'told',
      },
      { id: child.id, parent: parent.id, change: cgroupChange.made, name: 'child' },
      { id: long.id, parent: parent.id, change: cgroupChange.made, name: 'y'.repeat(127) },
      { id: child.id, parent: parent.id, change: cgroupChange.removed, name: 'child' },
    ]);
  });

  test('an entry that is there already is newer', () => {
    plane.plane.maps.pods.set({ text: UID }, { ...POD, isInMesh: 0 });
    const { id, entry } = make(`/kubepods/pod${UID}`);
    assert.equal(entry?.isInMesh, 0, 'as the pod is by now');
    remove(`/kubepods/pod${UID}`);
    plane.plane.maps.pods.set({ text: UID }, POD);
    assert.equal(plane.plane.maps.cgroups.get(id), undefined);
  });

  test('says so where nobody attached what tells the proxy destinations, as do its containers', () => {
    const { handoffs } = plane.plane.maps;
    const branchOf = (): bigint => statSync(`${sandbox.cgroupRoot}/kubepods`, { bigint: true }).ino;
    handoffs.delete(plane.root.id);
    const withFlag = (id: bigint): CgroupInfo => ({
      ...entryOf(id),
      flags: POD.flags | infoFlag.noHandoff,
      detectedFlags: POD.detectedFlags | infoFlag.noHandoff,
    });
    const pod = make(`/kubepods/pod${UID}`);
    assert.deepEqual(pod.entry, withFlag(pod.id));
    const container = make(`/kubepods/pod${UID}/${C}`);
    assert.deepEqual(container.entry, withFlag(container.id));
    for (const path of [`/kubepods/pod${UID}/${C}`, `/kubepods/pod${UID}`]) remove(path);
    plane.plane.maps.pods.set({ text: UID }, { ...POD, isInMesh: 0 });
    assert.equal(
      (make(`/kubepods/pod${UID}`).entry?.flags ?? 0) & infoFlag.noHandoff,
      0,
      'a pod that is out has nothing to hand over',
    );
    remove(`/kubepods/pod${UID}`);
    plane.plane.maps.pods.set({ text: UID }, POD);
    handoffs.set(branchOf(), handoff.all);
    const covered = make(`/kubepods/pod${UID}`);
    assert.deepEqual(covered.entry, entryOf(covered.id), 'or its branch is served as host processes are');
    remove(`/kubepods/pod${UID}`);
    handoffs.delete(branchOf());
    handoffs.set(plane.root.id, handoff.pods);
  });

  test("is known by the pins alone, and by the next agent's programs", () => {
    plane[Symbol.dispose]();
    {
      using next = openTestPlane(sandbox);
      assert.ok(make(`/kubepods/burstable/pod${UID}`).id);
      const id = statSync(`${sandbox.cgroupRoot}/kubepods/burstable/pod${UID}`, { bigint: true }).ino;
      assert.deepEqual(next.plane.maps.cgroups.get(id), entryOf(id));
      next.plane.attachIdentity();
      assert.deepEqual(next.plane.repairLinks(), []);
      remove(`/kubepods/burstable/pod${UID}`);
      assert.equal(next.plane.maps.cgroups.get(id), undefined);
      next.plane.detach();
    }
    using fresh = openTestPlane(sandbox);
    fresh.plane.maps.pods.set({ text: UID }, POD);
    mkdirSync(`${sandbox.cgroupRoot}/kubepods/burstable/pod${UID}`);
    assert.deepEqual(fresh.plane.maps.cgroups.keys(), [], 'nothing of it is left');
  });
});

test('a name below a pod is not believed where that pod has no entry itself, as the map was full or it was made before', async () => {
  await using sandbox = await makeSandbox('full');
  using plane = openTestPlane(sandbox, { maxEntries: { cgroup_info_map: 1 } });
  const { cgroups, pods } = plane.plane.maps;
  const make = (path: string): CgroupInfo | undefined => {
    mkdirSync(`${sandbox.cgroupRoot}${path}`, { recursive: true });
    return cgroups.get(statSync(`${sandbox.cgroupRoot}${path}`, { bigint: true }).ino);
  };
  make(`/kubepods.slice/kubepods-pod${SLICE_UID}.slice`);
  make(`/kubepods-besteffort-pod${SLICE_UID}.slice:cri-containerd:${C}`);
  const unusual = `/kubepods-burstable-podmy_own.slice:cri-containerd:${C}`;
  make(unusual);
  assert.equal(plane.plane.attachIdentity(), true, plane.plane.notes.join());
  pods.set({ text: UID }, POD);
  assert.notEqual(make('/kubepods/besteffort/pod11111111-0001-4a4b-8c8d-1234567890ab'), undefined);
  assert.equal(make(`/kubepods/pod${OTHER}/${C}`), undefined, 'full');
  cgroups.delete(
    statSync(`${sandbox.cgroupRoot}/kubepods/besteffort/pod11111111-0001-4a4b-8c8d-1234567890ab`, {
      bigint: true,
    }).ino,
  );
  for (const above of [
    `/kubepods/pod${OTHER}`,
    `/kubepods/pod${OTHER}/${C}/a/b`,
    `/kubepods.slice/kubepods-pod${SLICE_UID}.slice/${C}`,
    `/kubepods-besteffort-pod${SLICE_UID}.slice:cri-containerd:${C}`,
    unusual,
  ]) {
    for (const name of [`kubepods/burstable/pod${UID}`, `kubepods-pod${SLICE_UID}.slice`]) {
      assert.equal(make(`${above}/${name}`), undefined, `${above}/${name}`);
    }
  }
  assert.notEqual(make(`/kubepods/burstable/pod${UID}`), undefined, 'though there is room');
});
