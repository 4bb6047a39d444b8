/** Who is told of connections that were refused, or passed the mesh by, while nobody knew their pod. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { UnknownPods, type UnknownPodsOptions } from '../../../../mapper/connections/unknown-pods.ts';
import type { Decision } from '../../../../mapper/decisions/decision.ts';
import { branch, infoFlag } from '../../../../native/layout/layouts.ts';
import { podWith } from '../pod-with.ts';

const IN = { enrolled: true } as Decision;
const OUT = { enrolled: false } as Decision;
const [MARKED, CLEAR, NONE] = [1n, 2n, 3n];

function setUp() {
  const state = { refused: 0n, passed: 0n };
  const told: string[] = [];
  const logged: string[] = [];
  const maps = {
    cgroups: {
      get: (id: bigint) => (id === NONE ? undefined : { flags: id === MARKED ? infoFlag.unknownPod : 0 }),
    },
    counters: {
      get: (slot: number) => {
        assert.equal(slot, 0);
        const count = Array.from({ length: branch.count }, () => 0n);
        count[branch.unknownDenied] = state.refused;
        count[branch.unknownAllowed] = state.passed;
        return { count };
      },
    },
  } as unknown as UnknownPodsOptions['maps'];
  const unknown = new UnknownPods({
    maps,
    logger: pino(
      {},
      { write: (line: string) => void logged.push((JSON.parse(line) as { msg: string }).msg) },
    ),
    tell: (pod, message) => void told.push(`${pod.name}: ${message}`),
  });
  return { state, unknown, told, logged };
}

test('a pod that was refused is told, in the mesh or not, and one that was let past only where it is enrolled', () => {
  const { state, unknown, told } = setUp();
  state.refused = 2n;
  unknown.known(podWith({ name: 'in' }), IN, [CLEAR, MARKED]);
  unknown.known(podWith({ name: 'out' }), OUT, [MARKED]);
  unknown.look();
  state.passed = 1n;
  unknown.known(podWith({ name: 'in' }), IN, [MARKED]);
  unknown.known(podWith({ name: 'out' }), OUT, [MARKED]);
  assert.deepEqual(told, [
    'in: nobody knew this pod until now, and 2 connections of such pods were refused meanwhile (unknownPods: deny)',
    'out: nobody knew this pod until now, and 2 connections of such pods were refused meanwhile (unknownPods: deny)',
    'in: nobody knew this pod until now, and 1 connections of such pods passed the mesh by meanwhile (unknownPods: allow)',
  ]);
});

test("nobody else is told: whom somebody knew, who has no cgroup, who is in the host's network, and without connections since the last look", () => {
  const { state, unknown, told } = setUp();
  unknown.known(podWith(), IN, [MARKED]);
  state.refused = 2n;
  unknown.known(podWith(), IN, [CLEAR, NONE]);
  unknown.known(podWith(), IN, []);
  unknown.known(podWith({ hostNetwork: true }), OUT, [MARKED]);
  unknown.look();
  unknown.known(podWith(), IN, [MARKED]);
  assert.deepEqual(told, []);
});

test('refusals that go on are logged once, and again when they begin anew', () => {
  const { state, unknown, logged } = setUp();
  for (const refused of [0n, 2n, 5n, 5n, 6n]) {
    state.refused = refused;
    unknown.look();
  }
  assert.equal(logged.length, 2);
  assert.match(logged[0] ?? '', /^connections of pods that nobody knows are refused \(unknownPods: deny\)/);
});
