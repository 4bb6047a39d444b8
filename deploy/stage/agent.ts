/** The agent, as it is shipped: the bundle, started with a sandbox's roots. */
import { resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { beginWait } from './deadline.ts';
import type { NodeStatus } from './node-status.ts';
import { type Exit, type Finished, type Program, type Running, run } from './process.ts';
import type { Sandbox } from './sandbox.ts';

const root = resolve(import.meta.dirname, '../..');
const PROGRAM = resolve(root, 'dist/cgroute');

export interface AgentOptions {
  /** The program of another build; default this checkout's. */
  readonly program?: string;
  /** The manifest file with namespaces and pods; without it, the source is the agent's default, the API server. */
  readonly manifest?: string;
  /** Default `node-a`. */
  readonly node?: string;
  /** Default the sandbox's. */
  readonly cgroupRoot?: string;
  /** Default `cgroute` in the sandbox's bpffs. */
  readonly bpffsRoot?: string;
  /** Default the sandbox's, where a network of its own passes for the host's. */
  readonly procRoot?: string;
  /** Default `127.0.0.1:0`, any free port. */
  readonly http?: string;
  /** More flags of `cgroute run`. */
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** Default: the sandbox's host cgroup. */
  readonly cgroup?: Program['cgroup'];
  /** What starts it there, in a container say. Default: the bundle itself. */
  readonly start?: (args: readonly string[]) => Program;
}

/** A line of the agent's log. */
export type LogEntry = Readonly<Record<string, unknown>> & { readonly msg?: string };

export interface Agent extends AsyncDisposable {
  readonly running: Running;
  /** Its log so far. */
  log(): LogEntry[];
  /** Waits for a line of the log with this message, among those already there too. */
  logged(message: string): Promise<LogEntry>;
  /** Waits until it says that it is ready: programs attached, everything mapped. */
  ready(): Promise<LogEntry>;
  /** What `cgroute status -o json` says; also when the agent is down. */
  status(): Promise<NodeStatus>;
  /** Ends it with SIGTERM. */
  stop(): Promise<Exit>;
  /** Ends it with SIGKILL. */
  kill9(): Promise<Exit>;
}

/** The flags that say where on this machine, for any verb. */
function roots(sandbox: Sandbox, options: Partial<AgentOptions>): string[] {
  // A container has a /proc of its own.
  const procRoot = options.procRoot ?? (options.start === undefined ? sandbox.procRoot : undefined);
  return [
    '--cgroup-root',
    options.cgroupRoot ?? sandbox.cgroupRoot,
    '--bpffs-root',
    options.bpffsRoot ?? `${sandbox.bpffs}/cgroute`,
    ...(procRoot === undefined ? [] : ['--proc-root', procRoot]),
  ];
}

/** Runs one verb of the bundle to its end: `cgroute(sandbox, ['status', '-o', 'json'])`. */
export async function cgroute(
  sandbox: Sandbox,
  args: readonly string[],
  options: Partial<AgentOptions> = {},
): Promise<Finished> {
  const [verb = 'help', ...rest] = args;
  return run({ cmd: options.program ?? PROGRAM, args: [verb, ...roots(sandbox, options), ...rest] });
}

/** What `cgroute status -o json` says of the agent under these roots, be there one or not. */
export async function nodeStatus(sandbox: Sandbox, options: Partial<AgentOptions> = {}): Promise<NodeStatus> {
  const { code, stdout, stderr } = await cgroute(sandbox, ['status', '-o', 'json'], options);
  // 3 is "it works, but not as wanted": the agent is down, say.
  if (code !== 0 && code !== 3) throw new Error(`cgroute status exited with ${code}\n${stderr}`);
  return JSON.parse(stdout) as NodeStatus;
}

function parse(line: string): LogEntry[] {
  if (!line.startsWith('{')) return [];
  try {
    return [JSON.parse(line) as LogEntry];
  } catch {
    return [];
  }
}

/** Starts the agent; {@link Agent.ready} waits for it. */
export function startAgent(sandbox: Sandbox, options: AgentOptions): Agent {
  const args = [
    'run',
    ...(options.manifest === undefined ? [] : ['--source', `file:${options.manifest}`]),
    '--node',
    options.node ?? 'node-a',
    ...roots(sandbox, options),
    '--http',
    options.http ?? '127.0.0.1:0',
    ...(options.args ?? []),
  ];
  const running = sandbox.spawn({
    ...(options.start?.(args) ?? { cmd: options.program ?? PROGRAM, args }),
    ...(options.env === undefined ? {} : { env: options.env }),
    ...(options.cgroup === undefined ? {} : { cgroup: options.cgroup }),
  });
  const log = (): LogEntry[] => [...running.stdout, ...running.stderr].flatMap(parse);

  async function logged(message: string): Promise<LogEntry> {
    let exit: Exit | undefined;
    void running.exit.then((value) => (exit = value));
    for (const wait = beginWait(); ; await delay(10)) {
      const entry = log().find(({ msg }) => msg === message);
      if (entry) return entry;
      if (exit === undefined && !wait.isOver()) continue;
      const why = exit === undefined ? wait.passed() : `the agent exited with ${exit.code ?? exit.signal}`;
      const tail = [...running.stdout.slice(-20), ...running.stderr.slice(-20)].join('\n');
      throw new Error(`${why} before it logged "${message}"\n${tail}`);
    }
  }

  return {
    running,
    log,
    logged,
    ready: () => logged('ready'),
    status: () => nodeStatus(sandbox, options),
    stop: () => running.stop('SIGTERM'),
    kill9: () => running.stop('SIGKILL'),
    [Symbol.asyncDispose]: () => running[Symbol.asyncDispose](),
  };
}
