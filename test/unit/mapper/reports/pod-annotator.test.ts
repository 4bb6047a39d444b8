import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { pino } from 'pino';
import type { KubeRequest } from '../../../../mapper/kube/kube-client.ts';
import { KubeError } from '../../../../mapper/kube/kube-error.ts';
import { podOf, type Pod } from '../../../../mapper/objects/pod.ts';
import { makePodAnnotator } from '../../../../mapper/reports/pod-annotator.ts';
import { REDIRECTION } from '../../../harness/label-names.ts';

const logger = pino({ level: 'silent' });

function pod(annotated: boolean, uid = 'u1'): Pod {
  return podOf({
    metadata: {
      name: 'web',
      namespace: 'shop',
      uid,
      annotations: annotated ? { [REDIRECTION]: 'enabled' } : {},
    },
  }) as Pod;
}

/** Answers each request when the test says so. */
function fake() {
  const asked: (KubeRequest & { readonly answer: (error?: Error) => void })[] = [];
  return {
    asked,
    json: (request: KubeRequest) =>
      new Promise<unknown>((resolve, reject) => {
        asked.push({ ...request, answer: (error) => (error === undefined ? resolve({}) : reject(error)) });
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
    await delay(50);
    assert.equal(client.asked.length, 2);
    client.asked[1]?.answer(new KubeError('server', 'broken', { status: 500 }));
    await delay(50);
    assert.equal(client.asked.length, 3);
    client.asked[2]?.answer(new KubeError('refused', 'gone', { status: 404 }));
    await delay(50);
    assert.equal(client.asked.length, 3);
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
