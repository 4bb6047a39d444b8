import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { defaultConfig } from '../../../../mapper/config/config.ts';
import { createInventory } from '../../../../mapper/inventory/inventory.ts';
import { podOf, type Pod } from '../../../../mapper/objects/pod.ts';
import { PodMarks, type PodMarksOptions } from '../../../../mapper/reports/pod-marks.ts';
import { podEntry, cgroupEntry, podAddresses } from '../../../../mapper/maps/pod-entry.ts';
import { ownerOf } from '../../../../mapper/decisions/cgroup-path.ts';
import { decide } from '../../../../mapper/decisions/verdict.ts';
import { MODE } from '../../../harness/label-names.ts';
import { eventually } from '../../../../deploy/stage/process.ts';

const UID = '2c48913c-b29f-11e7-9350-020968147796';
const web = (mode: string): Pod =>
  podOf({
    metadata: { name: 'web', namespace: 'shop', uid: UID, labels: { [MODE]: mode } },
    status: { phase: 'Running' },
  }) as Pod;

/** One pod with one cgroup; the maps hold what the test puts there. */
function setUp() {
  const steps: string[] = [];
  const path = `/kubepods/pod${UID}`;
  const held = { pod: true, cgroup: true };
  const settled = Promise.withResolvers<void>();
  const inventory = createInventory({ node: 'node-a' });
  inventory.replaceAll({ pods: [web('ambient')], namespaces: [{ name: 'shop', labels: {} }] });
  const facts = {
    slot: 1,
    decision: decide(web('ambient'), undefined, defaultConfig('manifest')),
    addresses: podAddresses([]),
    netns: 0n,
    hasLocals: false,
  };
  const info = { maxEntries: 16 };
  const maps = {
    pods: { info, get: () => (held.pod ? podEntry(web('ambient'), facts, 0) : undefined) },
    cgroups: { info, get: (id: bigint) => (held.cgroup ? cgroupEntry(id, facts) : undefined) },
  } as unknown as PodMarksOptions['maps'];
  const marks = new PodMarks({
    inventory,
    maps,
    enrolment: {
      decide: (pod) => decide(pod, inventory.namespace(pod.namespace), defaultConfig('manifest')),
    },
    config: defaultConfig('manifest'),
    logger: pino({ level: 'silent' }),
    reconciled: async () => {},
    annotator: {
      want: (_, enabled) => void steps.push(`annotation ${enabled}`),
      forget: () => {},
      settled: () => settled.promise,
      [Symbol.dispose]: () => {},
    },
    events: {
      report: (_, reason, message) => void steps.push(`${reason}: ${message}`),
      idle: async () => {},
      dropped: 0,
      [Symbol.dispose]: () => {},
    },
  });
  const change = (mode: string): void =>
    marks.objectsChanged(inventory.upsertPod(web(mode)), () => void steps.push('maps'));
  return {
    steps,
    held,
    settled,
    marks,
    change,
    cgroup: { cgroup: { id: 7n, parent: 1n, path }, owner: ownerOf(path) },
  };
}

test('a pod that leaves loses its annotation before the maps change', async () => {
  const { steps, marks, change, cgroup, settled } = setUp();
  using _ = marks;
  marks.cgroupAppeared(cgroup);
  marks.start();
  assert.deepEqual(
    steps.splice(0).map((step) => step.split(':')[0]),
    ['annotation true', 'MeshEnrolled'],
  );
  change('none');
  assert.deepEqual(steps, ['annotation false']);
  settled.resolve();
  await eventually('the maps', () => steps.includes('maps'));
});

test('the maps wait a moment at most for an API server that does not answer', async () => {
  const { steps, marks, change, cgroup } = setUp();
  using _ = marks;
  marks.cgroupAppeared(cgroup);
  marks.start();
  change('none');
  assert.ok(!steps.includes('maps'));
  await eventually('the maps', () => steps.includes('maps'));
});

test('the maps come first for a pod that joins', async () => {
  const { steps, marks, change, cgroup } = setUp();
  using _ = marks;
  change('none');
  marks.cgroupAppeared(cgroup);
  marks.start();
  steps.length = 0;
  change('ambient');
  assert.deepEqual(steps, ['maps']);
  await eventually('the annotation', () => steps.length > 1);
  assert.deepEqual(steps.slice(0, 2), ['maps', 'annotation true']);
});

test('a pod that the maps do not hold is not annotated, and an Event says why', async () => {
  const { steps, marks, held, cgroup } = setUp();
  using _ = marks;
  held.pod = false;
  marks.cgroupAppeared(cgroup);
  marks.start();
  assert.equal(steps[0], 'annotation false');
  assert.match(steps[1] ?? '', /^NotRedirected: .*map of pods, which has room for 16/);
  held.pod = true;
  held.cgroup = false;
  marks.soon();
  await eventually('another reason', () =>
    /^NotRedirected: .*none of its 1 cgroups/.test(steps.at(-1) ?? ''),
  );
  held.cgroup = true;
  marks.soon();
  await eventually('it is enrolled', () => /^MeshEnrolled/.test(steps.at(-1) ?? ''));
});
