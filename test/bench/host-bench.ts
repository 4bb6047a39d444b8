/** How long it takes to look at the host: the trials of all features, `cgroute doctor`, a sweep of very many cgroups. */
import { mkdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { pino } from 'pino';
import { openCgroupTree } from '../../watcher/cgroup-tree.ts';
import { cgroute } from '../../deploy/stage/agent.ts';
import { must } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';
import { median } from './statistics.ts';

/** Directories with as many cgroups each. */
const WIDTH = 100;
export const SWEPT = WIDTH * WIDTH;

/** Milliseconds, medians. */
export interface HostFigures {
  /** In a process that has tried none before. */
  readonly trialsMs: number;
  /** From its begin to its end. */
  readonly doctorMs: number;
  /** Without a change since the one before. */
  readonly sweepMs: number;
}

const CAPABILITY = resolve(import.meta.dirname, '../../native/survey/capability.ts');
const TRIALS = `import { capabilityReport } from '${CAPABILITY}';
const began = performance.now();
capabilityReport();
console.log(performance.now() - began);`;

async function medianOf(rounds: number, measure: () => Promise<number>): Promise<number> {
  const all: number[] = [];
  for (let round = 0; round < rounds; round++) all.push(await measure());
  return median(all);
}

async function elapsed(work: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await work();
  return performance.now() - began;
}

export async function benchHost(rounds: number): Promise<HostFigures> {
  await using sandbox = await makeSandbox('bench-host');
  const trialsMs = await medianOf(rounds, async () =>
    Number(await must({ cmd: process.execPath, args: ['--input-type=module', '-e', TRIALS] })),
  );
  const doctorMs = await medianOf(rounds, () => elapsed(() => cgroute(sandbox, ['doctor'])));
  for (let i = 0; i < WIDTH; i++) {
    mkdirSync(`${sandbox.cgroupRoot}/p${i}`);
    for (let j = 1; j < WIDTH; j++) mkdirSync(`${sandbox.cgroupRoot}/p${i}/c${j}`);
  }
  const tree = openCgroupTree({
    cgroupRoot: sandbox.cgroupRoot,
    logger: pino({ level: 'silent' }),
    onAppeared() {},
    onGone() {},
  });
  await tree.sweep();
  return { trialsMs, doctorMs, sweepMs: await medianOf(rounds, () => elapsed(() => tree.sweep())) };
}
