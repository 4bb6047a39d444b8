import assert from 'node:assert/strict';
import { test } from 'node:test';
import { podRank, type Ranked, rankOf, yieldsTo } from '../../../../mapper/maps/pod-rank.ts';

const PROXY = { proxy: true, enrolled: false };
const IN = { proxy: false, enrolled: true };
const OUT = { proxy: false, enrolled: false };

const rows: readonly (readonly [string, Ranked, keyof typeof podRank])[] = [
  ['an ended pod without a cgroup', { decision: OUT, hasEnded: true, hasCgroup: false }, 'over'],
  ['an ended proxy without a cgroup', { decision: PROXY, hasEnded: true, hasCgroup: false }, 'over'],
  ['nothing at all', { decision: undefined, hasEnded: false, hasCgroup: false }, 'over'],
  ['the proxy', { decision: PROXY, hasEnded: false, hasCgroup: true }, 'proxy'],
  ['the proxy before its cgroup', { decision: PROXY, hasEnded: false, hasCgroup: false }, 'proxy'],
  ['an enrolled pod', { decision: IN, hasEnded: false, hasCgroup: true }, 'enrolled'],
  ['an ended one that still has its cgroup', { decision: IN, hasEnded: true, hasCgroup: true }, 'enrolled'],
  ['a pod outside the mesh', { decision: OUT, hasEnded: false, hasCgroup: true }, 'other'],
  ['a cgroup without a pod', { decision: undefined, hasEnded: false, hasCgroup: true }, 'other'],
  [
    'an enrolled pod before its cgroup',
    { decision: IN, hasEnded: false, hasCgroup: false },
    'enrolledAwaited',
  ],
  ['another before its cgroup', { decision: OUT, hasEnded: false, hasCgroup: false }, 'otherAwaited'],
];

for (const [name, pod, rank] of rows)
  test(`${name}: ${rank}`, () => assert.equal(rankOf(pod), podRank[rank]));

test('what runs takes the room of what does not, the proxy that of all others, and nobody that of an equal', () => {
  const pairs = Object.entries(podRank).flatMap(([victim, its]) =>
    Object.entries(podRank)
      .filter(([, rank]) => yieldsTo(its, rank))
      .map(([winner]) => `${victim} to ${winner}`),
  );
  assert.deepEqual(pairs.filter((pair) => !pair.endsWith(' to over')).toSorted(), [
    'enrolled to proxy',
    'enrolledAwaited to enrolled',
    'enrolledAwaited to other',
    'enrolledAwaited to proxy',
    'other to proxy',
    'otherAwaited to enrolled',
    'otherAwaited to other',
    'otherAwaited to proxy',
  ]);
});
