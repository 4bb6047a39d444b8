/** A storm of programs that begin outside pods: what the agent uses, and how much slower the storm gets. */
import { readFileSync } from 'node:fs';
import { startAgent } from '../harness/agent.ts';
import { must } from '../harness/process.ts';
import { makeSandbox, type Sandbox } from '../harness/sandbox.ts';
import { SOCK } from '../harness/sock.ts';
import { makeAgentPods } from './agent-pods.ts';
import { cpuPercent } from './memory-bench.ts';
import { median, ratio, shuffled, type Ratio } from './statistics.ts';

const PER_SECOND = 5_000;
const PODS = 50;

export interface StormFigures {
  /** Processor time of the agent, percent of one CPU. */
  readonly agentPercent: number;
  /** Programs that did begin in a second. */
  readonly perSecond: number;
  /** Processor time of one fork and exec, with the agent there to without. */
  readonly slowdown: Ratio;
  readonly forkUs: number;
}

interface Storm {
  readonly perSecond: number;
  /** Processor time of one fork, exec and exit, by the kernel's account of the cgroup, microseconds. */
  readonly cpuUs: number;
}

async function storm(sandbox: Sandbox, ms: number): Promise<Storm> {
  const used = (): number => Number(/^usage_usec (\d+)/m.exec(readFileSync(`${sandbox.hostCgroup.absolute}/cpu.stat`, 'utf8'))?.[1]);
  const before = used();
  const { execs, ms: took } = JSON.parse(await must({ cmd: SOCK, args: ['storm', String(PER_SECOND), String(ms)], cgroup: sandbox.hostCgroup })) as { execs: number; ms: number };
  return { perSecond: (execs / took) * 1000, cpuUs: (used() - before) / execs };
}

/** Rounds with the agent as it is shipped and rounds with nothing of it, in another order each time. */
export async function benchStorm(rounds: number, ms: number): Promise<StormFigures> {
  const percents: number[] = [];
  const rates: number[] = [];
  const cpu = { with: [] as number[], without: [] as number[] };
  for (let round = 0; round < rounds; round++) {
    for (const way of shuffled(['with', 'without'] as const)) {
      await using sandbox = await makeSandbox(`bench-storm-${way}`);
      const pods = makeAgentPods(sandbox, PODS);
      for (const uid of pods.uids) pods.startContainer(uid);
      if (way === 'without') {
        cpu.without.push((await storm(sandbox, ms)).cpuUs);
        continue;
      }
      await using agent = startAgent(sandbox, { manifest: pods.manifest.path });
      await agent.ready(30_000);
      const { pid } = agent.running;
      // What the start leaves to do is not the storm's.
      await cpuPercent(pid, () => storm(sandbox, ms / 4));
      percents.push(await cpuPercent(pid, async () => {
        const { perSecond, cpuUs } = await storm(sandbox, ms);
        rates.push(perSecond);
        cpu.with.push(cpuUs);
      }));
    }
  }
  return { agentPercent: median(percents), perSecond: median(rates), slowdown: ratio(cpu.with, cpu.without), forkUs: median(cpu.without) };
}
