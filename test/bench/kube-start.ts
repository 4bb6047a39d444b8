/** How long a start takes on a full node, with nothing known from before. */
import { setTimeout as delay } from 'node:timers/promises';
import { each, type KubeBenchCluster, numbers } from './kube-pods.ts';
import { median } from './statistics.ts';

const PODS = 250;
/** Of each pod, so 1,000 in all. */
const CONTAINERS = 4;
const NAMESPACE = 'full';

export interface StartFigures {
  /** Milliseconds from exec to `ready`, when all cgroups are in the maps: the median, and all in their order. */
  readonly medianMs: number;
  readonly rounds: readonly number[];
  /** Of an agent that finds the maps of the one before it, as in an upgrade. */
  readonly againMs: number;
}

/** Starts the agent `rounds` times on a node of 250 pods that already run; without real-time priority, with which a start took longer. */
export async function benchStart(bench: KubeBenchCluster, rounds: number): Promise<StartFigures> {
  const node = await bench.addNode('node-full');
  await bench.addNamespace(NAMESPACE);
  const pods = await each(numbers(PODS), (i) => node.runPod(NAMESPACE, `web-${i}`, CONTAINERS));
  const ids = pods.flatMap(({ cgroups }) => cgroups.map(({ id }) => id));

  async function start(): Promise<number> {
    const began = Date.now();
    await using agent = await node.start();
    const { time } = await agent.ready();
    const ms = new Date(time as string | number).getTime() - began;
    using maps = node.maps();
    const missing = ids.filter((id) => maps.cgroups.get(id)?.isInMesh !== 1);
    if (missing.length > 0)
      throw new Error(
        `the agent says that it is ready, and ${missing.length} of ${ids.length} cgroups are not in its maps`,
      );
    return ms;
  }

  const fresh: number[] = [];
  let againMs = NaN;
  for (let round = 0; round < rounds; round++) {
    fresh.push(await start());
    if (round === rounds - 1) againMs = await start();
    await node.cleanUp();
    await delay(200);
  }
  return { medianMs: median(fresh), rounds: fresh, againMs };
}
