/** Programs in a cgroup and a network namespace of the test's choice. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { PATIENCE_MS, beginWait, stretch, whenOver } from './deadline.ts';

export interface Program {
  readonly cmd: string;
  readonly args?: readonly string[];
  /** The cgroup where even its first instruction runs. Default: the caller's. */
  readonly cgroup?: { readonly absolute: string };
  /** Name of the network namespace, as `ip netns` knows it. Default: the caller's. */
  readonly netns?: string;
  /** Added to the caller's environment. */
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** What it reads; without this its standard input stays open until {@link Running.end}. */
  readonly stdin?: string;
}

export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface Running extends AsyncDisposable {
  readonly pid: number;
  /** Complete lines so far; they keep growing. */
  readonly stdout: readonly string[];
  readonly stderr: readonly string[];
  /** Settles when it has exited and all its output has been read. Never rejects. */
  readonly exit: Promise<Exit>;
  /**
   * The next line of standard output that nobody has been given yet, or the next
   * that matches (those before it are passed over). Rejects when the program
   * exits first or does not print it in time, see deadline.ts.
   */
  line(pattern?: RegExp): Promise<string>;
  /** The next line, parsed. */
  json<T>(): Promise<T>;
  write(text: string): void;
  /** Closes its standard input. */
  end(): void;
  kill(signal?: NodeJS.Signals): void;
  /** Sends a signal (default SIGTERM) and waits for the exit; when that does not come in time, SIGKILL. */
  stop(signal?: NodeJS.Signals): Promise<Exit>;
}

/** What is left of a program's output when it has exited is read at once. */
const OUTPUT_MS = 1000;

/** Moves the shell to the cgroup, then becomes the program: same PID throughout. */
const ENTER_CGROUP = 'echo 0 >"$1/cgroup.procs" && shift && exec "$@"';

/** The command line that runs a program in its cgroup and network namespace; the namespace first, as runtimes do. */
export function commandLine(program: Program): [string, ...string[]] {
  let line: [string, ...string[]] = [program.cmd, ...(program.args ?? [])];
  if (program.cgroup !== undefined) line = ['sh', '-c', ENTER_CGROUP, 'sh', program.cgroup.absolute, ...line];
  // nsenter, as `ip netns exec` would unshare and remount.
  if (program.netns !== undefined) line = ['nsenter', `--net=/run/netns/${program.netns}`, '--', ...line];
  return line;
}

function describe(program: Program): string {
  return [program.cmd, ...(program.args ?? [])].join(' ');
}

function collect(stream: Readable | null, lines: string[], changed: () => void): Promise<void> {
  if (stream === null) return Promise.resolve();
  const reader = createInterface({ input: stream, crlfDelay: Infinity });
  reader.on('line', (line) => {
    lines.push(line);
    changed();
  });
  return new Promise((resolve) => reader.once('close', resolve));
}

/**
 * Starts a program. It is in its cgroup and namespace before its first
 * instruction. A program that cannot be started exits with code 127.
 */
export function spawnIn(program: Program): Running {
  const [command, ...args] = commandLine(program);
  const child: ChildProcess = spawn(command, args, {
    cwd: program.cwd,
    env: { ...process.env, ...program.env },
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  const stdout: string[] = [];
  const stderr: string[] = [];
  const waiting = new Set<() => void>();
  const changed = (): void => waiting.forEach((wake) => wake());
  let given = 0;
  let ended: Exit | undefined;

  const exited = new Promise<Exit>((resolve) => {
    child.once('exit', (code, signal) => resolve({ code, signal }));
    child.once('error', (error) => {
      stderr.push(error.message);
      resolve({ code: 127, signal: null });
    });
  });
  const output = Promise.all([
    collect(child.stdout, stdout, changed),
    collect(child.stderr, stderr, changed),
  ]);
  const exit = exited.then(async (result) => {
    // A grandchild may keep the pipes open; it must not keep the test waiting.
    await Promise.race([output, delay(OUTPUT_MS * stretch(), undefined, { ref: false })]);
    ended = result;
    changed();
    return result;
  });
  child.stdin?.on('error', () => {}); // it exited without reading
  if (program.stdin !== undefined) child.stdin?.end(program.stdin);

  function take(pattern: RegExp | undefined): string | undefined {
    while (given < stdout.length) {
      const line = stdout[given++];
      if (line !== undefined && (pattern === undefined || pattern.test(line))) return line;
    }
    return undefined;
  }

  function line(pattern?: RegExp): Promise<string> {
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const fail = (why: string): void => {
      const tail = [...stdout.slice(-5), ...stderr.slice(-20)].join('\n');
      reject(new Error(`${describe(program)}: ${why} before ${pattern ?? 'a line'} came\n${tail}`));
    };
    const check = (): void => {
      const found = take(pattern);
      if (found === undefined && ended === undefined) return;
      // At once: the next line, in the same chunk, is for the next caller.
      waiting.delete(check);
      if (found !== undefined) resolve(found);
      else fail(`exited with ${ended?.code ?? ended?.signal}`);
    };
    const wait = beginWait();
    const cancel = whenOver(wait, () => fail(wait.passed()));
    waiting.add(check);
    check();
    return promise.finally(() => {
      cancel();
      waiting.delete(check);
    });
  }

  const kill = (signal: NodeJS.Signals = 'SIGTERM'): void => void child.kill(signal);
  async function stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<Exit> {
    kill(signal);
    return exit.finally(whenOver(beginWait(), () => kill('SIGKILL')));
  }

  return {
    pid: child.pid ?? -1,
    stdout,
    stderr,
    exit,
    line,
    kill,
    stop,
    json: async <T>() => JSON.parse(await line()) as T,
    write: (text) => void child.stdin?.write(text),
    end: () => void child.stdin?.end(),
    async [Symbol.asyncDispose]() {
      if (ended === undefined) await stop('SIGKILL');
    },
  };
}

export interface Finished extends Exit {
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end, with an empty standard input unless one is given. */
export async function run(program: Program): Promise<Finished> {
  const running = spawnIn({ stdin: '', ...program });
  const exit = await running.exit;
  return { ...exit, stdout: running.stdout.join('\n'), stderr: running.stderr.join('\n') };
}

/** Like {@link run}, but an exit code other than 0 is an error. Returns its standard output. */
export async function must(program: Program): Promise<string> {
  const { code, signal, stdout, stderr } = await run(program);
  if (code !== 0) throw new Error(`${describe(program)}: exited with ${code ?? signal}\n${stderr}`);
  return stdout;
}

/**
 * Waits until `check` returns something true, see deadline.ts; the reason is for the error.
 * @param ownMs what it may take by a clock of its own, a back-off say; comes on top
 */
export async function eventually<T>(
  what: string,
  check: () => T | Promise<T>,
  { ownMs = 0 }: { readonly ownMs?: number } = {},
): Promise<NonNullable<T>> {
  for (const wait = beginWait(PATIENCE_MS + ownMs); ; await delay(10)) {
    const value = await check();
    if (value) return value;
    if (wait.isOver()) throw new Error(`${wait.passed()}, and it is still not so: ${what}`);
  }
}

/** TCP ports on which somebody listens in the network namespace of a process. */
export function listeningPorts(pid: number): Set<number> {
  const ports = new Set<number>();
  for (const table of ['tcp', 'tcp6']) {
    let text: string;
    try {
      text = readFileSync(`/proc/${pid}/net/${table}`, 'utf8');
    } catch {
      continue;
    }
    for (const row of text.split('\n').slice(1)) {
      const [, local, , state] = row.trim().split(/\s+/);
      if (state === '0A') ports.add(parseInt(local?.split(':')[1] ?? '', 16)); // TCP_LISTEN
    }
  }
  return ports;
}

/** Waits until somebody listens on all these ports in the process's namespace. */
export async function waitListening(running: Running, ports: readonly number[]): Promise<void> {
  let gone: Exit | undefined;
  void running.exit.then((exit) => (gone = exit));
  await eventually(`port ${ports.join(' and ')} is listened on`, () => {
    if (gone)
      throw new Error(`exited with ${gone.code ?? gone.signal}: ${running.stderr.slice(-20).join('\n')}`);
    const open = listeningPorts(running.pid);
    return ports.every((port) => open.has(port));
  });
}
