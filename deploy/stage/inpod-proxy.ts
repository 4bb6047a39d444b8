/**
 * The project's proxy that listens in pods' own network namespaces (inpod-proxy/, built as dist/test/inpod-proxy):
 * started in a cgroup of its own, ordered about, and its JSON lines read.
 */
import { resolve } from 'node:path';
import { type Program, type Running, eventually } from './process.ts';
import type { Sandbox } from './sandbox.ts';

/** The program itself; static, so it runs in any root. */
export const INPOD_PROXY = resolve(import.meta.dirname, '../../dist/test/inpod-proxy');

export interface InpodProxyOptions extends Pick<Program, 'cgroup' | 'netns'> {
  /** Where the agent serves ZDS; it is dialled until somebody is there. */
  readonly socket: string;
  /** Addresses of workloads that are reached by a tunnel. */
  readonly mesh?: readonly string[];
  /** A file of more of them, read at the start and on SIGHUP. */
  readonly meshFile?: string;
  /** Addresses whose connections are reset, by tunnel or not. */
  readonly deny?: readonly string[];
  /** Ports where plaintext is reset. */
  readonly strict?: readonly number[];
  /** Whether the application is dialled from the client's address. Default true. */
  readonly spoof?: boolean;
  /** Listeners on 0.0.0.0 alone. */
  readonly ipv4Only?: boolean;
  /** Serves DNS on port 15053, with this IPv4 address for any name. */
  readonly dns?: string;
  /** How long open connections may go on at SIGTERM; default 0. */
  readonly drainMs?: number;
  /** No lines about single connections. */
  readonly quiet?: boolean;
  /** Names its cgroup, so that one sandbox can have several. Default `inpod-proxy`. */
  readonly name?: string;
}

/** A pod, in the events `added`, `listening`, `refused`, `silent`, `removed`, `drained`, `no-dns`. */
export interface WorkloadEvent {
  readonly event: 'added' | 'listening' | 'refused' | 'silent' | 'removed' | 'drained' | 'no-dns';
  readonly uid: string;
  readonly namespace: string;
  readonly name: string;
  readonly account: string;
  /** The inode of its network namespace. */
  readonly netns: number;
  readonly error?: string;
}

export type ConnectionKind = 'outbound' | 'inbound' | 'tunnel';

/** Addresses as `10.0.0.1:80`, `[fd77::1]:80`; v4-mapped ones as IPv4. */
export interface ProxyConnection {
  readonly event: 'connection';
  /** The listener: 15001, 15006, 15008. */
  readonly kind: ConnectionKind;
  readonly uid: string;
  readonly peer: string;
  readonly local: string;
  /** Where it wanted to go; absent where a tunnel's first line did not say. */
  readonly original?: string;
  /** Of a tunnel: the client, as the other end told. */
  readonly source?: string;
  /** The errno when SO_ORIGINAL_DST did not answer, and the local address was taken. */
  readonly error?: string;
  /** `delivered` is what came by a tunnel and went to the application. */
  readonly did: 'passthrough' | 'tunnel' | 'delivered' | 'denied' | 'loop' | 'rubbish';
}

/** A connection that could not be passed on, and was reset. */
export interface FailedConnection {
  readonly event: 'failed';
  readonly kind: ConnectionKind;
  readonly uid: string;
  readonly peer: string;
  readonly original: string;
  readonly step: 'line' | 'socket' | 'bind' | 'connect';
  readonly errno: string;
}

export interface Totals {
  readonly event: 'totals';
  readonly workloads: number;
  /** Connections open now. */
  readonly open: number;
  readonly outbound: number;
  readonly inbound: number;
  readonly tunnel: number;
  readonly failed: number;
  readonly did: Readonly<Record<ProxyConnection['did'], number>>;
}

export type ProxyEvent =
  | WorkloadEvent
  | ProxyConnection
  | FailedConnection
  | Totals
  | { readonly event: 'connected' | 'ready' }
  | { readonly event: 'disconnected' | 'fatal' | 'mesh'; readonly detail: string }
  | { readonly event: 'dns'; readonly uid: string; readonly protocol: 'udp' | 'tcp'; readonly name: string }
  | { readonly event: 'order'; readonly order: string; readonly ok: boolean };

export interface InpodProxy extends AsyncDisposable {
  readonly running: Running;
  /** Everything it has said so far. */
  events(): ProxyEvent[];
  /** The connections so far. */
  connections(): ProxyConnection[];
  /** Waits for a connection that fits. */
  connection(fits: Partial<ProxyConnection>): Promise<ProxyConnection>;
  /** Waits until it has said something of a pod for the n-th time (default the first). */
  said(event: WorkloadEvent['event'], uid: string, times?: number): Promise<WorkloadEvent>;
  /**
   * Gives an order and waits for the answer; one that it does not understand is an error.
   * `late MS`, `hang`, `resume`, `nack TEXT`, `rubbish`, `hang-up`, `stop-listening [UID]`,
   * `listen [UID]`, `drain [MS]`, `mesh ADDR,...`, `deny ADDR,...`, `strict PORT,...`.
   */
  order(text: string): Promise<void>;
  totals(): Promise<Totals>;
  /** Aborts it, as a fault of its own would. */
  crash(): Promise<void>;
  /** As a DaemonSet stops it: it drains, and ends. */
  stop(): Promise<void>;
}

function flags(options: InpodProxyOptions): string[] {
  const list = (flag: string, values: readonly (string | number)[] | undefined): string[] =>
    values === undefined || values.length === 0 ? [] : [flag, values.join(',')];
  const one = (flag: string, value: string | number | undefined): string[] =>
    value === undefined ? [] : [flag, String(value)];
  return [
    ...one('--socket', options.socket),
    ...list('--mesh', options.mesh),
    ...one('--mesh-file', options.meshFile),
    ...list('--deny', options.deny),
    ...list('--strict', options.strict),
    ...(options.spoof === false ? ['--no-spoof'] : []),
    ...(options.ipv4Only ? ['--ipv4-only'] : []),
    ...one('--dns', options.dns),
    ...one('--drain', options.drainMs),
    ...(options.quiet ? ['--quiet'] : []),
  ];
}

/** The command line, for who runs it himself, as a pod's container for instance. */
export function inpodProxyCommand(options: InpodProxyOptions): readonly [string, ...string[]] {
  return [INPOD_PROXY, 'run', ...flags(options)];
}

/** What a program has said in JSON lines, each parsed once. */
export function eventReader<T>(running: Running): () => T[] {
  const events: T[] = [];
  let read = 0;
  return () => {
    for (; read < running.stdout.length; read++) {
      const line = running.stdout[read] ?? '';
      if (line.startsWith('{')) events.push(JSON.parse(line) as T);
    }
    return events;
  };
}

/** Starts the proxy. It is there at once; what it listens on is as ZDS tells it. */
export function startInpodProxy(sandbox: Sandbox, options: InpodProxyOptions): InpodProxy {
  const { cgroup = sandbox.cgroup(options.name ?? 'inpod-proxy'), netns } = options;
  const [cmd, ...args] = inpodProxyCommand(options);
  const running = sandbox.spawn({ cmd, args, cgroup, ...(netns === undefined ? {} : { netns }) });
  const events = eventReader<ProxyEvent>(running);
  const connections = (): ProxyConnection[] => events().filter((event) => event.event === 'connection');
  let gone = false;
  void running.exit.then(() => (gone = true));

  async function until<T>(what: string, check: () => T): Promise<NonNullable<T>> {
    return eventually(`the proxy says ${what}`, () => {
      const found = check();
      if (!found && gone) throw new Error(`it has ended: ${running.stderr.slice(-5).join('\n')}`);
      return found;
    });
  }

  async function order(text: string): Promise<void> {
    const answers = (): ProxyEvent[] => events().filter(({ event }) => event === 'order');
    const before = answers().length;
    running.write(`${text}\n`);
    const answer = await until(`that it obeys ${text}`, () => answers()[before]);
    if (answer.event !== 'order' || !answer.ok) throw new Error(`the proxy does not understand: ${text}`);
  }

  return {
    running,
    events,
    connections,
    connection: (fits) =>
      until(`that it has a connection ${JSON.stringify(fits)}`, () =>
        connections().find((connection) =>
          Object.entries(fits).every(([key, value]) => connection[key as keyof ProxyConnection] === value),
        ),
      ),
    said: (event, uid, times = 1) =>
      until(`${event} of ${uid}`, () =>
        events()
          .filter((each): each is WorkloadEvent => each.event === event && each.uid === uid)
          .at(times - 1),
      ),
    order,
    async totals() {
      await order('totals');
      const found = events().findLast((event) => event.event === 'totals');
      if (found === undefined) throw new Error('the proxy says no totals');
      return found;
    },
    async crash() {
      running.write('crash\n');
      await running.exit;
    },
    async stop() {
      await running.stop('SIGTERM');
    },
    [Symbol.asyncDispose]: () => running[Symbol.asyncDispose](),
  };
}
