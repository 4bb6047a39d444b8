/** The agent's HTTP endpoints: whether it lives, whether it is ready, how its sources are, its metrics, and why a pod is treated as it is. */
import { unlinkSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import { BlockList, createConnection, isIPv6, type AddressInfo } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { CgrouteError, messageOf } from '../../native/error.ts';
import { proxyTrouble } from '../placement/node-proxy.ts';
import type { NodeAgent } from './node-agent.ts';

export interface AgentState {
  readonly ready: boolean;
  /** Another agent runs, and this one is to follow it: whether all is loaded for that. Undefined where it does not wait. */
  readonly waits?: 'loading' | 'loaded' | undefined;
  /** Why it is not; undefined where that is only a matter of time. */
  readonly waitsFor?: string | undefined;
  /** What answers the rest; undefined until the agent has started. */
  readonly agent?: Pick<NodeAgent, 'live' | 'metrics' | 'explain'> | undefined;
}

interface Answer {
  readonly code: number;
  readonly type: string;
  readonly text: string;
}

export interface HttpServer extends AsyncDisposable {
  /** `ADDR:PORT`, with the port that was really taken. */
  readonly address: string;
}

/** So often an address is tried that somebody else has, and so often that is said. */
const TAKEN_MS = 100;
const SAID_MS = 30_000;

/** `ADDR:PORT` or `[ADDR6]:PORT`; port 0 takes any that is free. @throws CgrouteError `EUSAGE` */
export function parseListenAddress(flag: string): { readonly host: string; readonly port: number } {
  const [, bracketed, plain, digits] = /^(?:\[([0-9a-fA-F:.]+)\]|([^:\s[\]]+)):(\d{1,5})$/.exec(flag) ?? [];
  const host = bracketed ?? plain;
  const port = Number(digits);
  if (host === undefined || port > 65535)
    throw new CgrouteError('EUSAGE', `--http expects ADDR:PORT such as 127.0.0.1:15270, got "${flag}"`);
  return { host, port };
}

/**
 * - `/healthz`: the event loop turns; nothing else can fail it.
 * - `/readyz`: 200 once programs are attached and the first reconcile is done, or while another
 *   agent does the work and all is loaded to follow it; else 503. What is wrong with the proxy is said.
 * - `/status`: the same with the state of each source, as JSON.
 * - `/metrics`: for Prometheus.
 * - `/explain?pod=NAMESPACE/NAME`: why, as JSON, or a sentence why not. For this host only: it
 *   tells a pod's labels, and the address may be one that others reach, for the sake of `/metrics`.
 *
 * @throws CgrouteError `EHTTP` when the address cannot be listened on
 */
export async function serveHttp(flag: string, state: () => AgentState): Promise<HttpServer> {
  const { host, port } = parseListenAddress(flag);
  const server = await listening('--http', flag, { host, port }, state);
  const taken = (server.address() as AddressInfo).port;
  return {
    address: `${host.includes(':') ? `[${host}]` : host}:${taken}`,
    [Symbol.asyncDispose]: () => closed(server),
  };
}

/**
 * As {@link serveHttp}, but waits for an address that the agent before has for another moment.
 * @param onServing gets `ADDR:PORT`
 * @param onTaken is told of an address that does not get free
 */
export function serveHttpWhenFree(
  flag: string,
  state: () => AgentState,
  onServing: (address: string) => void,
  onTaken: (sentence: string) => void,
): AsyncDisposable {
  let isEnded = false;
  async function serve(): Promise<HttpServer | undefined> {
    for (let saidAt = performance.now(); !isEnded; await delay(TAKEN_MS)) {
      try {
        return await serveHttp(flag, state);
      } catch (error) {
        if (performance.now() - saidAt < SAID_MS) continue;
        saidAt = performance.now();
        onTaken(`${messageOf(error)}; it is tried again until it works`);
      }
    }
    return undefined;
  }
  const serving = serve();
  void serving.then((server) => server === undefined || isEnded || onServing(server.address));
  return {
    async [Symbol.asyncDispose]() {
      isEnded = true;
      await (await serving)?.[Symbol.asyncDispose]();
    },
  };
}

/**
 * The same at a Unix socket, for `cgroute probe`. A socket that nobody answers on any
 * more, as a container that ended has left it, is replaced.
 * @throws CgrouteError `EHTTP`
 */
export async function serveProbes(path: string, state: () => AgentState): Promise<AsyncDisposable> {
  if (await isLeftOver(path)) unlinkSync(path);
  const server = await listening('--probe-socket', path, { path }, state);
  return { [Symbol.asyncDispose]: () => closed(server) };
}

function isLeftOver(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection({ path }, () => {
      socket.destroy();
      resolve(false);
    });
    socket.on('error', (error: NodeJS.ErrnoException) => resolve(error.code === 'ECONNREFUSED'));
  });
}

async function listening(
  name: string,
  flag: string,
  at: { readonly host: string; readonly port: number } | { readonly path: string },
  state: () => AgentState,
): Promise<Server> {
  const server = createServer((request, response) => {
    void answerTo(request, state())
      .catch((error: unknown): Answer => plain(500, messageOf(error)))
      .then(({ code, type, text }) =>
        response.writeHead(code, { 'content-type': type, 'cache-control': 'no-store' }).end(text),
      );
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) =>
      reject(
        new CgrouteError('EHTTP', `${name} ${flag} cannot be listened on: ${messageOf(cause)}`, { cause }),
      ),
    );
    server.listen(at, resolve);
  });
  // A late error concerns one connection; nobody waits for it.
  server.on('error', () => {});
  return server;
}

const closed = (server: Server): Promise<void> =>
  new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });

const plain = (code: number, text: string): Answer => ({ code, type: 'text/plain', text: `${text}\n` });

async function answerTo(
  request: IncomingMessage,
  { ready, waits, waitsFor, agent }: AgentState,
): Promise<Answer> {
  const [path, query = ''] = (request.url ?? '').split('?', 2);
  switch (path) {
    case '/healthz':
      return plain(200, 'ok');
    case '/readyz':
      if (ready) return plain(200, readiness(agent));
      return waitsFor === undefined ? WAITING[waits ?? 'not'] : plain(503, `not ready: ${waitsFor}`);
    case '/status':
      return json(agent?.live() ?? { ready: false, sources: [] });
    case '/metrics':
      if (agent === undefined) return plain(503, STARTING);
      return { code: 200, type: agent.metrics.contentType, text: await agent.metrics.text() };
    case '/explain':
      if (!isOfThisHost(request)) return plain(403, '/explain answers on its own host only');
      if (agent === undefined) return plain(503, STARTING);
      return explained(agent, new URLSearchParams(query).get('pod') ?? '');
    default:
      return plain(404, 'not found: expected /healthz, /readyz, /status, /metrics or /explain');
  }
}

const WAITING: Readonly<Record<'not' | NonNullable<AgentState['waits']>, Answer>> = {
  not: plain(503, 'not ready: the first reconcile is not done'),
  loading: plain(503, 'not ready: another agent runs, and this one is loading to take over from it'),
  loaded: plain(200, 'ok: another agent runs, and this one has loaded all to take over from it'),
};

/** The agent can be ready where its node's proxy is not: no other agent would change that. */
function readiness(agent: AgentState['agent']): string {
  const wrong = proxyTrouble(agent?.live().proxy);
  return wrong === undefined ? 'ok' : `ok, but ${wrong}: see cgroute status`;
}

const STARTING = 'the agent is starting: try again in a moment';
const EXPLAIN_CODES: Readonly<Record<string, number>> = { EUSAGE: 400, ENOPOD: 404, EAMBIGUOUS: 409 };

function json(value: unknown): Answer {
  return { code: 200, type: 'application/json', text: `${JSON.stringify(value)}\n` };
}

function explained(agent: Pick<NodeAgent, 'explain'>, pod: string): Answer {
  try {
    return json(agent.explain(pod));
  } catch (error) {
    return plain(
      (error instanceof CgrouteError ? EXPLAIN_CODES[error.code] : undefined) ?? 500,
      messageOf(error),
    );
  }
}

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet('127.0.0.0', 8);
LOOPBACK.addAddress('::1', 'ipv6');

/** From loopback, or from the address that was asked. */
function isOfThisHost({ socket: { remoteAddress: from = '', localAddress } }: IncomingMessage): boolean {
  return from === localAddress || LOOPBACK.check(from, isIPv6(from) ? 'ipv6' : 'ipv4');
}
