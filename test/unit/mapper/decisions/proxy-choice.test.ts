import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { defaultConfig } from '../../../../mapper/config/config.ts';
import {
  chooseProxy,
  type ProxyCandidate,
  type ProxyChoice,
  type ProxySeen,
} from '../../../../mapper/decisions/proxy-choice.ts';
import type { Pod } from '../../../../mapper/objects/pod.ts';
import { podWith } from '../pod-with.ts';

const { proxy } = defaultConfig('kube');
const SINCE = Date.parse('2026-11-29T02:13:00Z');

const ztunnel = (number: number, changes: Partial<Pod> = {}): Pod =>
  podWith({
    uid: `uid-${number}`,
    name: `z${number}`,
    namespace: 'istio-system',
    labels: { app: 'ztunnel' },
    createdAt: number,
    ips: [`10.0.0.${number}`],
    ...changes,
  });

/** Seen as its status says, but for this. */
function candidate(pod: Pod, seen: Partial<ProxySeen> = {}): ProxyCandidate {
  return {
    pod,
    seen: {
      isAttached: true,
      hasProcesses: true,
      addresses: pod.ips,
      network: network(pod.ips, pod.hostNetwork),
      claimants: () => [],
      ...seen,
    },
  };
}

const network = (ips: readonly string[], isHost = false): NonNullable<ProxySeen['network']> => ({
  isHost,
  ips,
  has: (ip) => ips.includes(ip),
});

const choose = (candidates: readonly ProxyCandidate[], last?: string): ProxyChoice =>
  chooseProxy(candidates, last, proxy);
const reasons = ({ notTaken }: ProxyChoice): string[] =>
  notTaken.map(({ pod, reason }) => `${pod}: ${reason.replace('matches app=ztunnel; ', '')}`);

describe('of the pods that the selector matches', () => {
  const table: readonly (readonly [string, readonly Pod[], number | undefined])[] = [
    ['the one that is ready is the proxy', [ztunnel(2)], 2],
    ['none is, when none is there', [], undefined],
    ['none is, when none is ready', [ztunnel(1, { ready: false })], undefined],
    ['the newest ready one is, during a rollout', [ztunnel(2), ztunnel(1)], 2],
    ['the old one is, while the new one is not ready', [ztunnel(1), ztunnel(2, { ready: false })], 1],
    [
      'none is that has ended',
      [ztunnel(1), ztunnel(2, { phase: 'Succeeded' }), ztunnel(3, { phase: 'Failed' })],
      1,
    ],
    ['an older one is rather than one that terminates', [ztunnel(1), ztunnel(2, { terminating: true })], 1],
    [
      'one that terminates is, when no other is ready',
      [ztunnel(1, { terminating: true }), ztunnel(2, { ready: false })],
      1,
    ],
    ['none is in another namespace', [ztunnel(1), ztunnel(2, { namespace: 'shop' })], 1],
    [
      'it is the same whatever the order, when two are of one age',
      [ztunnel(2, { createdAt: 5 }), ztunnel(1, { createdAt: 5 })],
      2,
    ],
  ];
  for (const [name, pods, expected] of table) {
    test(name, () => {
      for (const order of [pods, pods.toReversed()]) {
        const { chosen } = choose(order.map((pod) => candidate(pod)));
        assert.equal(chosen?.pod.uid, expected === undefined ? undefined : `uid-${expected}`);
      }
    });
  }
});

describe('the last proxy', () => {
  const last = (changes: Partial<Pod> = {}): Pod =>
    ztunnel(1, { ready: false, readySince: SINCE, ...changes });

  test('stays while none is ready, as long as it runs', () => {
    assert.deepEqual(choose([candidate(last())], 'uid-1').chosen?.ips, ['10.0.0.1']);
    assert.equal(choose([candidate(last())], 'uid-2').chosen, undefined, 'another was the last');
    for (const changes of [
      { terminating: true },
      { phase: 'Failed' },
      { phase: 'Pending' },
      { phase: 'Unknown' },
    ] as const)
      assert.equal(choose([candidate(last(changes))], 'uid-1').chosen, undefined, JSON.stringify(changes));
    assert.equal(choose([candidate(last(), { hasProcesses: false })], 'uid-1').chosen, undefined);
    assert.equal(choose([candidate(last(), { isAttached: false })], 'uid-1').chosen, undefined);
    assert.equal(choose([candidate(last(), { network: network(['10.0.0.9']) })], 'uid-1').chosen, undefined);
  });

  test('makes room for any that is ready, be it older', () => {
    const { chosen, notTaken } = choose([candidate(last()), candidate(ztunnel(0))], 'uid-1');
    assert.equal(chosen?.pod.uid, 'uid-0');
    assert.deepEqual(notTaken, [
      { pod: 'istio-system/z1', reason: 'matches app=ztunnel; Ready=False since 2026-11-29T02:13:00Z' },
    ]);
  });

  test('stays where the one that is ready cannot be reached', () => {
    const deaf = candidate(ztunnel(2), { network: network(['10.0.0.9']) });
    assert.equal(choose([candidate(last()), deaf], 'uid-1').chosen?.pod.uid, 'uid-1');
  });
});

describe('an address counts', () => {
  const stranger = (createdAt: number, changes: Partial<Pod> = {}): Pod =>
    podWith({ namespace: 'shop', name: 'web', createdAt, ips: ['10.0.0.5'], ...changes });
  const one = (seen: Partial<ProxySeen>, changes: Partial<Pod> = {}): ProxyChoice =>
    choose([candidate(ztunnel(5, changes), seen)]);

  test('that its network namespace has, or that cannot be looked for there', () => {
    assert.deepEqual(one({}).chosen?.ips, ['10.0.0.5']);
    assert.deepEqual(one({ network: undefined }).chosen?.ips, ['10.0.0.5']);
    for (const [ips, words] of [
      [['10.0.0.9', 'fd00::9'], '10.0.0.9, fd00::9'],
      [[], 'none'],
    ] as const) {
      const choice = one({ network: network(ips) });
      assert.equal(choice.chosen, undefined);
      assert.deepEqual(reasons(choice), [
        `istio-system/z5: its address 10.0.0.5 is not published: its network namespace has ${words}`,
      ]);
      assert.equal(choice.mayPass, true);
    }
  });

  test("that is the host's for a proxy in the host's network, and only for such a one", () => {
    assert.deepEqual(one({}, { hostNetwork: true }).chosen?.ips, ['10.0.0.5']);
    assert.equal(one({ network: network(['10.0.0.5'], true) }).chosen, undefined);
    assert.equal(one({ network: network(['10.0.0.5']) }, { hostNetwork: true }).chosen, undefined);
    assert.equal(one({ network: network(['10.0.0.1'], true) }, { hostNetwork: true }).chosen, undefined);
  });

  test('that no younger pod has', () => {
    const choice = one({ claimants: () => [stranger(6)] });
    assert.equal(choice.chosen, undefined);
    assert.deepEqual(reasons(choice), [
      'istio-system/z5: its address 10.0.0.5 is not published: it belongs to younger pod shop/web',
    ]);
    assert.deepEqual(one({ claimants: () => [stranger(4)] }).chosen?.ips, ['10.0.0.5'], 'an older one');
    assert.deepEqual(
      one({ claimants: () => [stranger(5)] }).chosen?.ips,
      ['10.0.0.5'],
      'seen with the proxy',
    );
    assert.equal(one({ network: undefined, claimants: () => [stranger(5)] }).chosen, undefined);
  });

  test('of each family by itself, and what does not is told', () => {
    const ips = ['10.0.0.5', 'fd00::5'];
    const choice = one({ addresses: ips, network: network(['10.0.0.5']) }, { ips });
    assert.deepEqual(choice.chosen?.ips, ['10.0.0.5']);
    assert.deepEqual(reasons(choice), [
      'istio-system/z5: its address fd00::5 is not published: its network namespace has 10.0.0.5',
    ]);
  });

  test('of a pod with a process: who has it meanwhile is not the proxy', () => {
    const choice = one({ hasProcesses: false, network: undefined });
    assert.equal(choice.chosen, undefined);
    assert.deepEqual(reasons(choice), ['istio-system/z5: no process runs in its cgroup']);
    assert.equal(choice.mayPass, true);
  });
});

test('each that is not taken has its reason', () => {
  const choice = choose([
    candidate(ztunnel(5)),
    candidate(ztunnel(4)),
    candidate(ztunnel(6, { terminating: true })),
    candidate(ztunnel(3, { ready: false, phase: 'Pending' })),
    candidate(ztunnel(7), { isAttached: false }),
    candidate(ztunnel(8, { ips: [] })),
    { pod: ztunnel(2, { phase: 'Failed' }), seen: undefined },
    { pod: ztunnel(9, { namespace: 'shop' }), seen: undefined },
  ]);
  assert.equal(choice.chosen?.pod.uid, 'uid-5');
  assert.deepEqual(reasons(choice), [
    'istio-system/z2: it has ended (phase Failed)',
    'istio-system/z3: Ready=False, phase Pending',
    'istio-system/z4: istio-system/z5 is newer',
    'istio-system/z6: it is terminating, and istio-system/z5 is ready',
    'istio-system/z7: its cgroup has not been found',
    'istio-system/z8: it has no address yet',
    'shop/z9: namespace shop is not in proxy.namespaces (istio-system)',
  ]);
});
