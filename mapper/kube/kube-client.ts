/** Requests to the API server over `node:https`, with deadlines and errors that say what was wrong. */
import {
  Agent as HttpAgent,
  request as httpRequest,
  type ClientRequest,
  type IncomingMessage,
} from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import { refusalOf } from '../../native/error.ts';
import type { Credentials, KubeAccess } from './kube-access.ts';
import { errorOfStatus, KubeError } from './kube-error.ts';

export interface KubeRequest {
  /** @default GET */
  readonly method?: 'GET' | 'POST' | 'PATCH' | 'PUT' | 'DELETE';
  /** `/api/v1/pods` */
  readonly path: string;
  readonly query?: Readonly<Record<string, string | number | boolean | undefined>>;
  readonly body?: { readonly type: string; readonly text: string };
  readonly signal?: AbortSignal;
}

export interface KubeClient extends Disposable {
  /** The API server's URL, and by what it was found, for people. */
  readonly server: string;
  readonly origin: string;
  /** Requests that were sent so far. */
  readonly requests: number;
  /** The whole answer, parsed. @throws KubeError */
  json(request: KubeRequest): Promise<unknown>;
  /** The answer's body as it comes; whoever gets it ends it. @throws KubeError */
  stream(request: KubeRequest): Promise<IncomingMessage>;
}

export interface KubeClientOptions {
  readonly access: KubeAccess;
  readonly userAgent?: string;
  /** Milliseconds until an answer must have begun, and between two of its pieces. @default 30_000 */
  readonly deadlineMs?: number;
}

/** Longer than this, a connection that nobody uses is closed. */
const UNUSED_MS = 60_000;
/** As many as write at one time: a label on a namespace of many pods would else cost a TLS handshake for most of its patches. */
const MOST_UNUSED = 10;
const LONGEST_ERROR = 64 * 1024;
/** Nobody reads the object that a write gives back, and a pod's is many kilobytes. A server that doesn't know this sends it whole. */
const METADATA_ALONE = 'application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json';

export function openKubeClient({
  access,
  userAgent = 'cgroute',
  deadlineMs = 30_000,
}: KubeClientOptions): KubeClient {
  const isTls = access.server.startsWith('https:');
  let agent: { readonly key: string; readonly agent: HttpAgent | HttpsAgent } | undefined;
  let requests = 0;

  /** A new certificate needs new connections; those that are in use go on. */
  const agentFor = (tls: Credentials['tls']): HttpAgent => {
    const key = JSON.stringify(tls);
    if (agent?.key === key) return agent.agent;
    closeUnused();
    const proxyEnv =
      access.proxyUrl === undefined
        ? {}
        : { proxyEnv: { HTTP_PROXY: access.proxyUrl, HTTPS_PROXY: access.proxyUrl } };
    const options = {
      keepAlive: true,
      keepAliveMsecs: 15_000,
      maxFreeSockets: MOST_UNUSED,
      timeout: UNUSED_MS,
      ...proxyEnv,
    };
    agent = {
      key,
      agent: isTls ? new HttpsAgent({ ...options, ...tls, maxCachedSessions: 2 }) : new HttpAgent(options),
    };
    return agent.agent;
  };

  const closeUnused = (): void => {
    for (const sockets of Object.values(agent?.agent.freeSockets ?? {}))
      for (const socket of sockets ?? []) socket.destroy();
  };

  const credentials = async (signal: AbortSignal | undefined): Promise<Credentials> => {
    try {
      // A credential plugin is somebody else's program.
      return await withDeadline(access.credentials(), deadlineMs, signal);
    } catch (cause) {
      if (signal?.aborted) throw cause;
      throw new KubeError(
        'access',
        `${access.origin}: there are no credentials for ${access.server}: ${reasonOf(cause)}`,
        { cause },
      );
    }
  };

  const send = async (request: KubeRequest, isRepeated = false): Promise<IncomingMessage> => {
    const { method = 'GET', path, query = {}, body, signal } = request;
    const { headers, tls } = await credentials(signal);
    signal?.throwIfAborted();
    const url = new URL(`${access.server}${path}`);
    for (const [name, value] of Object.entries(query))
      if (value !== undefined) url.searchParams.set(name, String(value));
    const options = {
      method,
      agent: agentFor(tls),
      headers: {
        accept: method === 'GET' ? 'application/json' : METADATA_ALONE,
        'user-agent': userAgent,
        ...(body === undefined ? {} : { 'content-type': body.type }),
        ...headers,
      },
      ...(signal === undefined ? {} : { signal }),
    };
    requests++;
    const sent: ClientRequest = isTls ? httpsRequest(url, options) : httpRequest(url, options);
    const timer = setTimeout(
      () =>
        sent.destroy(
          new KubeError('idle', `${method} ${path}: the API server did not answer within ${deadlineMs} ms`),
        ),
      deadlineMs,
    );
    try {
      return await new Promise<IncomingMessage>((resolve, reject) => {
        sent.once('response', resolve);
        // Stays: an error after the answer has begun belongs to whoever reads it.
        sent.on('error', reject);
        sent.end(body?.text);
      });
    } catch (cause) {
      if (signal?.aborted || cause instanceof KubeError) throw cause;
      // The server may have closed a kept connection in the very moment that it was used.
      if (method === 'GET' && sent.reusedSocket && !isRepeated) return await send(request, true);
      throw new KubeError('unreachable', `${access.server} cannot be reached: ${reasonOf(cause)}`, { cause });
    } finally {
      clearTimeout(timer);
    }
  };

  const open = async (request: KubeRequest): Promise<IncomingMessage> => {
    const response = await send(request);
    const { statusCode = 0 } = response;
    if (statusCode >= 200 && statusCode < 300) return response;
    if (statusCode === 401) access.refused();
    const what = `${request.method ?? 'GET'} ${request.path}`;
    const text = await textOf(response, what, deadlineMs, LONGEST_ERROR).catch(() => '');
    const seconds = Number(response.headers['retry-after']);
    throw errorOfStatus(what, parsed(text), statusCode, seconds > 0 ? seconds * 1000 : 0);
  };

  return {
    server: access.server,
    origin: access.origin,
    get requests() {
      return requests;
    },
    async json(request) {
      const what = `${request.method ?? 'GET'} ${request.path}`;
      const text = await textOf(await open(request), what, deadlineMs).catch((cause: unknown) => {
        if (request.signal?.aborted || cause instanceof KubeError) throw cause;
        throw new KubeError('cut', `${what}: the answer was cut off: ${reasonOf(cause)}`, { cause });
      });
      const value = parsed(text);
      if (typeof value !== 'object' || value === null)
        throw new KubeError('garbage', `${what}: expected JSON, got ${JSON.stringify(text.slice(0, 60))}`);
      return value;
    },
    stream: open,
    [Symbol.dispose]() {
      agent?.agent.destroy();
    },
  };
}

/** An error's text; that of several addresses tried in vain is empty, and its code is all that it has. */
export function reasonOf(error: unknown): string {
  return refusalOf(error) || String((error as { code?: unknown } | null)?.code ?? 'an error without a text');
}

/** Undefined for what isn't JSON. */
function parsed(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}

/** The body, up to a length; the rest is dropped. */
async function textOf(
  response: IncomingMessage,
  what: string,
  idleMs: number,
  longest = Infinity,
): Promise<string> {
  const timer = setTimeout(
    () => response.destroy(new KubeError('idle', `${what}: the answer stopped for ${idleMs} ms`)),
    idleMs,
  );
  const pieces: Buffer[] = [];
  let length = 0;
  try {
    for await (const piece of response as AsyncIterable<Buffer>) {
      timer.refresh();
      pieces.push(piece);
      length += piece.length;
      if (length > longest) break;
    }
  } finally {
    clearTimeout(timer);
  }
  return Buffer.concat(pieces).toString('utf8');
}

async function withDeadline<T>(
  work: Promise<T>,
  deadlineMs: number,
  signal: AbortSignal | undefined,
): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  let stop = (): void => {};
  try {
    return await Promise.race([
      work,
      new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new Error(`nothing came within ${deadlineMs} ms`)), deadlineMs);
        stop = () => reject(signal?.reason as Error);
        signal?.addEventListener('abort', stop, { once: true });
      }),
    ]);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', stop);
  }
}
