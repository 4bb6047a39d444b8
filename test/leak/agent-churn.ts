/** An agent that is killed every few seconds, and started again: what the kernel does must not depend on it. */
import { spawnSync } from 'node:child_process';
import { cpSync, globSync, mkdirSync, readFileSync, symlinkSync, unlinkSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Running } from '../../deploy/stage/process.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';
import { SLOWDOWN } from '../../deploy/stage/slowdown.ts';
import type { Random } from '../harness/random.ts';

const root = resolve(import.meta.dirname, '../..');
const READY = /"msg":"ready"/;
/** The longest that a timer can be set for. */
const NEVER_MS = 2 ** 31 - 1;

/** Parts of the data plane that can be taken away, to see that the test would notice. */
export const BREAKS = {
  identity: ['cgroup_mkdir@*'],
  handoff: ['sock_ops@*'],
  connect: ['*_connect?@*'],
  takeover: ['*_connect?@*'],
} as const;
export type Break = keyof typeof BREAKS;

export interface AgentChurn extends AsyncDisposable {
  readonly kills: number;
  readonly starts: number;
  readonly upgrades: number;
  /** Rejects when the agent ends by itself, or does not become ready. */
  readonly failed: Promise<never>;
  /** Kills it with SIGKILL; none runs until {@link AgentChurn.resume}. */
  pause(): Promise<void>;
  /** Gives when it is ready. */
  resume(): Promise<void>;
  /** From the next start on, another bundle runs. */
  upgrade(): void;
}

export interface ChurnOptions {
  readonly sandbox: Sandbox;
  readonly manifest: string;
  readonly random: Random;
  readonly breaks?: Break | undefined;
}

/** What the version of the other bundle ends with. */
export const NEXT_VERSION = '-next';

/** A copy of the bundle that says to be a later version; its programs and maps have the same layouts. */
function nextBundle(directory: string): string {
  mkdirSync(`${directory}/next/dist`, { recursive: true });
  for (const name of ['bpf', 'cgroute'])
    cpSync(`${root}/dist/${name}`, `${directory}/next/dist/${name}`, { recursive: true });
  const { version } = JSON.parse(readFileSync(`${root}/package.json`, 'utf8')) as { version: string };
  const bundle = readFileSync(`${root}/dist/cgroute.mjs`, 'utf8');
  const next = bundle.replaceAll(`"${version}"`, `"${version}${NEXT_VERSION}"`);
  if (next === bundle) throw new Error(`the bundle does not say that it is version ${version}`);
  writeFileSync(`${directory}/next/dist/cgroute.mjs`, next);
  symlinkSync(`${root}/node_modules`, `${directory}/next/node_modules`);
  return `${directory}/next/dist/cgroute`;
}

/** Starts it; from {@link AgentChurn.resume} on it is killed again and again. */
export function churnAgent({ sandbox, manifest, random, breaks }: ChurnOptions): AgentChurn {
  const bpffs = `${sandbox.bpffs}/cgroute`;
  let program = `${root}/dist/cgroute`;
  let [kills, starts, upgrades] = [0, 0, 0];
  let isStopped = false;
  const failed = Promise.withResolvers<never>();
  failed.promise.catch(() => {}); // for whoever waits
  /** Ends the life that is going on. */
  let life: AbortController | undefined;
  let living: Promise<void> | undefined;

  function start(): Running {
    starts++;
    // An agent that lets go of what it finds before it attaches its own.
    if (breaks === 'takeover') breakParts();
    return sandbox.spawn({
      cmd: program,
      args: [
        'run',
        '--source',
        `file:${manifest}`,
        '--node',
        'node-a',
        '--cgroup-root',
        sandbox.cgroupRoot,
        '--bpffs-root',
        bpffs,
        ...(sandbox.procRoot === undefined ? [] : ['--proc-root', sandbox.procRoot]),
        '--http',
        '127.0.0.1:0',
      ],
    });
  }

  function breakParts(): void {
    if (breaks === undefined) return;
    for (const pin of BREAKS[breaks].flatMap((pattern) => globSync(`${bpffs}/*/links/${pattern}`))) {
      // The agent holds its links. One of a tracepoint cannot be detached: it goes when the agent dies.
      spawnSync('bpftool', ['link', 'detach', 'pinned', pin]);
      unlinkSync(pin);
    }
  }

  /** One life: until it is ready and some seconds more, or killed before. */
  async function live(signal: AbortSignal, isPatient: boolean, onReady: () => void): Promise<void> {
    const agent = start();
    const isShort = !isPatient && random.next() < 0.25;
    const untilKilled = (ms: number): Promise<unknown> =>
      delay(ms, undefined, { signal }).catch(() => undefined);
    if (isShort) {
      await untilKilled(random.next() * 600 * SLOWDOWN);
    } else {
      await Promise.race([agent.line(READY), untilKilled(NEVER_MS)]);
      if (breaks !== 'takeover') breakParts();
      onReady();
      await Promise.race([untilKilled(1000 + random.next() * 2500), agent.exit]);
    }
    const { code, signal: by } = await agent.stop('SIGKILL');
    if (by !== 'SIGKILL')
      throw new Error(
        `the agent ended by itself, with ${code ?? by}\n${[...agent.stdout.slice(-5), ...agent.stderr].join('\n')}`,
      );
    kills++;
  }

  async function churn({ signal }: AbortController, onReady: () => void): Promise<void> {
    for (let isPatient = true; !signal.aborted; isPatient = random.next() < 0.5) {
      await live(signal, isPatient, onReady);
      if (!signal.aborted) await delay(random.next() * 300);
    }
  }

  async function pause(): Promise<void> {
    life?.abort();
    await living;
  }

  return {
    failed: failed.promise,
    get kills() {
      return kills;
    },
    get starts() {
      return starts;
    },
    get upgrades() {
      return upgrades;
    },
    pause,
    resume() {
      if (isStopped) throw new Error('the agent is not to run any more');
      const { promise, resolve: ready, reject } = Promise.withResolvers<void>();
      life = new AbortController();
      living = churn(life, ready).catch((error: unknown) => {
        failed.reject(error);
        reject(error as Error);
      });
      // Nobody may be waiting when it fails later.
      promise.catch(() => {});
      return promise;
    },
    upgrade() {
      program = nextBundle(sandbox.directory);
      upgrades++;
    },
    async [Symbol.asyncDispose]() {
      isStopped = true;
      life?.abort();
      await living;
    },
  };
}
