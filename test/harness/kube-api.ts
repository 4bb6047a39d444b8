/** The Kubernetes API over plain HTTPS: single requests, lists with watches, server-side apply. */
import type { IncomingMessage, RequestOptions } from 'node:http';
import { Agent, request as httpsRequest } from 'node:https';
import PQueue from 'p-queue';
import type { KubeObject } from './kube-objects.ts';

/** Who asks: a client certificate (PEM) or a bearer token. */
export type Identity = { readonly cert: string; readonly key: string } | { readonly token: string };

export interface Endpoint {
  /** `https://127.0.0.1:6443`. */
  readonly url: string;
  /** The certificate of its authority, PEM. */
  readonly ca: string;
}

/** The API server answered with a status of failure. */
export class KubeApiError extends Error {
  /** HTTP status, also where it came as an event of a watch. */
  readonly status: number;
  readonly reason: string;

  constructor(status: number, reason: string, message: string) {
    super(`${status} ${reason}: ${message}`);
    this.name = 'KubeApiError';
    this.status = status;
    this.reason = reason;
  }
}

export interface WatchEvent<T> {
  readonly type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK';
  readonly object: T;
}

export interface ObjectList<T> {
  readonly metadata: { readonly resourceVersion: string };
  readonly items: readonly T[];
}

export type PatchType =
  | 'apply-patch+yaml'
  | 'merge-patch+json'
  | 'strategic-merge-patch+json'
  | 'json-patch+json';

export interface KubeApi extends Disposable {
  /** One request; the path with its query. Rejects with {@link KubeApiError} when the answer is a failure. */
  request<T>(method: string, path: string, body?: unknown, contentType?: string): Promise<T>;
  get<T>(path: string): Promise<T>;
  patch<T>(path: string, type: PatchType, body: unknown): Promise<T>;
  /** Server-side apply; what has no namespace (namespaces, roles) comes first. */
  apply(objects: readonly KubeObject[]): Promise<void>;
  /** The path of an object, by the server's own discovery. */
  pathOf(object: KubeObject): Promise<string>;
  /**
   * The events of a watch: `watch('/api/v1/pods?resourceVersion=7')`. It ends when the
   * server ends it; an event of type ERROR is thrown as {@link KubeApiError}.
   */
  watch<T>(path: string, signal?: AbortSignal): AsyncGenerator<WatchEvent<T>, void, undefined>;
}

interface Resource {
  readonly name: string;
  readonly kind: string;
  readonly namespaced: boolean;
}

interface Status {
  readonly code?: number;
  readonly reason?: string;
  readonly message?: string;
}

function failure(status: number, text: string): KubeApiError {
  try {
    const { reason = '', message = text, code = status } = JSON.parse(text) as Status;
    return new KubeApiError(code, reason, message);
  } catch {
    return new KubeApiError(status, '', text.trim());
  }
}

async function textOf(response: IncomingMessage): Promise<string> {
  let text = '';
  response.setEncoding('utf8');
  for await (const chunk of response as AsyncIterable<string>) text += chunk;
  return text;
}

/** A client of the API for one identity. */
export function makeKubeApi(endpoint: Endpoint, identity: Identity, userAgent = 'test'): KubeApi {
  const tls = { ca: endpoint.ca, ...('token' in identity ? {} : identity) };
  const agent = new Agent({ ...tls, keepAlive: true, maxSockets: 16 });
  /** A watch occupies a connection for long, so watches do not share those of the requests. */
  const watchAgent = new Agent({ ...tls, maxSockets: Infinity });
  const resources = new Map<string, Promise<readonly Resource[]>>();

  function send(
    method: string,
    path: string,
    options: RequestOptions,
    body?: string,
  ): Promise<IncomingMessage> {
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
    const headers = {
      accept: 'application/json',
      'user-agent': userAgent,
      ...('token' in identity ? { authorization: `Bearer ${identity.token}` } : {}),
      ...(body === undefined ? {} : { 'content-length': Buffer.byteLength(body) }),
      ...options.headers,
    };
    const outgoing = httpsRequest(
      new URL(path, endpoint.url),
      { agent, ...options, method, headers },
      resolve,
    );
    outgoing.once('error', (error: NodeJS.ErrnoException) => {
      // The server may close an idle connection in the moment when it is used again.
      if (outgoing.reusedSocket && error.code === 'ECONNRESET') resolve(send(method, path, options, body));
      else reject(error);
    });
    outgoing.end(body);
    return promise;
  }

  async function request<T>(
    method: string,
    path: string,
    body?: unknown,
    contentType = 'application/json',
  ): Promise<T> {
    const headers = body === undefined ? {} : { 'content-type': contentType };
    const response = await send(
      method,
      path,
      { headers },
      body === undefined ? undefined : JSON.stringify(body),
    );
    const text = await textOf(response);
    const { statusCode = 0 } = response;
    if (statusCode >= 400) throw failure(statusCode, text);
    const isJson = response.headers['content-type']?.startsWith('application/json') ?? false;
    return (isJson ? JSON.parse(text) : text) as T;
  }

  async function* watch<T>(
    path: string,
    signal?: AbortSignal,
  ): AsyncGenerator<WatchEvent<T>, void, undefined> {
    const query = `${path.includes('?') ? '&' : '?'}watch=true`;
    const response = await send('GET', path + query, {
      agent: watchAgent,
      ...(signal === undefined ? {} : { signal }),
    });
    const { statusCode = 0 } = response;
    if (statusCode >= 400) throw failure(statusCode, await textOf(response));
    let rest = '';
    response.setEncoding('utf8');
    for await (const chunk of response as AsyncIterable<string>) {
      const lines = (rest + chunk).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        const event = JSON.parse(line) as WatchEvent<T> | { readonly type: 'ERROR'; readonly object: Status };
        if (event.type === 'ERROR') throw failure(0, JSON.stringify(event.object));
        yield event;
      }
    }
  }

  async function resourceOf({ apiVersion, kind }: KubeObject): Promise<{ base: string; resource: Resource }> {
    const base = apiVersion.includes('/') ? `/apis/${apiVersion}` : `/api/${apiVersion}`;
    const known =
      resources.get(base) ?? request<{ resources: Resource[] }>('GET', base).then((list) => list.resources);
    resources.set(base, known);
    const resource = (await known).find((each) => each.kind === kind && !each.name.includes('/'));
    if (resource === undefined) throw new Error(`the API server knows no ${kind} in ${apiVersion}`);
    return { base, resource };
  }

  async function pathOf(object: KubeObject): Promise<string> {
    const { base, resource } = await resourceOf(object);
    const { name, namespace = 'default' } = object.metadata;
    return `${base}/${resource.namespaced ? `namespaces/${namespace}/` : ''}${resource.name}/${name}`;
  }

  const patch: KubeApi['patch'] = (path, type, body) => request('PATCH', path, body, `application/${type}`);

  async function apply(objects: readonly KubeObject[]): Promise<void> {
    const queue = new PQueue({ concurrency: 8 });
    for (const namespaced of [false, true]) {
      await Promise.all(
        objects.map(async (object) => {
          if ((await resourceOf(object)).resource.namespaced !== namespaced) return;
          const path = await pathOf(object);
          await queue.add(() => patch(`${path}?fieldManager=test&force=true`, 'apply-patch+yaml', object));
        }),
      );
    }
  }

  return {
    request,
    patch,
    apply,
    pathOf,
    watch,
    get: (path) => request('GET', path),
    [Symbol.dispose]() {
      agent.destroy();
      watchAgent.destroy();
    },
  };
}
