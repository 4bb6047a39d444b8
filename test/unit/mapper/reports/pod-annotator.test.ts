import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { pino } from 'pino';
import type { KubeRequest } from '../../../../mapper/kube/kube-client.ts';
import { KubeError } from '../../../../mapper/kube/kube-error.ts';
import { podOf, type Pod } from '../../../../mapper/objects/pod.ts';
import { makePodAnnotator } from '../../../../mapper/reports/pod-annotator.ts';
import { REDIRECTION } from '../../../harness/label-names.ts';
import { eventually } from '../../../../deploy/stage/process.ts';

const logger = pino({ level: 'silent' });

function object(annotated: boolean | string, uid = 'u1', resourceVersion?: string): object {
  const value = annotated === true ? 'enabled' : annotated;
  const annotations = value === false ? {} : { [REDIRECTION]: value };
  return { metadata: { name: 'web', namespace: 'shop', uid, resourceVersion, annotations } };
}

const pod = (...of: Parameters<typeof object>): Pod => podOf(object(...of)) as Pod;

/** Answers each request when the test says so. */
function fake() {
  const asked: (KubeRequest & { readonly answer: (what?: object) => void })[] = [];
  return {
    asked,
    json: (request: KubeRequest) =>
      new Promise<unknown>((resolve, reject) => {
        const answer = (what: object = {}): void => (what instanceof Error ? reject(what) : resolve(what));
        asked.push({ ...request, answer });
      }),
    values: () =>
      asked.map(
        ({ body }) =>
          (JSON.parse(body?.text ?? '') as { metadata: { annotations: Record<string, unknown> } }).metadata
            .annotations[REDIRECTION],
      ),
  };
}
const turn = () => delay(5);

describe('the annotation', () => {
  test('is a merge patch of the status with the UID in it', async () => {
    const client = fake();
    using annotator = makePodAnnotator({ client, logger });
    annotator.want(pod(false), true);
    await turn();
    const [{ method, path, body } = assert.fail()] = client.asked;
    assert.deepEqual(
      [method, path, body?.type],
      ['PATCH', '/api/v1/namespaces/shop/pods/web/status', 'application/merge-patch+json'],
    );
    assert.deepEqual(JSON.parse(body?.text ?? ''), {
      metadata: { uid: 'u1', annotations: { [REDIRECTION]: 'enabled' } },
    });
  });

  test('is not written where the API says it already', async () => {
    const client = fake();
    using annotator = makePodAnnotator({ client, logger });
    annotator.want(pod(true), true);
    annotator.want(pod(false, 'u2'), false);
    await turn();
    assert.equal(client.asked.length, 0);
  });

  test('is written once for many changes, one request at a time, and ends as it was wanted last', async () => {
    const client = fake();
    using annotator = makePodAnnotator({ client, logger });
    annotator.want(pod(false), true);
    await turn();
    for (let i = 0; i < 9; i++) annotator.want(pod(false), i % 2 === 1);
    await turn();
    assert.equal(client.asked.length, 1);
    client.asked[0]?.answer();
    await turn();
    client.asked[1]?.answer();
    await turn();
    assert.deepEqual(client.values(), ['enabled', null]);
  });

  test('is not written again because of an event from before it was', async () => {
    const client = fake();
    using annotator = makePodAnnotator({ client, logger });
    annotator.want(pod(false), true);
    await turn();
    client.asked[0]?.answer();
    await turn();
    annotator.want(pod(false), true);
    annotator.want(pod(true), true);
    await turn();
    assert.equal(client.asked.length, 1);
    // Somebody took it off.
    annotator.want(pod(false), true);
    await turn();
    assert.equal(client.asked.length, 2);
  });

  test('is tried again after a failure, and not after the pod is gone', async () => {
    const client = fake();
    using annotator = makePodAnnotator({ client, logger, backoffMs: [10, 20] });
    annotator.want(pod(false), true);
    await turn();
    client.asked[0]?.answer(new KubeError('refused', 'conflict of versions', { status: 409 }));
    await eventually('a second try', () => client.asked.length === 2);
    client.asked[1]?.answer(new KubeError('server', 'broken', { status: 500 }));
    await eventually('a third try', () => client.asked.length === 3);
    client.asked[2]?.answer(new KubeError('refused', 'gone', { status: 404 }));
    await delay(50);
    assert.equal(client.asked.length, 3);
  });

  const CONFLICT = new KubeError('refused', 'the object has been modified', { status: 409 });
  const written = (asked: readonly KubeRequest[]): string[] =>
    asked.map(({ method = 'GET', body }) => {
      const { metadata } = JSON.parse(body?.text ?? '{"metadata":{}}') as {
        metadata: { resourceVersion?: string; annotations?: Record<string, unknown> };
      };
      return `${method} ${metadata.resourceVersion ?? ''} ${String(metadata.annotations?.[REDIRECTION] ?? '')}`.trim();
    });

  test('is left to an owner who has opted out with it, and taken up when they opt in again', async () => {
    const client = fake();
    using annotator = makePodAnnotator({ client, logger });
    annotator.want(pod('disabled'), true);
    annotator.want(pod('Disabled', 'u2'), true);
    annotator.want(pod(true, 'u3'), true);
    annotator.want(pod('disabled', 'u3'), false);
    await turn();
    assert.equal(client.asked.length, 0);
    annotator.want(pod(false), true);
    await turn();
    assert.deepEqual(client.values(), ['enabled']);
  });

  test("is left to another mesh that has written it, and to cgroute's own again when that has gone", async () => {
    const client = fake();
    using annotator = makePodAnnotator({ client, logger });
    using taking = makePodAnnotator({ client, logger, takeOver: true });
    const theirs: Pod = { ...pod(true), writers: { [REDIRECTION]: 'istio-cni' } };
    annotator.want(theirs, false);
    taking.want(theirs, true);
    await turn();
    assert.equal(client.asked.length, 0);
    annotator.want(pod(false), true);
    taking.want(theirs, false);
    await turn();
    assert.deepEqual(client.values(), ['enabled', null]);
  });

  test('is not written over what somebody wrote in the same moment', async () => {
    const client = fake();
    using annotator = makePodAnnotator({ client, logger });
    annotator.want(pod(false, 'u1', '7'), true);
    await turn();
    client.asked[0]?.answer(CONFLICT);
    await turn();
    assert.deepEqual(client.asked[1]?.query, { fieldSelector: 'metadata.name=web' });
    client.asked[1]?.answer({ items: [object('disabled', 'u1', '8')] });
    await turn();
    assert.deepEqual(written(client.asked), ['PATCH 7 enabled', 'GET']);
    // Nor taken off.
    annotator.want(pod(true, 'u2', '3'), false);
    await turn();
    client.asked[2]?.answer(CONFLICT);
    await turn();
    client.asked[3]?.answer({ items: [object('disabled', 'u2', '4')] });
    await turn();
    assert.deepEqual(written(client.asked).slice(2), ['PATCH 3', 'GET']);
  });

  test('is written at once to what the pod has become meanwhile, unless that is another', async () => {
    const client = fake();
    using annotator = makePodAnnotator({ client, logger });
    annotator.want(pod(false, 'u1', '7'), true);
    await turn();
    client.asked[0]?.answer(CONFLICT);
    await turn();
    client.asked[1]?.answer({ items: [object(false, 'u1', '9')] });
    await turn();
    client.asked[2]?.answer(object(true, 'u1', '12'));
    await turn();
    annotator.want(pod(true, 'u1', '12'), false);
    await turn();
    assert.deepEqual(written(client.asked), ['PATCH 7 enabled', 'GET', 'PATCH 9 enabled', 'PATCH 12']);

    for (const items of [[], [object(false, 'u5', '9')]]) {
      annotator.want(pod(false, 'u4', '7'), true);
      await turn();
      client.asked.at(-1)?.answer(CONFLICT);
      await turn();
      client.asked.at(-1)?.answer({ items });
      await turn();
      assert.deepEqual(written(client.asked).slice(-2), ['PATCH 7 enabled', 'GET']);
      annotator.forget('u4');
    }
  });

  test('is forgotten with its pod', async () => {
    const client = fake();
    using annotator = makePodAnnotator({ client, logger, backoffMs: [10, 20] });
    annotator.want(pod(false), true);
    await turn();
    client.asked[0]?.answer(new KubeError('server', 'broken', { status: 500 }));
    await turn();
    annotator.forget('u1');
    await delay(50);
    assert.equal(client.asked.length, 1);
  });
});
