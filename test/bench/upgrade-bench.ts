/**
 * How long a node is without an agent at an upgrade: from the moment in which the old
 * one stops its work to the one in which the new one says that it is ready, by the
 * clock of both logs. Redirection goes on meanwhile, and is not what is measured here.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { resolve } from 'node:path';
import { type Agent, cgroute, startAgent } from '../../deploy/stage/agent.ts';
import { run } from '../../deploy/stage/process.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import { OLD_MISSING, oldRelease } from '../harness/old-release.ts';
import { makeAgentPods } from './agent-pods.ts';

const PROGRAM = resolve(import.meta.dirname, '../../dist/cgroute');
/** As many as a kubelet takes. */
export const UPGRADE_PODS = 110;
const CONTAINERS = 2;

/** Milliseconds, one figure for each round. */
export interface UpgradeFigures {
  /** The new one has waited beside the old one. */
  readonly waited: readonly number[];
  /** The same, from 0.1 with its other layouts; undefined where this clone has no 0.1. */
  readonly fromOld: readonly number[] | undefined;
  /** The new one is started when the old one has gone. */
  readonly afterwards: readonly number[];
}

interface Scene {
  readonly sandbox: Sandbox;
  readonly manifest: string;
}

const at = (agent: Agent, isMeant: (message: string) => boolean): number => {
  const entry = agent.log().find(({ msg }) => msg !== undefined && isMeant(msg));
  if (entry === undefined) throw new Error(`the agent has not said it: ${isMeant.toString()}`);
  return Date.parse(String(entry['time']));
};

const gap = (before: Agent, after: Agent): number =>
  at(after, (message) => message === 'ready') - at(before, (message) => message.startsWith('leaving: '));

let sockets = 0;

/** Gives when it could take over at once. */
async function startBeside({ sandbox, manifest }: Scene): Promise<Agent> {
  const socket = sandbox.file(`probe-${++sockets}.sock`);
  const agent = startAgent(sandbox, { manifest, args: ['--wait-for-lock', '--probe-socket', socket] });
  const isReady = async (): Promise<boolean> =>
    (await run({ cmd: PROGRAM, args: ['probe', 'ready', '--probe-socket', socket] })).code === 0;
  while (!(await isReady())) await delay(50);
  return agent;
}

async function start({ sandbox, manifest }: Scene, program = PROGRAM): Promise<Agent> {
  const agent = startAgent(sandbox, { manifest, program });
  await agent.ready();
  return agent;
}

/** One follows another, as often as that. */
async function follow(
  rounds: number,
  before: Agent,
  next: () => Promise<Agent>,
): Promise<readonly [number[], Agent]> {
  const figures: number[] = [];
  let latest = before;
  for (let round = 0; round < rounds; round++) {
    const after = await next();
    await latest.stop();
    await after.ready();
    figures.push(gap(latest, after));
    latest = after;
  }
  return [figures, latest];
}

export async function benchUpgrade(rounds: number): Promise<UpgradeFigures> {
  await using sandbox = await makeSandbox('bench-upgrade');
  const pods = makeAgentPods(sandbox, UPGRADE_PODS);
  for (const uid of pods.uids) for (let n = 0; n < CONTAINERS; n++) pods.startContainer(uid);
  const scene = { sandbox, manifest: pods.manifest.path };
  const [waited, last] = await follow(rounds, await start(scene), () => startBeside(scene));

  const afterwards: number[] = [];
  let latest = last;
  for (let round = 0; round < rounds; round++) {
    await latest.stop();
    const after = await start(scene);
    afterwards.push(gap(latest, after));
    latest = after;
  }
  await latest.stop();

  if (OLD_MISSING !== false) return { waited, afterwards, fromOld: undefined };
  const { program } = await oldRelease();
  const fromOld: number[] = [];
  for (let round = 0; round < rounds; round++) {
    await cgroute(sandbox, ['cleanup']);
    const [figures, now] = await follow(1, await start(scene, program), () => startBeside(scene));
    fromOld.push(...figures);
    await now.stop();
  }
  return { waited, afterwards, fromOld };
}
