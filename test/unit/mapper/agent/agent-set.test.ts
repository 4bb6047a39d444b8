/** Whether an agent's DaemonSet ends, and its end, with an API server that answers as it likes. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { endAgents, isEnding, parseAgentSet } from '../../../../mapper/agent/agent-set.ts';
import type { KubeRequest } from '../../../../mapper/kube/kube-client.ts';
import { KubeError } from '../../../../mapper/kube/kube-error.ts';

const SET = { namespace: 'kube-system', name: 'cgroute' };
const PATH = '/apis/apps/v1/namespaces/kube-system/daemonsets/cgroute';
const SHORT = { patienceMs: 80, everyMs: 5 };
/** For what ends by itself. */
const PATIENT = { ...SHORT, patienceMs: 60_000 };

/** An object's answer, a status, or `away`; the last one again and again. */
type Answer = object | number | 'away';

function server(...answers: readonly Answer[]): {
  readonly client: { json(request: KubeRequest): Promise<unknown> };
  readonly asked: string[];
} {
  const asked: string[] = [];
  const left = [...answers];
  return {
    asked,
    client: {
      async json({ method = 'GET', path, query, signal }) {
        signal?.throwIfAborted();
        asked.push(
          `${method} ${path}${query === undefined ? '' : `?${new URLSearchParams(query as Record<string, string>).toString()}`}`,
        );
        const answer = left.length > 1 ? left.shift() : left[0];
        if (answer === 'away') throw new KubeError('unreachable', 'it cannot be reached');
        if (typeof answer === 'number')
          throw new KubeError(answer < 500 ? 'refused' : 'server', `the API server answered ${answer}`, {
            status: answer,
          });
        return answer;
      },
    },
  };
}

const THERE = { metadata: {} };
const ENDING = { metadata: { deletionTimestamp: '2026-01-01T00:00:00Z' } };

test('a DaemonSet is named by namespace and name', () => {
  assert.deepEqual(parseAgentSet('kube-system/cgroute', '--x'), SET);
  for (const text of ['', 'cgroute', '/cgroute', 'kube-system/', 'a/b/c', 'A/b', 'a/../b']) {
    assert.throws(() => parseAgentSet(text, '--on-exit daemonset:'), {
      code: 'EUSAGE',
      message: `--on-exit daemonset: expects a DaemonSet as NAMESPACE/NAME, got "${text}"`,
    });
  }
});

test('an agent whose pod was deleted by force has lost its token, and leaves nobody for good', async () => {
  for (const [isPodGone, ends, why] of [
    [true, false, /its pod was deleted by force/],
    [false, true, /its service account is deleted/],
  ] as const) {
    const { client } = server(401);
    const answer = await isEnding(client, SET, { ...SHORT, isPodGone: () => isPodGone });
    assert.equal(answer.ends, ends);
    assert.match(answer.why, why);
  }
});

test('an agent leaves for good only when its DaemonSet or its account is deleted', async () => {
  const cases: readonly (readonly [readonly Answer[], boolean, RegExp, number?])[] = [
    [[THERE], false, /its DaemonSet is there/, 1],
    [[ENDING], true, /its DaemonSet is deleted/, 1],
    [[404], true, /its DaemonSet is deleted/, 1],
    [[403, 403, 401], true, /its service account is deleted/, 3],
    [['away', 500, THERE], false, /its DaemonSet is there/, 3],
    [['away', ENDING], true, /its DaemonSet is deleted/, 2],
    [[403], false, /answered 403/],
    [[500], false, /answered 500/],
    [['away'], false, /cannot be reached/],
    [[{}], false, /its DaemonSet is there/, 1],
  ];
  for (const [answers, ends, why, requests] of cases) {
    const { client, asked } = server(...answers);
    // Where no number of requests is told, the same answer comes until patience ends.
    const result = await isEnding(client, SET, requests === undefined ? SHORT : PATIENT);
    assert.equal(result.ends, ends, JSON.stringify(answers));
    assert.match(result.why, why);
    if (requests !== undefined) assert.deepEqual(asked, Array<string>(requests).fill(`GET ${PATH}`));
  }
});

test('agents are ended in a way that keeps the DaemonSet until its pods are gone', async () => {
  const { client, asked } = server({}, ENDING, ENDING, 404);
  assert.equal(await endAgents(client, SET, PATIENT), true);
  assert.deepEqual(asked, [
    `DELETE ${PATH}?propagationPolicy=Foreground`,
    ...Array<string>(3).fill(`GET ${PATH}`),
  ]);
});

test('the end of agents goes on through faults, is content with what is gone, and waits no longer than it may', async () => {
  assert.equal(await endAgents(server('away', 503, {}, 'away', 500, 404).client, SET, PATIENT), true);
  assert.equal(await endAgents(server(404).client, SET, PATIENT), true);
  assert.equal(await endAgents(server({}, ENDING).client, SET, SHORT), false);
  await assert.rejects(endAgents(server(403).client, SET, SHORT), /answered 403/);
  await assert.rejects(endAgents(server('away').client, SET, SHORT), /cannot be reached/);
});
