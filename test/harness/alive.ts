/** Whether the agent stays responsive while something is done to its node, and what it takes of a CPU. */
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { Agent } from '../../deploy/stage/agent.ts';
import { patienceMs } from '../../deploy/stage/deadline.ts';

export interface Vitals {
  /** The slowest answer of `/healthz`, milliseconds. */
  readonly slowestMs: number;
  /** Answers that were not 200, or did not come at all. */
  readonly bad: number;
  /** Of one CPU, 0 to 1 and more. */
  readonly cpu: number;
}

/** User and system time of a process in seconds: fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms. */
function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

/** Runs a function, and asks the agent all the while. */
export async function watchAgent<T>(agent: Agent, run: () => Promise<T>): Promise<readonly [T, Vitals]> {
  const address = String((await agent.logged('serving'))['http']);
  let [slowestMs, bad, isOver] = [0, 0, false];
  const asking = (async () => {
    while (!isOver) {
      const began = performance.now();
      const ok = await fetch(`http://${address}/healthz`, { signal: AbortSignal.timeout(patienceMs()) }).then(
        ({ status }) => status === 200,
        () => false,
      );
      if (!ok) bad++;
      slowestMs = Math.max(slowestMs, performance.now() - began);
      await delay(20);
    }
  })();
  const [began, before] = [performance.now(), cpuSeconds(agent.running.pid)];
  try {
    const result = await run();
    const cpu = (cpuSeconds(agent.running.pid) - before) / ((performance.now() - began) / 1000);
    return [result, { slowestMs: Math.round(slowestMs), bad, cpu: Math.round(cpu * 100) / 100 }];
  } finally {
    isOver = true;
    await asking;
  }
}
