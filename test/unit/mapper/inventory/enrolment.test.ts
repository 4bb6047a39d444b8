/** What `enrollment: new-pods` remembers of a pod's namespace, and for how long. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import type { PodInfo } from '../../../../native/layout/layouts.ts';
import { parseConfig } from '../../../../mapper/config/config.ts';
import { EndedPods } from '../../../../mapper/inventory/ended-pods.ts';
import { Enrolment, modeCode, modeOfCode } from '../../../../mapper/inventory/enrolment.ts';
import { createInventory } from '../../../../mapper/inventory/inventory.ts';
import { isYounger, MOST_CHANGES, NamespaceModes } from '../../../../mapper/inventory/namespace-modes.ts';
import type { Pod } from '../../../../mapper/objects/pod.ts';
import { namespaceOf, type Namespace } from '../../../../mapper/objects/namespace.ts';
import { MODE, SIDECAR_STATUS } from '../../../harness/label-names.ts';
import { podWith } from '../pod-with.ts';

const UID = '2c48913c-b29f-11e7-9350-020968147796';
const HASH = '0123456789abcdef0123456789abcdef';
const SIDECAR = { [SIDECAR_STATUS]: '{}' };

const web = (changes: Partial<Pod> = {}): Pod => podWith({ uid: UID, ...changes });

/** What stands in the map outlives an agent. */
function setUp(map = new Map<string, Pick<PodInfo, 'namespaceMode'>>()) {
  const agent = (yaml = 'enrollment: new-pods') => {
    const config = parseConfig(yaml, 'test.yaml');
    const inventory = createInventory({ node: 'node-a' });
    const enrolment = new Enrolment({
      inventory,
      config,
      ended: new EndedPods({ lifeOf: () => 'empty', isComplete: () => true }),
      maps: { pods: { get: ({ text }) => map.get(text) as PodInfo | undefined } },
    });
    return {
      enrolment,
      label: (mode?: string, facts: Partial<Namespace> = {}) => {
        const namespace = { name: 'shop', labels: mode === undefined ? {} : { [MODE]: mode }, ...facts };
        enrolment.namespaceSeen(namespace);
        inventory.upsertNamespace(namespace);
      },
      reason: (pod = web()) => enrolment.decide(pod).reason,
      save: (pod = web()) =>
        void map.set(pod.configHash ?? pod.uid, { namespaceMode: enrolment.codeOf(pod) }),
    };
  };
  return { map, agent };
}

describe('with new-pods, a pod', () => {
  test('keeps what its namespace had when it was first seen, in the mesh and outside', () => {
    const { label, enrolment, reason } = setUp().agent();
    label();
    enrolment.changed(UID, web());
    label('ambient');
    assert.equal(reason(), 'not-enrolled');
    const later = web({ uid: 'b29f' });
    enrolment.changed(later.uid, later);
    assert.equal(reason(later), 'namespace-label');
    label();
    assert.deepEqual([reason(), reason(later)], ['not-enrolled', 'namespace-label']);
  });

  test('keeps it when another agent takes over, with whatever label by then', () => {
    const { agent } = setUp();
    const first = agent();
    first.label('kmesh');
    first.save();
    const second = agent();
    second.label();
    assert.equal(second.reason(), 'namespace-label');
    assert.equal(
      second.reason(web({ annotations: SIDECAR })),
      'sidecar-short-circuited',
      'the mode itself is kept',
    );
    assert.equal(
      second.reason(web({ uid: 'b29f' })),
      'not-enrolled',
      'one that nobody has seen before is new',
    );
    second.save();
    const third = agent();
    third.label('ambient');
    assert.equal(third.reason(web({ annotations: SIDECAR })), 'sidecar-short-circuited');
  });

  test('keeps what it had under live, when that was changed', () => {
    const { agent } = setUp();
    const live = agent('enrollment: live');
    live.label();
    live.save();
    live.label('ambient');
    assert.equal(live.reason(), 'namespace-label');
    live.save();
    const next = agent();
    next.label();
    assert.equal(next.reason(), 'namespace-label');
    const back = agent('enrollment: live');
    back.label();
    assert.equal(back.reason(), 'not-enrolled');
  });

  test('that is static is known by its configuration, as its UID in the API changes', () => {
    const { agent } = setUp();
    const first = agent();
    first.label('ambient');
    first.save(web({ configHash: HASH }));
    const second = agent();
    second.label();
    assert.equal(second.reason(web({ configHash: HASH, uid: 'b29f' })), 'namespace-label');
  });

  test('obeys its own labels at once', () => {
    const { label, reason } = setUp().agent();
    label();
    assert.equal(reason(), 'not-enrolled');
    assert.equal(reason(web({ labels: { [MODE]: 'ambient' } })), 'pod-label');
    label('ambient');
    assert.equal(reason(web({ labels: { [MODE]: 'none' } })), 'pod-opt-out');
    assert.equal(reason(), 'not-enrolled');
  });

  test('says in its explanation which of the two counts', () => {
    const { label, enrolment } = setUp().agent();
    label('ambient');
    enrolment.changed(UID, web());
    label();
    const step = enrolment.decide(web()).trace.find(({ rule }) => rule === 10);
    assert.equal(
      step?.saw,
      'namespace label istio.io/dataplane-mode absent; when the pod was first seen, ambient, which counts (enrollment: new-pods)',
    );
  });

  test('is out when its mode is no longer configured', () => {
    const { agent } = setUp();
    const first = agent('enrollment: new-pods\nmeshModes: [ambient, blue]');
    first.label('blue');
    first.save();
    const second = agent();
    second.label('ambient');
    assert.equal(second.reason(), 'not-enrolled');
  });
});

describe('with new-pods, a pod and a label of the same moment', () => {
  const at = (second: number): number => Date.UTC(2026, 0, 1, 12, 0, second);
  const pod = (second: number, version: bigint): Pod =>
    web({ uid: `pod-${second}-${version}`, createdAt: at(second), version });
  const labelled = (second: number | undefined, version: bigint): Partial<Namespace> => ({
    version,
    ...(second === undefined ? {} : { modeSetAt: at(second) }),
  });

  test('are in the order of their versions, whichever is told of first', () => {
    const { label, enrolment, reason } = setUp().agent();
    label(undefined, { version: 90n });
    const [before, after] = [pod(10, 99n), pod(10, 101n)];
    for (const each of [before, after]) enrolment.changed(each.uid, each);
    assert.deepEqual([reason(before), reason(after)], ['not-enrolled', 'not-enrolled']);
    label('ambient', labelled(10, 100n));
    const [later, late] = [pod(10, 102n), web({ ...pod(10, 98n), uid: 'late' })];
    assert.deepEqual(
      [before, after, later, late].map((each) => reason(each)),
      ['not-enrolled', 'namespace-label', 'namespace-label', 'not-enrolled'],
    );
    label(undefined, { version: 103n });
    assert.deepEqual(
      [before, after, later, late].map((each) => reason(each)),
      ['not-enrolled', 'namespace-label', 'namespace-label', 'not-enrolled'],
    );
    assert.equal(enrolment.codeOf(after), modeCode('ambient'), 'and so it is remembered');
  });

  test('are so through several changes that are all told of before the pod', () => {
    const { label, reason } = setUp().agent();
    label('kmesh', { version: 90n });
    label(undefined, { version: 100n });
    label('ambient', labelled(10, 110n));
    label('none', labelled(10, 120n));
    const modes = [95n, 105n, 115n, 125n].map((version) =>
      reason(web({ ...pod(10, version), annotations: SIDECAR })),
    );
    assert.deepEqual(modes, ['sidecar-short-circuited', 'not-enrolled', 'sidecar', 'not-enrolled']);
  });

  test('that are two seconds apart are in the order of their times, as a pod is bound to its node later than it is made', () => {
    const { label, enrolment, reason } = setUp().agent();
    label(undefined, { version: 90n });
    const known = pod(12, 95n);
    enrolment.changed(known.uid, known);
    label('ambient', labelled(10, 100n));
    assert.deepEqual(
      [known, pod(8, 500n), pod(9, 500n), pod(12, 99n)].map((each) => reason(each)),
      ['namespace-label', 'not-enrolled', 'namespace-label', 'namespace-label'],
    );
  });

  test('are in the order in which they were told of where nothing else is known, and for a removed label after ten seconds', () => {
    const change = { mode: undefined, setAt: undefined, version: undefined, seenAt: 50_000 };
    const sight = { createdAt: at(1), version: 5n, seenAt: 50_000 };
    assert.equal(isYounger(sight, change), true, 'a manifest has both at once');
    assert.equal(isYounger({ ...sight, seenAt: 49_999 }, change), false);
    const removed = { ...change, version: 4n };
    assert.equal(isYounger({ ...sight, seenAt: 40_000 }, removed), true);
    assert.equal(
      isYounger({ ...sight, seenAt: 39_000 }, removed),
      false,
      'versions that nobody promised to be comparable do not move old pods',
    );
    assert.equal(isYounger({ ...sight, version: 3n, seenAt: 61_000 }, removed), true);
  });

  test('do not meet those of a namespace that was deleted and made again', () => {
    const { label, enrolment, reason } = setUp().agent();
    label('ambient', labelled(10, 90n));
    enrolment.namespaceGone('shop');
    label(undefined, { version: 110n });
    assert.equal(reason(pod(10, 100n)), 'not-enrolled');
    enrolment.namespacesAre([{ name: 'other', labels: {} }]);
    label('ambient', labelled(10, 120n));
    assert.equal(reason(pod(10, 121n)), 'namespace-label', 'what it has when it is first seen it always had');
  });

  test('a namespace remembers a hundred changes, and what was before them', () => {
    const modes = new NamespaceModes(parseConfig('', 'test.yaml'));
    const names = ['ambient', 'kmesh'];
    const last = MOST_CHANGES + 20;
    for (let version = 0; version <= last; version++)
      modes.seen({ name: 'shop', labels: { [MODE]: names[version % 2] ?? '' }, version: BigInt(version) }, 0);
    const had = (version: number): string | undefined =>
      modes.at('shop', { createdAt: 0, version: BigInt(version), seenAt: 0 });
    assert.deepEqual(
      [had(last + 1), had(last), had(22), had(21), had(20)],
      ['ambient', 'kmesh', 'kmesh', 'ambient', 'ambient'],
    );
  });

  test('the time of a label is that of its first writer, and a version is a number', () => {
    const writer = (time: string, label: string): object => ({
      manager: 'x',
      time,
      fieldsV1: { 'f:metadata': { 'f:labels': { '.': {}, [`f:${label}`]: {} } } },
    });
    const metadata = {
      name: 'shop',
      resourceVersion: '340282366920938463463374607431768211455',
      managedFields: [
        writer('2026-01-01T12:00:09Z', 'team'),
        writer('2026-01-01T12:00:20Z', MODE),
        writer('2026-01-01T12:00:10Z', MODE),
        writer('never', MODE),
        null,
        { time: 7 },
      ],
    };
    assert.deepEqual(namespaceOf({ metadata }), {
      name: 'shop',
      labels: Object.create(null) as object,
      version: 2n ** 128n - 1n,
      modeSetAt: at(10),
    });
    assert.deepEqual(namespaceOf({ metadata: { name: 'shop', resourceVersion: 'x7', managedFields: {} } }), {
      name: 'shop',
      labels: Object.create(null) as object,
    });
  });
});

test('a mode comes out of the map as it went in', () => {
  fc.assert(
    fc.property(fc.uniqueArray(fc.string({ minLength: 1 }), { minLength: 1 }), fc.nat(), (modes, at) => {
      const mode = modes[at % modes.length];
      assert.deepEqual(modeOfCode(modeCode(mode), modes), { mode });
      assert.deepEqual(modeOfCode(modeCode(undefined), modes), { mode: undefined });
      assert.equal(modeOfCode(0, modes), undefined);
    }),
  );
});
