/** What `enrollment: new-pods` remembers of a pod's namespace, and for how long. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import type { PodInfo } from '../../native/layouts.ts';
import { parseConfig } from '../../mapper/config.ts';
import { Enrolment, modeCode, modeOfCode } from '../../mapper/enrolment.ts';
import { createInventory } from '../../mapper/inventory.ts';
import type { Pod } from '../../mapper/objects.ts';

const MODE = 'istio.io/dataplane-mode';
const UID = '2c48913c-b29f-11e7-9350-020968147796';
const HASH = '0123456789abcdef0123456789abcdef';
const SIDECAR = { 'sidecar.istio.io/status': '{}' };

const web = (changes: Partial<Pod> = {}): Pod => ({
  namespace: 'shop', name: 'web', uid: UID, hostNetwork: false, phase: 'Running',
  ready: true, terminating: false, createdAt: 0, ips: [], labels: {}, annotations: {}, ...changes,
});

/** What stands in the map outlives an agent. */
function setUp(map = new Map<string, Pick<PodInfo, 'namespaceMode'>>()) {
  const agent = (yaml = 'enrollment: new-pods') => {
    const config = parseConfig(yaml, 'test.yaml');
    const inventory = createInventory({ node: 'node-a', proxy: config.proxy });
    const enrolment = new Enrolment({ inventory, config, maps: { pods: { get: ({ text }) => map.get(text) as PodInfo | undefined } } });
    return {
      enrolment,
      label: (mode?: string) => void inventory.upsertNamespace({ name: 'shop', labels: mode === undefined ? {} : { [MODE]: mode } }),
      reason: (pod = web()) => enrolment.decide(pod).reason,
      save: (pod = web()) => void map.set(pod.configHash ?? pod.uid, { namespaceMode: enrolment.codeOf(pod) }),
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
    assert.equal(second.reason(web({ annotations: SIDECAR })), 'sidecar-short-circuited', 'the mode itself is kept');
    assert.equal(second.reason(web({ uid: 'b29f' })), 'not-enrolled', 'one that nobody has seen before is new');
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
    const step = enrolment.decide(web()).trace.find(({ rule }) => rule === 7);
    assert.equal(step?.saw, 'namespace label istio.io/dataplane-mode absent; when the pod was first seen, ambient, which counts (enrollment: new-pods)');
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

test('a mode comes out of the map as it went in', () => {
  fc.assert(fc.property(fc.uniqueArray(fc.string({ minLength: 1 }), { minLength: 1 }), fc.nat(), (modes, at) => {
    const mode = modes[at % modes.length];
    assert.deepEqual(modeOfCode(modeCode(mode), modes), { mode });
    assert.deepEqual(modeOfCode(modeCode(undefined), modes), { mode: undefined });
    assert.equal(modeOfCode(0, modes), undefined);
  }));
});
