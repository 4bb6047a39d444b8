/** The agent's HTTP endpoints: whether it lives, whether it is ready, how its sources are. */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { CgrouteError, messageOf } from '../native/error.ts';
import type { SourceState } from '../watcher/source-state.ts';

export interface AgentState {
  readonly ready: boolean;
  readonly sources: readonly SourceState[];
}

export interface HttpServer extends AsyncDisposable {
  /** `ADDR:PORT`, with the port that was really taken. */
  readonly address: string;
}

/** `ADDR:PORT` or `[ADDR6]:PORT`; port 0 takes any that is free. @throws CgrouteError `EUSAGE` */
export function parseListenAddress(flag: string): { readonly host: string; readonly port: number } {
  const [, bracketed, plain, digits] = /^(?:\[([0-9a-fA-F:.]+)\]|([^:\s[\]]+)):(\d{1,5})$/.exec(flag) ?? [];
  const host = bracketed ?? plain;
  const port = Number(digits);
  if (host === undefined || port > 65535) throw new CgrouteError('EUSAGE', `--http expects ADDR:PORT such as 127.0.0.1:15270, got "${flag}"`);
  return { host, port };
}

/**
 * - `/healthz`: the event loop turns; nothing else can fail it.
 * - `/readyz`: 200 once programs are attached and the first reconcile is done, else 503.
 * - `/status`: the same with the state of each source, as JSON.
 *
 * @throws CgrouteError `EHTTP` when the address cannot be listened on
 */
export async function serveHttp(flag: string, state: () => AgentState): Promise<HttpServer> {
  const { host, port } = parseListenAddress(flag);
  const server = createServer((request, response) => {
    const answer = (code: number, type: string, text: string): void => {
      response.writeHead(code, { 'content-type': type, 'cache-control': 'no-store' }).end(text);
    };
    const { ready, sources } = state();
    switch (request.url?.split('?', 1)[0]) {
      case '/healthz': return answer(200, 'text/plain', 'ok\n');
      case '/readyz': return answer(ready ? 200 : 503, 'text/plain', ready ? 'ok\n' : 'not ready: the first reconcile is not done\n');
      case '/status': return answer(200, 'application/json', `${JSON.stringify({ ready, sources })}\n`);
      default: return answer(404, 'text/plain', 'not found: expected /healthz, /readyz or /status\n');
    }
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) => reject(new CgrouteError('EHTTP', `--http ${flag} cannot be listened on: ${messageOf(cause)}`, { cause })));
    server.listen(port, host, resolve);
  });
  // A late error concerns one connection; nobody waits for it.
  server.on('error', () => {});
  const taken = (server.address() as AddressInfo).port;
  return {
    address: `${host.includes(':') ? `[${host}]` : host}:${taken}`,
    [Symbol.asyncDispose]: () => new Promise((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
    }),
  };
}
