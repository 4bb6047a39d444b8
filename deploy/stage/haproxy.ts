/**
 * A real HAProxy as the node's proxy: it takes redirected connections, asks for
 * their original destination by itself (SO_ORIGINAL_DST) and connects on to it.
 *
 * HAProxy asks on sockets of family AF_INET only, as src/sock_inet.c says. What
 * comes to an IPv6 or dual-stack listener counts as addressed to the listener;
 * for those, use `sock proxy`.
 */
import { writeFileSync } from 'node:fs';
import { type Program, type Running, eventually, waitListening } from './process.ts';
import type { Sandbox } from './sandbox.ts';

export interface HaproxyOptions extends Pick<Program, 'cgroup' | 'netns'> {
  /** Addresses to listen on. Default `0.0.0.0` and `::` (IPv6 only). */
  readonly addresses?: readonly string[];
  /** Default 15001 (outbound) and 15006 (inbound). */
  readonly ports?: readonly number[];
  /** User and group id that it runs as. Default the caller's. */
  readonly user?: number;
  /** Address that what comes to a port is passed on from. Default the kernel's choice. */
  readonly sources?: Readonly<Record<number, string>>;
  /** Names its files, so that one sandbox can have several. Default `haproxy`. */
  readonly name?: string;
}

/** One line of HAProxy's log: a connection that has reached its destination, or failed to. */
export interface ProxiedConnection {
  /** The client, `10.77.0.2:40000`. */
  readonly client: string;
  /** The original destination, as SO_ORIGINAL_DST gave it. */
  readonly destination: string;
  /** The listener's port: 15001 or 15006. */
  readonly port: number;
  /** HAProxy's two characters of how the session ended; `--` is well, `SC` no server, `PR` refused as a loop. */
  readonly state: string;
}

export interface Haproxy extends AsyncDisposable {
  readonly running: Running;
  /** The connections so far, in the order of their log lines. */
  connections(): ProxiedConnection[];
  /** Waits for a connection to this destination. */
  connection(destination: string): Promise<ProxiedConnection>;
  stop(): Promise<void>;
}

const LOG_FORMAT = '{"client":"%ci:%cp","destination":"%[dst]:%[dst_port]","port":PORT,"state":"%ts"}';

function configuration(
  addresses: readonly string[],
  ports: readonly number[],
  user: number | undefined,
  sources: Readonly<Record<number, string>>,
): string {
  const frontends = ports.map((port) => {
    const binds = addresses.map(
      (address) => `  bind ${address}:${port}${address.includes(':') ? ' v6only' : ''}`,
    );
    return `
frontend port${port}
${binds.join('\n')}
  # Without an original destination it would connect to itself, for ever.
  tcp-request content reject if { dst_port ${ports.join(' ')} }
  log-format '${LOG_FORMAT.replace('PORT', String(port))}'
  default_backend original${port}`;
  });
  const backends = ports.map(
    (port) => `
backend original${port}
  # No address and no port of its own: those that the client asked for.
  server original 0.0.0.0${sources[port] === undefined ? '' : ` source ${sources[port]}`}`,
  );
  return `global
  maxconn 4000${user === undefined ? '' : `\n  uid ${user}\n  gid ${user}`}
  log stdout format raw local0
defaults
  mode tcp
  log global
  # A line when the server is reached, not when the session ends.
  option logasap
  retries 0
  timeout connect 20s
  timeout client 1h
  timeout server 1h
${frontends.join('\n')}
${backends.join('\n')}
`;
}

const ADDRESSES = ['0.0.0.0', '::'];
export const HAPROXY_PORTS: readonly number[] = [15001, 15006];

/** Writes the configuration; gives the command line for who runs it himself, as a pod's container for instance. */
export function haproxyCommand(
  sandbox: Sandbox,
  name: string,
  { addresses = ADDRESSES, ports = HAPROXY_PORTS, user, sources = {} }: HaproxyOptions = {},
): readonly [string, ...string[]] {
  const file = sandbox.file(`${name}.cfg`);
  writeFileSync(file, configuration(addresses, ports, user, sources));
  return ['haproxy', '-db', '-f', file];
}

/** The connections in the lines of its output. */
export function proxiedConnections(lines: readonly string[]): ProxiedConnection[] {
  return lines.filter((line) => line.startsWith('{')).map((line) => JSON.parse(line) as ProxiedConnection);
}

/** Starts HAProxy and waits until it listens. */
export async function startHaproxy(sandbox: Sandbox, options: HaproxyOptions = {}): Promise<Haproxy> {
  const {
    addresses: _addresses,
    ports = HAPROXY_PORTS,
    name = 'haproxy',
    user: _user,
    sources: _sources,
    ...place
  } = options;
  const [cmd, ...args] = haproxyCommand(sandbox, name, options);
  const running = sandbox.spawn({ ...place, cmd, args });
  await waitListening(running, ports);
  const connections = (): ProxiedConnection[] => proxiedConnections(running.stdout);
  return {
    running,
    connections,
    connection: (destination) =>
      eventually(`the proxy has seen a connection to ${destination}`, () =>
        connections().find((connection) => connection.destination === destination),
      ),
    async stop() {
      await running.stop('SIGTERM');
    },
    [Symbol.asyncDispose]: () => running[Symbol.asyncDispose](),
  };
}
