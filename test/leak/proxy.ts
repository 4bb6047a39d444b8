/**
 * A real HAProxy that misses no line of its log: to a pipe it would drop what the
 * reader is too slow for, so it writes to a file; and of two threads that write at
 * once one would drop its line rather than wait, so it has one.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { waitListening } from '../../deploy/stage/process.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';
import type { Place } from '../../deploy/stage/sock.ts';
import type { ProxyLine } from './connection.ts';

export const PORTS = { outbound: 15001, inbound: 15006 } as const;

export interface Proxy {
  /** All that it has seen so far. */
  lines(): ProxyLine[];
}

const frontend = (port: number): string => `
frontend port${port}
  bind 0.0.0.0:${port}
  # Without an original destination it would connect to itself, for ever.
  tcp-request content reject if { dst_port ${Object.values(PORTS).join(' ')} }
  log-format '{"client":"%ci:%cp","destination":"%[dst]:%[dst_port]","port":${port},"server":"%bi:%bp","state":"%ts"}'
  default_backend original
`;

const CONFIGURATION = `global
  nbthread 1
  maxconn 4000
  log stdout format raw local0
defaults
  mode tcp
  log global
  # A line when the server is reached, not when the session ends.
  option logasap
  retries 0
  timeout connect 20s
  timeout client 1m
  timeout server 1m
${Object.values(PORTS).map(frontend).join('')}
backend original
  # No address and no port of its own: those that the client asked for.
  server original 0.0.0.0
`;

/** The lines of a file that a program still writes; one that is not whole yet is left out. */
export function linesOf<T>(file: string): T[] {
  const text = readFileSync(file, 'utf8');
  return text
    .slice(0, text.lastIndexOf('\n') + 1)
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as T);
}

export async function startProxy(sandbox: Sandbox, place: Place): Promise<Proxy> {
  const [configuration, log] = [sandbox.file('haproxy.cfg'), sandbox.file('haproxy.log')];
  writeFileSync(configuration, CONFIGURATION);
  const running = sandbox.spawn({
    ...place,
    cmd: 'sh',
    args: ['-c', 'exec haproxy -db -f "$1" >"$2"', 'sh', configuration, log],
  });
  await waitListening(running, Object.values(PORTS));
  return { lines: () => linesOf(log) };
}
