/** Ten thousand cgroups: what the agent's memory comes to, whether it stays there, and what is left when they have gone. */
import { readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { openPinnedMaps } from '../../native/data-plane/maps.ts';
import { type Agent, startAgent } from '../../deploy/stage/agent.ts';
import { type Cgroup, removeCgroup } from '../../deploy/stage/cgroup.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import { type AgentPods, makeAgentPods } from './agent-pods.ts';
import { footprint, type Footprint, memoryOf } from './footprint.ts';
import { DEBUGGER_ENV, openForcedRest } from './forced-rest.ts';

const PODS = 2000;
/** With the pod's own cgroup, 10,000 in all. */
const CONTAINERS = 4;
const PER_POD = CONTAINERS + 1;
export const FEW = 1000;
export const MANY = PODS * PER_POD;
/** The default is 30 s; so a minute of this has as many sweeps and checks as six minutes. */
export const SWEEP_SECONDS = 5;
const SAMPLE_MS = 500;
/** Of the pods, those whose containers are replaced while memory is looked at. */
const REPLACED = 200;

export interface ScaleFigures {
  /** Of the whole, from the first extra cgroup to the last entry. */
  readonly mapMs: number;
  readonly few: Footprint;
  readonly many: Footprint;
  /** After all but the first have gone, and after those have gone too. */
  readonly fewAgain: Footprint;
  readonly none: Footprint;
  /** After nothing but sweeps for so long, and the highest PSS meanwhile, when garbage was left to Node. */
  readonly held: Footprint;
  readonly heldSeconds: number;
  readonly ceilingMb: number;
  /** After so many containers have been replaced. */
  readonly afterReplaced: Footprint;
  readonly replaced: number;
}

interface Scene {
  readonly sandbox: Sandbox;
  readonly pods: AgentPods;
  readonly agent: Agent;
  readonly bpffsRoot: string;
  /** Container cgroups by pod, in the order of the manifest. */
  readonly running: Map<string, Cgroup[]>;
}

function runPods({ pods, running }: Pick<Scene, 'pods' | 'running'>, from: number, to: number): void {
  for (const uid of pods.uids.slice(from, to))
    running.set(
      uid,
      Array.from({ length: CONTAINERS }, () => pods.startContainer(uid)),
    );
}

/** The pod's own cgroup, with those of its containers. */
const podDirectory = (container: Cgroup): string =>
  container.absolute.slice(0, container.absolute.lastIndexOf('/'));

function endPods({ running }: Scene, count: number): void {
  for (const [uid, [container]] of [...running].slice(-count)) {
    if (container !== undefined) removeCgroup(podDirectory(container));
    running.delete(uid);
  }
}

function replaceContainers({ pods, running }: Scene, count: number): void {
  for (const [uid, containers] of [...running].slice(0, count)) {
    for (const { absolute } of containers) removeCgroup(absolute);
    running.set(
      uid,
      containers.map(() => pods.startContainer(uid)),
    );
  }
}

/** The maps hold the cgroups that are there, and no others. */
async function untilMapped({ bpffsRoot, running }: Scene): Promise<void> {
  using maps = openPinnedMaps(bpffsRoot);
  if (maps === undefined) throw new Error('the agent is ready and has pinned no maps');
  const wanted = running.size * PER_POD;
  await eventually(
    `${wanted} cgroups are in the maps, and no others`,
    async () => {
      await delay(100);
      const ids = new Set(maps.cgroups.keys());
      return (
        ids.size === wanted &&
        [...running.values()].every((containers) => containers.every(({ id }) => ids.has(id)))
      );
    },
    { ownMs: 30_000 },
  );
}

/** The highest PSS while the cgroups are there and nothing changes. */
async function hold({ agent }: Scene, seconds: number): Promise<number> {
  let ceiling = 0;
  for (const until = performance.now() + seconds * 1000; performance.now() < until; await delay(SAMPLE_MS)) {
    ceiling = Math.max(ceiling, memoryOf(agent.running.pid).pssMb);
  }
  return ceiling;
}

/** With the agent as it is shipped. */
export async function benchScale(quick: boolean): Promise<ScaleFigures> {
  await using sandbox = await makeSandbox('bench-scale');
  const pods = makeAgentPods(sandbox, PODS);
  const running = new Map<string, Cgroup[]>();
  runPods({ pods, running }, 0, FEW / PER_POD);
  const config = sandbox.file('config.yaml');
  writeFileSync(config, `sweepSeconds: ${SWEEP_SECONDS}\n`);
  await using agent = startAgent(sandbox, {
    manifest: pods.manifest.path,
    args: ['--config', config],
    env: DEBUGGER_ENV,
  });
  await agent.ready();
  using rest = await openForcedRest(agent);
  const { pid } = agent.running;
  if (!readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('cgroute.mjs'))
    throw new Error(`process ${pid} is not the agent`);
  const scene: Scene = { sandbox, pods, agent, running, bpffsRoot: `${sandbox.bpffs}/cgroute` };
  const settled = async (): Promise<Footprint> => {
    await untilMapped(scene);
    return footprint(pid, scene.bpffsRoot, rest);
  };

  const few = await settled();
  const started = performance.now();
  runPods(scene, FEW / PER_POD, PODS);
  await untilMapped(scene);
  const mapMs = performance.now() - started;
  const many = await settled();
  const heldSeconds = quick ? 12 : 60;
  const ceilingMb = await hold(scene, heldSeconds);
  const held = await settled();
  const rounds = quick ? 2 : 10;
  for (let round = 0; round < rounds; round++) {
    replaceContainers(scene, REPLACED);
    await untilMapped(scene);
  }
  const afterReplaced = await settled();
  endPods(scene, PODS - FEW / PER_POD);
  const fewAgain = await settled();
  endPods(scene, FEW / PER_POD);
  const none = await settled();
  return {
    mapMs,
    few,
    many,
    held,
    heldSeconds,
    ceilingMb,
    afterReplaced,
    replaced: rounds * REPLACED * CONTAINERS,
    fewAgain,
    none,
  };
}
