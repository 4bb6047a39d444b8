import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { pino } from 'pino';
import type { KubeRequest } from '../../../../mapper/kube/kube-client.ts';
import { KubeError } from '../../../../mapper/kube/kube-error.ts';
import { podOf, type Pod } from '../../../../mapper/objects/pod.ts';
import { makePodEvents } from '../../../../mapper/reports/pod-events.ts';

const pod = (name: string): Pod =>
  podOf({ metadata: { name, namespace: 'shop', uid: `uid-${name}` } }) as Pod;

function setUp(answers: readonly (KubeError | undefined)[] = []) {
  const bodies: { readonly metadata: { readonly name: string }; readonly message: string }[] = [];
  const clock = { ms: 0 };
  const json = async (request: KubeRequest): Promise<unknown> => {
    bodies.push(JSON.parse(request.body?.text ?? '') as (typeof bodies)[number]);
    const answer = answers[bodies.length - 1];
    if (answer !== undefined) throw answer;
    return {};
  };
  const events = makePodEvents({
    client: { json },
    node: 'node-a',
    logger: pino({ level: 'silent' }),
    backoffMs: [1, 2],
    now: () => Date.UTC(2026, 0, 31, 12) + clock.ms,
    monotonic: () => clock.ms,
  });
  return { events, bodies, clock };
}

describe('Events', () => {
  test('say one thing of one pod once in ten minutes', async () => {
    const { events, bodies, clock } = setUp();
    for (const ms of [0, 1, 599_999]) {
      clock.ms = ms;
      events.report(pod('web'), 'MeshEnrolled', 'a');
    }
    events.report(pod('web'), 'MeshEnrolled', 'b');
    events.report(pod('web'), 'MeshRemoved', 'a');
    events.report(pod('db'), 'MeshEnrolled', 'a');
    await events.idle();
    assert.equal(bodies.length, 4);
    clock.ms = 600_000;
    events.report(pod('web'), 'MeshEnrolled', 'a');
    await events.idle();
    assert.equal(bodies.length, 5);
    assert.notEqual(bodies[4]?.metadata.name, bodies[0]?.metadata.name);
  });

  test('are at most 25 at once and 5 a second; what was left out may be said later', async () => {
    const { events, bodies, clock } = setUp();
    for (let i = 0; i < 40; i++) events.report(pod(`p${i}`), 'MeshEnrolled', 'a');
    await events.idle();
    assert.deepEqual([bodies.length, events.dropped], [25, 15]);
    clock.ms = 1000;
    for (let i = 0; i < 40; i++) events.report(pod(`p${i}`), 'MeshEnrolled', 'a');
    await events.idle();
    assert.equal(bodies.length, 30);
  });

  test('are named by what they say, so that an agent which starts again does not say it twice', async () => {
    const [first, second] = [setUp(), setUp([new KubeError('refused', 'already exists', { status: 409 })])];
    for (const { events } of [first, second]) {
      events.report(pod('web'), 'MeshEnrolled', 'a');
      await events.idle();
    }
    assert.equal(second.bodies.length, 1);
    assert.deepEqual(first.bodies, second.bodies);
    assert.match(first.bodies[0]?.metadata.name ?? '', /^web\.[0-9a-f]{16}$/);
  });

  test('are tried three times, and not again where they are refused', async () => {
    const broken = new KubeError('server', 'broken', { status: 500 });
    const { events, bodies } = setUp([broken, broken, broken, broken]);
    events.report(pod('web'), 'MeshEnrolled', 'a');
    await events.idle();
    assert.equal(bodies.length, 3);
    const refused = setUp([new KubeError('refused', 'forbidden', { status: 403 })]);
    refused.events.report(pod('web'), 'MeshEnrolled', 'a');
    await refused.events.idle();
    assert.equal(refused.bodies.length, 1);
  });

  test('of pods with the longest names have names and messages that the API takes', async () => {
    const { events, bodies } = setUp();
    events.report(pod(`${'a'.repeat(235)}.${'b'.repeat(17)}`), 'BypassRefused', 'x'.repeat(3000));
    await events.idle();
    assert.match(bodies[0]?.metadata.name ?? '', /^a{235}\.[0-9a-f]{16}$/);
    assert.equal(bodies[0]?.message.length, 1024);
  });
});
