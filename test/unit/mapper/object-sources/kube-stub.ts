/** A small server that speaks list and watch as the API server does, and misbehaves when it is told to. */
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export type Kind = 'pods' | 'namespaces';

interface StubObject {
  readonly metadata: {
    readonly name: string;
    readonly uid: string;
    resourceVersion?: string;
    readonly [key: string]: unknown;
  };
  readonly [key: string]: unknown;
}

export interface StubRequest {
  readonly kind: Kind;
  readonly isWatch: boolean;
  readonly query: URLSearchParams;
  readonly authorization: string | undefined;
  readonly atMs: number;
}

export interface KubeStub extends AsyncDisposable {
  readonly url: string;
  readonly requests: StubRequest[];
  /** True when it has answered itself. */
  intercept: (request: StubRequest, response: ServerResponse) => boolean;
  /** Makes or changes an object, and tells the watches of it. */
  put(kind: Kind, object: StubObject): void;
  /** @param isSilent no watch hears of it, as if it had been away */
  remove(kind: Kind, name: string, isSilent?: boolean): void;
  /** An event, or raw text or bytes, for each open watch of that kind. */
  say(kind: Kind, event: object | string | Buffer): void;
  bookmark(kind: Kind): void;
  /** Versions before this moment are forgotten. */
  compact(): void;
  /** Ends all open watches, in order or by breaking the connections. */
  cut(kind: Kind, how: 'end' | 'break', lastWords?: string): void;
  watches(kind: Kind): number;
  asked(kind: Kind, isWatch: boolean): StubRequest[];
  stop(): Promise<void>;
  start(): Promise<void>;
}

interface Change {
  readonly version: number;
  readonly kind: Kind;
  readonly type: string;
  readonly object: StubObject;
}

export const pod = (
  name: string,
  uid: string,
  labels: Record<string, string> = {},
  namespace = 'shop',
): StubObject => ({
  metadata: { name, uid, namespace, labels, creationTimestamp: '2026-01-31T12:00:00Z' },
  spec: { nodeName: 'node-a' },
  status: { phase: 'Running', podIP: '10.0.0.1' },
});

export const namespace = (name: string, labels: Record<string, string> = {}): StubObject => ({
  metadata: { name, uid: `ns-${name}`, labels },
});

export async function makeKubeStub(): Promise<KubeStub> {
  const objects = { pods: new Map<string, StubObject>(), namespaces: new Map<string, StubObject>() };
  const changes: Change[] = [];
  const watches = { pods: new Set<ServerResponse>(), namespaces: new Set<ServerResponse>() };
  const requests: StubRequest[] = [];
  let version = 100;
  let oldest = 0;
  let port = 0;

  const json = (response: ServerResponse, code: number, value: unknown): void => {
    response.writeHead(code, { 'content-type': 'application/json' }).end(JSON.stringify(value));
  };
  const gone = { kind: 'Status', code: 410, reason: 'Expired', message: 'too old resource version' };

  const list = ({ kind, query }: StubRequest, response: ServerResponse): void => {
    const all = [...objects[kind].values()];
    // As the real one: a list that may come from the cache has no pages.
    const limit = query.get('resourceVersion') === null ? Number(query.get('limit') ?? 0) : 0;
    const [from = 0, at = version] = (query.get('continue') ?? '').split('@').filter(Boolean).map(Number);
    if (at < oldest) return json(response, 410, gone);
    const to = limit === 0 ? all.length : from + limit;
    json(response, 200, {
      kind: 'List',
      metadata: { resourceVersion: String(at), ...(to < all.length ? { continue: `${to}@${at}` } : {}) },
      items: all.slice(from, to),
    });
  };

  const watch = ({ kind, query }: StubRequest, response: ServerResponse): void => {
    response.writeHead(200, { 'content-type': 'application/json' });
    response.flushHeaders();
    const since = Number(query.get('resourceVersion'));
    if (since < oldest) {
      response.end(`${JSON.stringify({ type: 'ERROR', object: gone })}\n`);
      return;
    }
    for (const change of changes) {
      if (change.kind === kind && change.version > since)
        response.write(`${JSON.stringify({ type: change.type, object: change.object })}\n`);
    }
    watches[kind].add(response);
    response.on('close', () => watches[kind].delete(response));
  };

  const server = createServer((message, response) => {
    const url = new URL(message.url ?? '/', 'http://stub');
    const kind = url.pathname.slice(url.pathname.lastIndexOf('/') + 1) as Kind;
    const request: StubRequest = {
      kind,
      isWatch: url.searchParams.get('watch') === '1',
      query: url.searchParams,
      authorization: message.headers.authorization,
      atMs: performance.now(),
    };
    requests.push(request);
    if (stub.intercept(request, response)) return;
    if (request.isWatch) watch(request, response);
    else list(request, response);
  });

  const say = (kind: Kind, event: object | string | Buffer): void => {
    const line = typeof event === 'string' || Buffer.isBuffer(event) ? event : `${JSON.stringify(event)}\n`;
    for (const response of watches[kind]) response.write(line);
  };

  const change = (kind: Kind, type: string, object: StubObject, isSilent = false): void => {
    version++;
    const at: StubObject = { ...object, metadata: { ...object.metadata, resourceVersion: String(version) } };
    if (type === 'DELETED') objects[kind].delete(object.metadata.name);
    else objects[kind].set(object.metadata.name, at);
    if (isSilent) return;
    changes.push({ version, kind, type, object: at });
    say(kind, { type, object: at });
  };

  const stub: KubeStub = {
    get url() {
      return `http://127.0.0.1:${port}`;
    },
    requests,
    intercept: () => false,
    put: (kind, object) =>
      change(kind, objects[kind].has(object.metadata.name) ? 'MODIFIED' : 'ADDED', object),
    remove(kind, name, isSilent) {
      const object = objects[kind].get(name);
      if (object !== undefined) change(kind, 'DELETED', object, isSilent);
    },
    say,
    bookmark: (kind) =>
      say(kind, {
        type: 'BOOKMARK',
        object: { kind: 'Pod', metadata: { resourceVersion: String(version) } },
      }),
    compact() {
      version++;
      oldest = version;
      changes.length = 0;
    },
    cut(kind, how, lastWords = '') {
      for (const response of watches[kind]) {
        if (how === 'end') response.end(lastWords);
        else if (lastWords === '') response.destroy();
        else response.write(lastWords, () => response.destroy());
      }
    },
    watches: (kind) => watches[kind].size,
    asked: (kind, isWatch) =>
      requests.filter((request) => request.kind === kind && request.isWatch === isWatch),
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
    start: () =>
      new Promise((resolve) => {
        server.listen(port, '127.0.0.1', () => {
          port = (server.address() as AddressInfo).port;
          resolve();
        });
      }),
    [Symbol.asyncDispose]: () => stub.stop(),
  };
  await stub.start();
  return stub;
}
