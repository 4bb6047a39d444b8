/** Client, proxy and server each wrote down what they saw: the three must say the same of every connection. */
import type { Attempt, CaseName, ClientLine, Endpoint, ProxyLine, ServerLine, Way } from './connection.ts';

export interface Tally {
  connects: number;
  /** Through the proxy, with the right original destination; `inbound` by its inbound port. */
  proxied: number;
  inbound: number;
  direct: number;
  denied: number;
  /** Lost for another reason, by step and errno. */
  failed: Record<string, number>;
  /** Past the proxy, and ought not to be. */
  escaped: number;
  /** Through the proxy, or by a wrong port of it, and ought not to be. */
  caughtWrongly: number;
  /** Denied, and ought not to be. */
  deniedWrongly: number;
}

export interface Account {
  readonly cases: ReadonlyMap<CaseName, Tally>;
  /** A sentence for each thing that the three do not agree on. */
  readonly disagreements: readonly string[];
  /** A sentence for each connection that went wrong. */
  readonly faults: readonly string[];
  readonly counts: { readonly client: number; readonly proxy: number; readonly server: number };
}

export interface Observed {
  readonly attempts: Iterable<Attempt>;
  readonly clients: readonly ClientLine[];
  readonly proxy: readonly ProxyLine[];
  readonly server: readonly ServerLine[];
  /** Above all directories; left out where they are named. */
  readonly cgroupRoot: string;
  readonly proxyIp: string;
  readonly ports: { readonly outbound: number; readonly inbound: number };
}

const newTally = (): Tally => ({
  connects: 0,
  proxied: 0,
  inbound: 0,
  direct: 0,
  denied: 0,
  failed: {},
  escaped: 0,
  caughtWrongly: 0,
  deniedWrongly: 0,
});

/** Of a connection that the programs have denied, for good or for now. */
const DENIALS: ReadonlySet<string> = new Set(['EPERM', 'ECONNREFUSED']);

const textOf = ({ ip, port }: Endpoint): string => `${ip}:${port}`;

function grouped<T>(items: readonly T[], keyOf: (item: T) => string): Map<string, T[]> {
  return Map.groupBy(items, keyOf);
}

/** What became of one connection, and what the three do not agree on. */
interface Fate {
  readonly way: Way | undefined;
  readonly failure?: string;
  readonly disagreement?: string;
}

export function account(observed: Observed): Account {
  const { cgroupRoot, proxyIp, ports } = observed;
  const clients = grouped(observed.clients, ({ token }) => token);
  const served = grouped(observed.server, ({ token }) => token);
  const proxied = grouped(observed.proxy, ({ client }) => client);
  const cases = new Map<CaseName, Tally>();
  const disagreements: string[] = [];
  const faults: string[] = [];
  let answered = 0;
  let byProxy = 0;

  /** A client has its port for itself, but after it another may get the same. */
  function takeProxyLine(client: ClientLine, isIt: (line: ProxyLine) => boolean): ProxyLine | undefined {
    const lines = proxied.get(client.local) ?? [];
    const at = lines.findIndex(isIt);
    return at < 0 ? undefined : lines.splice(at, 1)[0];
  }

  function fateOf(attempt: Attempt, client: ClientLine): Fate {
    const lines = served.get(attempt.token) ?? [];
    served.delete(attempt.token);
    const line = lines[0];
    if (!client.ok) {
      // The proxy saw it perhaps, and gave it up.
      const given = client.local === '' ? undefined : takeProxyLine(client, ({ state }) => state !== '--');
      const failure = `${client.step} ${client.errno}${given === undefined ? '' : `, the proxy took ${given.destination} for its destination`}`;
      const isDenied = given === undefined && client.step === 'connect' && DENIALS.has(client.errno ?? '');
      const disagreement =
        line === undefined
          ? {}
          : { disagreement: `the client was told ${failure}, and the server saw it from ${line.peer}` };
      return isDenied ? { way: 'denied', ...disagreement } : { way: undefined, failure, ...disagreement };
    }
    answered++;
    const asked = textOf(attempt.to);
    const way = line === undefined ? undefined : wayOf(client, line, asked);
    if (line === undefined || way === undefined)
      return {
        way: undefined,
        failure: 'unaccounted',
        disagreement: 'the client had an answer, and the server knows nothing of it',
      };
    if (typeof way === 'object') return { way: undefined, failure: 'unaccounted', disagreement: way.why };
    if (lines.length > 1) return { way, disagreement: `the server saw it ${lines.length} times` };
    if (line.local !== asked) return { way, disagreement: `the server had it at ${line.local}` };
    if (client.reply !== `server ${line.local} ${line.peer}`)
      return { way, disagreement: `the client was answered "${client.reply}"` };
    if (client.peer !== asked) return { way, disagreement: `getpeername said ${client.peer}` };
    return { way };
  }

  function wayOf(client: ClientLine, line: ServerLine, asked: string): Way | { readonly why: string } {
    if (line.peer === client.local) return 'direct';
    if (!line.peer.startsWith(`${proxyIp}:`))
      return { why: `the server saw it from ${line.peer}, the client had ${client.local}` };
    const first = takeProxyLine(client, ({ server }) => server === line.peer);
    if (first === undefined)
      return { why: `the server saw it from the proxy's ${line.peer}, and the proxy knows nothing of it` };
    byProxy++;
    if (first.destination !== asked)
      return { why: `the proxy took ${first.destination} for its destination` };
    if (first.port === ports.outbound) return 'proxied';
    return first.port === ports.inbound ? 'inbound' : { why: `the proxy had it at port ${first.port}` };
  }

  function judge(
    attempt: Attempt,
    client: ClientLine,
    { way, failure }: Fate,
    tally: Tally,
  ): string | undefined {
    if (way === undefined) {
      const what = failure ?? 'unknown';
      const kind = what.split(',')[0] ?? what;
      tally.failed[kind] = (tally.failed[kind] ?? 0) + 1;
      return `failed: ${what}`;
    }
    tally[way]++;
    const allowed = attempt.allowed(BigInt(client.startNs));
    if (allowed.includes(way)) return undefined;
    if (way === 'direct') tally.escaped++;
    else if (way === 'denied') tally.deniedWrongly++;
    else tally.caughtWrongly++;
    return `${way}, and ought to be ${allowed.join(' or ')}`;
  }

  for (const attempt of observed.attempts) {
    const tally = cases.get(attempt.case) ?? newTally();
    cases.set(attempt.case, tally);
    tally.connects++;
    const lines = clients.get(attempt.token) ?? [];
    clients.delete(attempt.token);
    const [client] = lines;
    const name = `${attempt.case} ${attempt.token} to ${textOf(attempt.to)} in ${attempt.directory.slice(cgroupRoot.length)}`;
    if (client === undefined || lines.length > 1) {
      disagreements.push(`${name}: its client told of it ${lines.length} times`);
      continue;
    }
    const fate = fateOf(attempt, client);
    if (fate.disagreement !== undefined) disagreements.push(`${name}: ${fate.disagreement}`);
    const fault = judge(attempt, client, fate, tally);
    if (fault !== undefined) faults.push(`${name}: ${fault}`);
  }
  for (const token of clients.keys()) disagreements.push(`a client told of ${token}, which nobody asked for`);
  for (const [token, lines] of served)
    disagreements.push(
      `the server was sent "${token}" from ${lines.map(({ peer }) => peer).join(', ')}, of which no client tells`,
    );
  for (const line of [...proxied.values()].flat()) {
    disagreements.push(
      `the proxy had ${line.client} to ${line.destination} at ${line.port} (${line.state}), of which no client tells`,
    );
  }
  return {
    cases,
    disagreements,
    faults,
    counts: { client: answered, proxy: byProxy, server: observed.server.length },
  };
}

/** Whether nothing went wrong at all. */
export function isClean({ disagreements, faults }: Account): boolean {
  return disagreements.length === 0 && faults.length === 0;
}
