/**
 * A storm of programs that begin outside pods: what the agent uses, and how much
 * slower the storm gets, by its processor time alone: with everything, with the
 * programs at the hooks and no agent, and with nothing.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { cgroute, startAgent } from '../../deploy/stage/agent.ts';
import type { Cgroup } from '../../deploy/stage/cgroup.ts';
import { must } from '../../deploy/stage/process.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import { SOCK } from '../../deploy/stage/sock.ts';
import { watchAgent } from '../harness/alive.ts';
import { makeAgentPods } from './agent-pods.ts';
import { hasPriority, PRIORITY } from './kube-pods.ts';
import { median, order, ratio, type Ratio } from './statistics.ts';

const PER_SECOND = 5_000;
const PODS = 50;
const SETTLE_MS = 1000;
/** `programs`: an agent that was killed, so what it attached stays and its socket of process events is gone. */
const WAYS = ['without', 'control', 'programs', 'agent'] as const;
type Way = (typeof WAYS)[number];

export interface StormFigures {
  /** Processor time of the agent, percent of one CPU, over all rounds. */
  readonly agentPercent: number;
  /** The slowest answer of its `/healthz` in a storm, milliseconds. */
  readonly healthMs: number;
  /** Programs that did begin in a second. */
  readonly perSecond: number;
  /** Processor time of one fork and exec, to that without cgroute. */
  readonly slowdown: Readonly<Record<Way, Ratio>>;
  readonly forkUs: number;
  readonly isAhead: boolean;
}

/** Processor time by the kernel's account of a cgroup, microseconds. */
const usedUs = ({ absolute }: Cgroup): number =>
  Number(/^usage_usec (\d+)/m.exec(readFileSync(`${absolute}/cpu.stat`, 'utf8'))?.[1]);

interface Storm {
  readonly execs: number;
  readonly ms: number;
  /** Of one fork, exec and exit. */
  readonly cpuUs: number;
}

interface Scene {
  readonly sandbox: Sandbox;
  readonly manifest: string;
  /** Each alone in its cgroup, so that neither is counted for the other. */
  readonly stormCgroup: Cgroup;
  readonly agentCgroup: Cgroup;
  readonly isAhead: boolean;
}

async function storm({ stormCgroup, isAhead }: Scene, ms: number): Promise<Storm> {
  const args = ['storm', String(PER_SECOND), String(ms)];
  const before = usedUs(stormCgroup);
  const text = await must({
    ...(isAhead ? { cmd: 'chrt', args: ['-f', PRIORITY, SOCK, ...args] } : { cmd: SOCK, args }),
    cgroup: stormCgroup,
  });
  const { execs, ms: took } = JSON.parse(text) as { execs: number; ms: number };
  return { execs, ms: took, cpuUs: (usedUs(stormCgroup) - before) / execs };
}

/** One storm in a way, with what the agent used meanwhile, microseconds. */
async function once(
  scene: Scene,
  way: Way,
  ms: number,
): Promise<Storm & { readonly agentUs: number; readonly healthMs: number }> {
  const { sandbox, manifest, agentCgroup } = scene;
  if (way === 'without' || way === 'control') {
    await storm(scene, ms / 4);
    return { ...(await storm(scene, ms)), agentUs: 0, healthMs: 0 };
  }
  const agent = startAgent(sandbox, { manifest, cgroup: agentCgroup });
  try {
    await agent.ready();
    if (way === 'programs') await agent.kill9();
    // What the start leaves to do is not the storm's.
    else await delay(SETTLE_MS);
    // Asked in the first storm alone, as an answer takes processor time as well.
    const healthMs =
      way === 'programs'
        ? await storm(scene, ms / 4).then(() => 0)
        : (await watchAgent(agent, () => storm(scene, ms / 4)))[1].slowestMs;
    const before = usedUs(agentCgroup);
    const result = await storm(scene, ms);
    return { ...result, agentUs: usedUs(agentCgroup) - before, healthMs };
  } finally {
    await agent.kill9();
    const { code, stderr } = await cgroute(sandbox, ['cleanup']);
    // Not thrown: it would hide what ended the trial.
    if (code !== 0) process.exitCode = 1;
    if (code !== 0) console.error(`cgroute cleanup exited with ${code}\n${stderr}`);
    // The kernel lets go of programs a little later.
    await delay(20);
  }
}

/** With the agent as it is shipped; each round has every way once, in an order of its own. */
export async function benchStorm(rounds: number, ms: number): Promise<StormFigures> {
  await using sandbox = await makeSandbox('bench-storm');
  const pods = makeAgentPods(sandbox, PODS);
  for (const uid of pods.uids) pods.startContainer(uid);
  const scene: Scene = {
    sandbox,
    manifest: pods.manifest.path,
    isAhead: await hasPriority(),
    stormCgroup: sandbox.cgroup('storm'),
    agentCgroup: sandbox.cgroup('agent'),
  };
  const cpu: Record<Way, number[]> = { without: [], control: [], programs: [], agent: [] };
  const agent = { us: 0, ms: 0, execs: 0, healthMs: 0 };
  for (let round = 0; round < rounds; round++) {
    for (const way of order.shuffled(WAYS)) {
      const result = await once(scene, way, ms);
      cpu[way].push(result.cpuUs);
      if (way !== 'agent') continue;
      agent.us += result.agentUs;
      agent.ms += result.ms;
      agent.execs += result.execs;
      agent.healthMs = Math.max(agent.healthMs, result.healthMs);
    }
  }
  const to = (way: Way): Ratio => ratio(cpu[way], cpu.without);
  return {
    agentPercent: agent.us / agent.ms / 10,
    perSecond: (agent.execs / agent.ms) * 1000,
    healthMs: agent.healthMs,
    isAhead: scene.isAhead,
    forkUs: median(cpu.without),
    slowdown: {
      without: to('without'),
      control: to('control'),
      programs: to('programs'),
      agent: to('agent'),
    },
  };
}
