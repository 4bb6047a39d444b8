/** What the agent needs: memory, time to start, and processor time while programs begin that are none of its business. */
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { openPinnedMaps } from '../../native/data-plane/maps.ts';
import { startAgent } from '../../deploy/stage/agent.ts';
import { type Cgroup, removeCgroup } from '../../deploy/stage/cgroup.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';
import { SOCK } from '../../deploy/stage/sock.ts';
import { type AgentPods, makeAgentPods } from './agent-pods.ts';
import { BYPASS, MODE } from '../harness/label-names.ts';

const PODS = 250;
/** With the pod's own cgroup, 1,000 in all. */
const CONTAINERS = 3;
/** A minute of a busy node in a few seconds: each second's step replaces containers, each fifth writes the manifest anew, with other labels. */
const CHURN_STEPS = 60;
const REPLACED = 5;
const STEPS_PER_MANIFEST = 5;
export const CHURN = `${CHURN_STEPS * REPLACED} containers replaced, ${CHURN_STEPS / STEPS_PER_MANIFEST} manifests, then 3 s of rest`;
const STORM_PER_SECOND = 2000;

export interface MemoryFigures {
  /** VmRSS in 10^6 bytes: when all was mapped, after the churn, and the most that it ever was. */
  readonly readyMb: number;
  readonly rssMb: number;
  readonly peakMb: number;
  /** From the start of the process to `ready`, with all cgroups there. */
  readonly startMs: number;
  /** Processor time of the agent, percent of one CPU: at rest, and during the storm. */
  readonly idlePercent: number;
  readonly stormPercent: number;
  /** Programs that did begin in a second of the storm. */
  readonly stormPerSecond: number;
}

/** A field of proc_pid_status(5), in 10^6 bytes. */
export function megabytes(pid: number, field: 'VmRSS' | 'VmHWM' | 'RssAnon'): number {
  const [, kib] =
    new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? [];
  if (kib === undefined) throw new Error(`/proc/${pid}/status has no ${field}`);
  return (Number(kib) * 1024) / 1e6;
}

/** Processor time of all its threads so far, milliseconds; proc_pid_stat(5), fields 14 and 15, whose tick is 10 ms for every user space. */
function cpuMs(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) * 10;
}

/** Percent of one CPU that the process used while something was done. */
export async function cpuPercent(pid: number, during: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  const before = cpuMs(pid);
  await during();
  return ((cpuMs(pid) - before) / (performance.now() - started)) * 100;
}

/** Containers are replaced, each new one runs a program for a moment, and labels change. */
async function churn(pods: AgentPods, containers: Cgroup[], steps: number): Promise<void> {
  for (let step = 0; step < steps; step++) {
    for (let i = 0; i < REPLACED; i++) {
      const old = containers.shift();
      if (old !== undefined) removeCgroup(old.absolute);
      const cgroup = pods.startContainer(pods.uids[(step * REPLACED + i) % PODS] ?? '');
      containers.push(cgroup);
      await must({ cmd: SOCK, args: ['nothing'], cgroup });
    }
    await delay(50);
    if (step % STEPS_PER_MANIFEST !== 0) continue;
    const labels = step % 2 === 0 ? { [MODE]: 'none' } : { [BYPASS]: 'enabled' };
    pods.manifest.change(pods.uids[step % PODS] ?? '', { labels });
    pods.manifest.write();
  }
}

/** With the agent as it is shipped. */
export async function benchMemory(quick: boolean): Promise<MemoryFigures> {
  await using sandbox = await makeSandbox('bench-memory');
  const pods = makeAgentPods(sandbox, PODS);
  const containers = pods.uids.flatMap((uid) =>
    Array.from({ length: CONTAINERS }, () => pods.startContainer(uid)),
  );
  const started = Date.now();
  await using agent = startAgent(sandbox, { manifest: pods.manifest.path });
  const { time } = await agent.ready();
  const startMs = new Date(time as string | number).getTime() - started;
  const { pid } = agent.running;
  if (!readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('cgroute.mjs'))
    throw new Error(`process ${pid} is not the agent`);
  using maps = openPinnedMaps(`${sandbox.bpffs}/cgroute`);
  const isMapped = (): boolean => {
    const ids = new Set(maps?.cgroups.keys());
    return ids.size === PODS * (CONTAINERS + 1) && containers.every(({ id }) => ids.has(id));
  };
  await eventually('all cgroups are mapped', isMapped);
  await delay(1000);
  const readyMb = megabytes(pid, 'VmRSS');

  await churn(pods, containers, quick ? CHURN_STEPS / 4 : CHURN_STEPS);
  await eventually('all cgroups are mapped after the churn', isMapped);
  // A minute has pauses: memory is given back in them.
  await delay(3_000);
  await delay(1000);
  const rssMb = megabytes(pid, 'VmRSS');
  const peakMb = megabytes(pid, 'VmHWM');

  const stormMs = quick ? 1500 : 4000;
  const idlePercent = await cpuPercent(pid, () => delay(stormMs / 2));
  let execs = 0;
  const stormPercent = await cpuPercent(pid, async () => {
    const storm = JSON.parse(
      await must({
        cmd: SOCK,
        args: ['storm', String(STORM_PER_SECOND), String(stormMs)],
        cgroup: sandbox.hostCgroup,
      }),
    ) as { execs: number };
    execs = storm.execs;
  });
  return {
    readyMb,
    rssMb,
    peakMb,
    startMs,
    idlePercent,
    stormPercent,
    stormPerSecond: (execs / stormMs) * 1000,
  };
}
