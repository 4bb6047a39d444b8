import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CgroupLedger } from '../../../../mapper/agent/cgroup-ledger.ts';
import { podOf, type Pod } from '../../../../mapper/objects/pod.ts';
import { CONFIG_HASH, CONFIG_MIRROR } from '../../../harness/label-names.ts';

const UID = '2c48913c-b29f-11e7-9350-020968147796';
const HASH = 'c0ffee00c0ffee00c0ffee00c0ffee00';
const CONTAINER = 'c'.repeat(64);
const POD = { id: 10n, path: `/kubepods/pod${UID}`, parent: 2n };
const INNER = { id: 11n, path: `${POD.path}/${CONTAINER}`, parent: 10n };
const MONITOR = { id: 12n, path: `${POD.path}/crio-conmon-${CONTAINER}`, parent: 10n };
const NESTED = { id: 13n, path: `${INNER.path}/x`, parent: 11n };
const HOST = { id: 3n, path: '/system.slice', parent: 1n };
const ODD = { id: 4n, path: '/kubepods/pododd', parent: 2n };

test("a cgroup is its pod's, nobody's, or one of which the path does not tell", () => {
  const ledger = new CgroupLedger();
  for (const each of [HOST, ODD, POD, INNER, MONITOR, NESTED]) ledger.appeared(each);
  assert.deepEqual(
    ledger.of(UID).map(({ cgroup }) => cgroup.id),
    [10n, 11n, 12n],
  );
  assert.deepEqual(ledger.pathsOf(UID), [POD.path, INNER.path]);
  assert.deepEqual(
    [POD, INNER, MONITOR, NESTED, HOST, ODD].map(({ id }) => ledger.keyOf(id)),
    [UID, UID, UID, undefined, undefined, undefined],
  );
  assert.deepEqual(
    [POD, NESTED, HOST, ODD].map(({ id }) => ledger.isTracked(id)),
    [true, false, false, true],
  );
  assert.deepEqual(ledger.hosts(), [HOST]);
  assert.deepEqual([ledger.size, ledger.trackedSize], [3, 4]);
  assert.equal(ledger.unresolvedSince((key) => key === UID).length, 1);
  assert.equal(ledger.unresolvedSince(() => false).length, 4);
});

test('what has gone leaves nothing behind, and says whose it was', () => {
  const ledger = new CgroupLedger();
  for (const each of [HOST, ODD, POD, INNER]) ledger.appeared(each);
  ledger.appeared({ ...INNER });
  assert.equal(ledger.size, 2, 'told twice, it is one');
  const { owner } = ledger.gone(INNER);
  assert.ok(owner.kind === 'pod' && owner.uid === UID && owner.container === CONTAINER);
  assert.equal(ledger.has(UID), true);
  for (const each of [POD, ODD, HOST]) ledger.gone(each);
  assert.deepEqual([ledger.has(UID), ledger.size, ledger.trackedSize], [false, 0, 0]);
  assert.deepEqual([ledger.hosts(), ledger.pathOf(10n), ledger.of(UID)], [[], undefined, []]);
  assert.equal(ledger.gone(POD).owner.kind, 'pod', 'of one that was never seen, the path tells');
});

test('an id at another path is another cgroup', () => {
  const ledger = new CgroupLedger();
  ledger.appeared(POD);
  ledger.appeared({ ...HOST, id: POD.id });
  assert.deepEqual([ledger.has(UID), ledger.size, ledger.pathOf(POD.id)], [false, 0, HOST.path]);
});

test("a static pod is known by its configuration's hash, unless its own UID names a cgroup", () => {
  const podWith = (annotations: Record<string, string>): Pod =>
    podOf({ metadata: { name: 'p', namespace: 'n', uid: UID, annotations } }) as Pod;
  const claims = podWith({ [CONFIG_HASH]: HASH });
  const ledger = new CgroupLedger();
  assert.equal(ledger.homeOf(podWith({})), UID);
  assert.equal(ledger.homeOf(claims), UID, 'no cgroup has the hash, and no mirror says so');
  assert.equal(ledger.homeOf(podWith({ [CONFIG_HASH]: HASH, [CONFIG_MIRROR]: HASH })), HASH);
  ledger.appeared({ id: 20n, path: `/kubepods/pod${HASH}`, parent: 2n });
  assert.equal(ledger.homeOf(claims), HASH);
  ledger.appeared(POD);
  assert.equal(ledger.homeOf(claims), UID);
});
