/** The taint of the start, with an API server that answers as it likes. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { pino } from 'pino';
import type { KubeRequest } from '../../../../mapper/kube/kube-client.ts';
import { KubeError } from '../../../../mapper/kube/kube-error.ts';
import { StartupTaint } from '../../../../mapper/reports/startup-taint.ts';

const KEY = 'cgroute.io/agent-not-ready';
const OTHER = { key: 'pool', value: 'gpu', effect: 'NoSchedule' };

interface Server {
  taints: readonly object[] | undefined;
  version: number;
  /** What the next requests are answered with, in the place of what they ask for. */
  readonly refusals: number[];
  readonly asked: string[];
  /** Done between the agent's look and its write. */
  meanwhile: (() => void) | undefined;
}

function make(taints: readonly object[] | undefined): {
  server: Server;
  taint: StartupTaint;
  said: string[];
} {
  const server: Server = { taints, version: 7, refusals: [], asked: [], meanwhile: undefined };
  const refuse = (status: number): never => {
    throw new KubeError('refused', `the API server answered ${status}`, { status });
  };
  const client = {
    async json({ method = 'GET', path, body }: KubeRequest): Promise<unknown> {
      server.asked.push(`${method} ${path}`);
      await delay(1);
      const refusal = server.refusals.shift();
      if (refusal !== undefined) return refuse(refusal);
      if (method === 'GET') {
        const now = {
          metadata: { resourceVersion: String(server.version) },
          spec: { taints: server.taints },
        };
        server.meanwhile?.();
        server.meanwhile = undefined;
        return now;
      }
      const { metadata, spec } = JSON.parse(body?.text ?? '') as {
        metadata: { resourceVersion: string };
        spec: { taints: readonly object[] | null };
      };
      if (metadata.resourceVersion !== String(server.version)) return refuse(409);
      server.taints = spec.taints ?? undefined;
      server.version++;
      return {};
    },
  };
  const said: string[] = [];
  const logger = pino(
    { level: 'info' },
    { write: (line) => void said.push((JSON.parse(line) as { msg: string }).msg) },
  );
  return { server, said, taint: new StartupTaint({ client, node: 'node-a', key: KEY, logger }) };
}

test('it is taken off when the agent is ready, and not before, whatever its value and effect', async () => {
  const { server, taint, said } = make([
    { key: KEY, effect: 'NoExecute' },
    OTHER,
    { key: KEY, value: 'x', effect: 'NoSchedule' },
  ]);
  await taint.soon();
  assert.deepEqual(server.asked, []);
  assert.match(taint.source().detail, /stays on node node-a until this agent is ready/);
  await taint.begin();
  assert.deepEqual(server.taints, [OTHER]);
  assert.deepEqual(server.asked, ['GET /api/v1/nodes/node-a', 'PATCH /api/v1/nodes/node-a']);
  assert.deepEqual([taint.source().state, said.length], ['ok', 1]);
  await taint.soon();
  assert.equal(server.asked.length, 3, 'and nothing is written that is so already');
});

test('the last taint goes with its list', async () => {
  const { server, taint } = make([{ key: KEY, effect: 'NoSchedule' }]);
  await taint.begin();
  assert.equal(server.taints, undefined);
});

test('a node without taints is left alone', async () => {
  const { server, taint } = make(undefined);
  await taint.begin();
  assert.deepEqual(server.asked, ['GET /api/v1/nodes/node-a']);
});

test('a taint that somebody else adds at the same time stays', async () => {
  const { server, taint } = make([{ key: KEY, effect: 'NoSchedule' }]);
  server.meanwhile = () => {
    server.taints = [...(server.taints ?? []), OTHER];
    server.version++;
  };
  await taint.begin();
  assert.deepEqual(server.taints, [OTHER]);
  assert.equal(taint.source().state, 'ok');
});

test('it is taken off again when somebody has put it back', async () => {
  const { server, taint } = make([{ key: KEY, effect: 'NoSchedule' }]);
  await taint.begin();
  server.taints = [OTHER, { key: KEY, effect: 'NoSchedule' }];
  await taint.soon();
  assert.deepEqual(server.taints, [OTHER]);
  assert.match(taint.source().detail, /taken off 2 times/);
});

for (const [status, sentence] of [
  [
    403,
    /expected the rights to get and patch nodes, which the chart gives with config\.startupTaint; got .*403/,
  ],
  [404, /expected --node node-a to be the name of a node; got .*404/],
  [500, /cannot be taken off node node-a; got .*500/],
] as const)
  test(`an answer ${status} is said once, shown, and tried again`, async () => {
    const { server, taint, said } = make([{ key: KEY, effect: 'NoSchedule' }]);
    server.refusals.push(status, status);
    await taint.begin();
    await taint.soon();
    assert.equal(taint.source().state, 'failed');
    assert.match(taint.source().detail, sentence);
    assert.equal(said.length, 1);
    assert.match(said[0] ?? '', sentence);
    await taint.soon();
    assert.deepEqual([server.taints, taint.source().state], [undefined, 'ok']);
  });

test('a node that is written to without end is tried with the next look', async () => {
  const { server, taint } = make([{ key: KEY, effect: 'NoSchedule' }]);
  const busy = (): void => {
    server.version++;
    setImmediate(() => (server.meanwhile = busy));
  };
  server.meanwhile = busy;
  await taint.begin();
  assert.match(taint.source().detail, /409/);
  server.meanwhile = undefined;
  await delay(1);
  server.meanwhile = undefined;
  await taint.soon();
  assert.equal(taint.source().state, 'ok');
});

test('who is disposed of in the middle says nothing', async () => {
  const { server, taint, said } = make([{ key: KEY, effect: 'NoSchedule' }]);
  server.refusals.push(500);
  const looking = taint.begin();
  taint[Symbol.dispose]();
  await looking;
  assert.deepEqual(said, []);
});
