import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import fc from 'fast-check';

import { ownerOf } from '../../../../mapper/decisions/cgroup-path.ts';
import { createInventory } from '../../../../mapper/inventory/inventory.ts';
import type { Inventory } from '../../../../mapper/inventory/inventory.ts';
import type { Pod } from '../../../../mapper/objects/pod.ts';
import type { Namespace } from '../../../../mapper/objects/namespace.ts';
import { podWith } from '../pod-with.ts';

const uidOf = (number: number): string => `${String(number).padStart(8, '0')}-b29f-11e7-9350-020968147796`;
const HASH = 'c7ee5aa1bf29ba1d85a18d3fd1ef2a37';

const pod = (number: number, changes: Partial<Pod> = {}): Pod =>
  podWith({ name: `web-${number}`, uid: uidOf(number), ...changes });
const namespace = (name: string, labels: Namespace['labels'] = {}): Namespace => ({ name, labels });
const create = (): Inventory => createInventory({ node: 'n1' });
const sorted = (uids: ReadonlySet<string>): string[] => [...uids].sort();

describe('the inventory', () => {
  test('names the pods that came, went and differ when all is replaced', () => {
    const inventory = create();
    assert.deepEqual(sorted(inventory.replaceAll({ pods: [pod(1), pod(2), pod(3)], namespaces: [] })), [
      uidOf(1),
      uidOf(2),
      uidOf(3),
    ]);
    const next = [pod(2), pod(3, { labels: { a: 'b' } }), pod(4)];
    assert.deepEqual(sorted(inventory.replaceAll({ pods: next, namespaces: [] })), [
      uidOf(1),
      uidOf(3),
      uidOf(4),
    ]);
    assert.deepEqual([...inventory.pods()].map(({ uid }) => uid).sort(), [uidOf(2), uidOf(3), uidOf(4)]);
  });

  test('is not changed by equal objects', () => {
    const inventory = create();
    const objects = () => ({
      pods: [
        pod(1, {
          ips: ['10.0.0.1'],
          labels: { a: '1', b: '2' },
          annotations: { x: 'y' },
          configHash: HASH,
          node: 'n1',
        }),
      ],
      namespaces: [namespace('shop', { a: 'b' })],
    });
    assert.equal(inventory.replaceAll(objects()).size, 1);
    assert.equal(inventory.replaceAll(objects()).size, 0);
    const [first] = objects().pods;
    assert.ok(first);
    assert.equal(inventory.upsertPod({ ...first, labels: { b: '2', a: '1' } }).size, 0);
  });

  const differences: readonly Partial<Pod>[] = [
    { name: 'x' },
    { namespace: 'x' },
    { hostNetwork: true },
    { serviceAccount: 'x' },
    { phase: 'Failed' },
    { ready: false },
    { terminating: true },
    { createdAt: 1 },
    { ips: ['10.0.0.2'] },
    { ips: ['10.0.0.1', '10.0.0.2'] },
    { labels: {} },
    { labels: { a: '2' } },
    { labels: { b: '1' } },
    { annotations: { x: 'y' } },
    { configHash: HASH },
    { node: 'n1' },
  ];
  for (const change of differences) {
    test(`sees a pod that differs in ${JSON.stringify(change)}`, () => {
      const inventory = create();
      const before = { ips: ['10.0.0.1'], labels: { a: '1' } };
      inventory.upsertPod(pod(1, before));
      assert.deepEqual(sorted(inventory.upsertPod(pod(1, { ...before, ...change }))), [uidOf(1)]);
    });
  }

  test('gives the pods of a namespace whose labels changed', () => {
    const inventory = create();
    inventory.replaceAll({
      pods: [pod(1), pod(2), pod(3, { namespace: 'other' })],
      namespaces: [namespace('shop', { a: 'b' }), namespace('other')],
    });
    assert.deepEqual(sorted(inventory.upsertNamespace(namespace('shop', { a: 'c' }))), [uidOf(1), uidOf(2)]);
    assert.deepEqual(sorted(inventory.upsertNamespace(namespace('shop', { a: 'c' }))), []);
    assert.deepEqual(sorted(inventory.removeNamespace('shop')), [uidOf(1), uidOf(2)]);
    assert.deepEqual(sorted(inventory.removeNamespace('shop')), []);
    assert.deepEqual(
      sorted(inventory.upsertNamespace(namespace('shop'))),
      [],
      'one without labels decides as one that is not known',
    );
    const pods = [pod(1), pod(2), pod(3, { namespace: 'other' })];
    assert.deepEqual(sorted(inventory.replaceAll({ pods, namespaces: [namespace('other', { x: 'y' })] })), [
      uidOf(3),
    ]);
  });

  test('takes a namespace event before its pods, and after', () => {
    const inventory = create();
    assert.equal(inventory.upsertNamespace(namespace('shop', { a: 'b' })).size, 0);
    inventory.upsertPod(pod(1));
    assert.deepEqual(inventory.namespace('shop')?.labels, { a: 'b' });
    inventory.upsertPod(pod(2, { namespace: 'late' }));
    assert.deepEqual(sorted(inventory.upsertNamespace(namespace('late', { a: 'b' }))), [uidOf(2)]);
  });

  test('holds a pod and its successor of the same name until the old one is deleted', () => {
    const inventory = create();
    inventory.upsertPod(pod(1, { name: 'db-0' }));
    inventory.upsertPod(pod(2, { name: 'db-0' }));
    assert.deepEqual(
      inventory.podsNamed('shop', 'db-0').map(({ uid }) => uid),
      [uidOf(1), uidOf(2)],
    );
    assert.deepEqual(sorted(inventory.removePod(uidOf(1))), [uidOf(1)]);
    assert.deepEqual(
      inventory.podsNamed('shop', 'db-0').map(({ uid }) => uid),
      [uidOf(2)],
    );
    assert.equal(inventory.removePod(uidOf(1)).size, 0);
  });

  test('leaves out the pods of other nodes', () => {
    const inventory = create();
    assert.deepEqual(
      sorted(
        inventory.replaceAll({
          pods: [pod(1, { node: 'n1' }), pod(2, { node: 'n2' }), pod(3)],
          namespaces: [],
        }),
      ),
      [uidOf(1), uidOf(3)],
    );
    assert.deepEqual(sorted(inventory.upsertPod(pod(1, { node: 'n2' }))), [uidOf(1)]);
    assert.equal(inventory.pod(uidOf(1)), undefined);
  });

  test('holds after any changes what a fresh one holds', () => {
    const pods = fc
      .record({
        number: fc.nat({ max: 4 }),
        namespace: fc.constantFrom('a', 'b'),
        node: fc.constantFrom('n1', 'n2'),
        hash: fc.constantFrom(undefined, HASH),
        ready: fc.boolean(),
      })
      .map(({ number, hash, ...rest }) =>
        pod(number, hash === undefined ? rest : { ...rest, configHash: hash }),
      );
    fc.assert(
      fc.property(
        fc.array(fc.uniqueArray(pods, { selector: ({ uid }) => uid }), { minLength: 1, maxLength: 5 }),
        (lists) => {
          const inventory = create();
          for (const list of lists) inventory.replaceAll({ pods: list, namespaces: [] });
          const last = lists.at(-1) ?? [];
          const fresh = create();
          for (const each of last) fresh.upsertPod(each);
          const view = (from: Inventory): unknown => [
            [...from.pods()].map(({ uid }) => uid).sort(),
            ['a', 'b'].map((name) =>
              from
                .podsIn(name)
                .map(({ uid }) => uid)
                .sort(),
            ),
            from.podForCgroup(ownerOf(`/pod${HASH}`))?.uid,
          ];
          assert.deepEqual(view(inventory), view(fresh));
        },
      ),
    );
  });
});

describe('the pod of a cgroup', () => {
  test('is joined by UID', () => {
    const inventory = create();
    inventory.upsertPod(pod(1));
    assert.equal(inventory.podForCgroup(ownerOf(`/kubepods/pod${uidOf(1)}/x`))?.name, 'web-1');
    assert.equal(inventory.podForCgroup(ownerOf(`/kubepods/pod${uidOf(2)}`)), undefined);
    assert.equal(inventory.podForCgroup(ownerOf('/user.slice')), undefined);
    assert.equal(inventory.podForCgroup(ownerOf('/kubepods/pododd')), undefined);
  });

  test("of a static pod is joined by its configuration's hash", () => {
    const inventory = create();
    inventory.upsertPod(pod(1, { configHash: HASH }));
    assert.equal(inventory.podForCgroup(ownerOf(`/kubepods/burstable/pod${HASH}`))?.uid, uidOf(1));
    inventory.removePod(uidOf(1));
    assert.equal(inventory.podForCgroup(ownerOf(`/kubepods/burstable/pod${HASH}`)), undefined);
  });

  test('is nobody when two pods claim one hash, and the one that stays when the other goes', () => {
    const inventory = create();
    inventory.replaceAll({
      pods: [pod(1, { configHash: HASH }), pod(2, { configHash: HASH })],
      namespaces: [],
    });
    assert.equal(inventory.podForCgroup(ownerOf(`/kubepods/pod${HASH}`)), undefined);
    inventory.removePod(uidOf(2));
    assert.equal(inventory.podForCgroup(ownerOf(`/kubepods/pod${HASH}`))?.uid, uidOf(1));
  });

  test("is never taken by an annotation that names another pod's UID", () => {
    const inventory = create();
    inventory.upsertPod(pod(1, { configHash: uidOf(9) }));
    assert.equal(inventory.podForCgroup(ownerOf(`/kubepods/pod${uidOf(9)}`)), undefined);
  });
});
