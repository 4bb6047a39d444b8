/** The socket tool (sock/, built as dist/test/sock) for tests: typed, one call each. */
import { resolve } from 'node:path';
import { type Program, type Running, must } from './process.ts';
import type { Sandbox } from './sandbox.ts';

/** The tool itself; static, so it runs in any root. */
export const SOCK = resolve(import.meta.dirname, '../../dist/test/sock');

/** Where a program runs; see {@link Program}. */
export type Place = Pick<Program, 'cgroup' | 'netns'>;

/** Outcome of one connection: `connect`, `first`, `udp`. Addresses as `10.0.0.1:80`, `[fd77::1]:80`. */
export type Connected =
  | {
      readonly ok: true;
      /** First line of the reply: `server LOCAL PEER` or `proxy ORIGINAL PEER`. */
      readonly reply: string;
      /** What getpeername() says. */
      readonly peer: string;
      /** What getsockname() says. */
      readonly local: string;
      /** Duration of connect(), nanoseconds. */
      readonly ns: number;
    }
  | {
      readonly ok: false;
      /** The step that failed: `connect`, `read`, ... */
      readonly step: string;
      /** `EPERM`, `ECONNREFUSED`, `ETIMEDOUT`, ... */
      readonly errno: string;
      readonly ns: number;
    };

/** One connection as `sock serve` (without `orig`) or `sock proxy` saw it. */
export interface Accepted {
  readonly peer: string;
  readonly local: string;
  /** What SO_ORIGINAL_DST answered. */
  readonly orig?: string;
  /** The errno when it didn't. */
  readonly error?: string;
}

/** Runs the tool once and parses the line that it prints. */
export async function sock<T>(place: Place, ...args: readonly (string | number)[]): Promise<T> {
  return JSON.parse(await must({ ...place, cmd: SOCK, args: args.map(String) })) as T;
}

/** One TCP connection; options are those of `sock connect`. */
export function connect(
  place: Place,
  address: string,
  port: number,
  ...options: readonly (string | number)[]
): Promise<Connected> {
  return sock(place, 'connect', ...options, address, port);
}

/** A running `sock serve` or `sock proxy`. */
export interface Listener {
  readonly running: Running;
  /** The ports, in the order asked for; 0 has become the real one. */
  readonly ports: readonly number[];
  /** The connections so far. */
  accepted(): Accepted[];
}

/** Starts `sock serve` or `sock proxy` and waits until it listens. */
export async function listen(
  sandbox: Sandbox,
  place: Place,
  kind: 'serve' | 'proxy',
  address: string,
  ports: readonly number[],
  ...options: readonly string[]
): Promise<Listener> {
  const running = sandbox.spawn({ ...place, cmd: SOCK, args: [kind, ...options, address, ports.join(',')] });
  const bound: number[] = [];
  while (bound.length < ports.length) {
    const { listening } = await running.json<{ listening: string }>();
    bound.push(Number(listening.slice(listening.lastIndexOf(':') + 1)));
  }
  return {
    running,
    ports: bound,
    accepted: () => running.stdout.slice(ports.length).map((line) => JSON.parse(line) as Accepted),
  };
}
