import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { test } from 'node:test';
import { openKubeClient } from '../../../../mapper/kube/kube-client.ts';

/** A server that answers as soon as so many requests are there, and a client of it. */
async function served(atOnce = 1) {
  const requests: IncomingMessage[] = [];
  const unanswered: ServerResponse[] = [];
  let connections = 0;
  const server = createServer((request, response) => {
    requests.push(request);
    if (unanswered.push(response) < atOnce) return;
    for (const each of unanswered.splice(0))
      each.writeHead(200, { 'content-type': 'application/json' }).end('{}');
  });
  server.on('connection', () => connections++);
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const client = openKubeClient({
    access: {
      server: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      proxyUrl: undefined,
      origin: 'a test',
      credentials: async () => ({ headers: {}, tls: {} }),
      refused: () => {},
    },
  });
  return {
    client,
    requests,
    connections: () => connections,
    [Symbol.dispose]() {
      client[Symbol.dispose]();
      server.close();
      server.closeAllConnections();
    },
  };
}

const patch = {
  method: 'PATCH',
  path: '/api/v1/namespaces/shop/pods/web/status',
  body: { type: 'application/merge-patch+json', text: '{}' },
} as const;

test('an object is asked for whole, and of one that is written only the metadata comes back', async () => {
  using api = await served();
  await api.client.json({ path: '/api/v1/pods' });
  await api.client.json(patch);
  const accepts = api.requests.map(({ headers }) => headers.accept);
  assert.deepEqual(accepts, [
    'application/json',
    'application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json',
  ]);
});

test('ten writes at one time leave connections that the next ten use', async () => {
  using api = await served(10);
  for (let round = 0; round < 3; round++) {
    await Promise.all(Array.from({ length: 10 }, () => api.client.json(patch)));
    await nextTurn(); // then they are free
  }
  assert.deepEqual([api.requests.length, api.connections()], [30, 10]);
});
