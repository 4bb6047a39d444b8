/**
 * A thousand pods that are made and deleted within a minute, on one node of a real
 * API server: with cgroups, a process in each, and a connection that the node's
 * proxy takes and that lasts until its pod ends. What is left when they have gone.
 */
import { setTimeout as delay } from 'node:timers/promises';
import PQueue from 'p-queue';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import { makeNetwork } from '../../deploy/stage/netns.ts';
import { eventually, type Running } from '../../deploy/stage/process.ts';
import { type Connected, listen, type Place, SOCK } from '../../deploy/stage/sock.ts';
import { type Footprint, footprint, mapEntries } from './footprint.ts';
import { DEBUGGER_ENV, openForcedRest } from './forced-rest.ts';
import { type BenchPod, type KubeNodeBench, numbers, startBenchCluster } from './kube-pods.ts';

const NODE = 'node-turned-over';
const NAMESPACE = 'brief';
/** Where an agent with an API server looks for the proxy. */
const MESH = 'istio-system';
const CONTAINERS = 2;
/** At one time, as many as a kubelet runs by default. */
const ALIVE = 110;
/** Being made or deleted at one time. */
const AT_ONCE = 10;
/**
 * Before anything is counted, so that what an agent needs once is there: its heap
 * takes hundreds of pods to reach its size, and 3,000 more add no more than 1,000 do.
 */
export const WARM_UP = 1000;
const PORT = 8080;
/** The agent takes so long to let go of the last cgroup and address. */
const SETTLE_MS = 30_000;

export interface TurnoverFigures {
  readonly pods: number;
  /** From the first request to the answer of the last one. */
  readonly seconds: number;
  /** Connections that the proxy took, knowing their destination. */
  readonly redirected: number;
  /** What the others were answered. */
  readonly others: readonly string[];
  readonly before: Footprint;
  readonly after: Footprint;
  /** Of the maps while 110 pods were there, so that what is counted is known to move. */
  readonly meanwhile: Readonly<Record<string, number>>;
}

interface LivePod {
  readonly pod: BenchPod;
  readonly process: Running;
  /** What its connection was answered. */
  readonly reply: string;
}

interface Scene {
  readonly node: KubeNodeBench;
  /** Makes a pod and has it connect. */
  make(name: string): Promise<LivePod>;
  end(live: LivePod): Promise<void>;
}

/** `count` pods come, each goes when 110 younger ones are there, and at the end all go. */
async function turnOver(
  { make, end }: Scene,
  name: string,
  count: number,
  inTheMiddle?: () => Promise<void>,
): Promise<{ seconds: number; replies: string[] }> {
  const alive: LivePod[] = [];
  const replies: string[] = [];
  const queue = new PQueue({ concurrency: AT_ONCE });
  const all = async (work: readonly (() => Promise<void>)[]): Promise<void> => {
    try {
      await Promise.all(work.map((one) => queue.add(one)));
    } catch (error) {
      // What is begun would go on in a sandbox that is being removed.
      queue.clear();
      await queue.onIdle();
      throw error;
    }
  };
  const steps = numbers(count).map((i) => async () => {
    const young = await make(`${name}-${i}`);
    replies.push(young.reply);
    alive.push(young);
    const old = alive.length > ALIVE ? alive.shift() : undefined;
    if (old !== undefined) await end(old);
  });
  const started = performance.now();
  await all(steps.slice(0, Math.ceil(count / 2)));
  let paused = -performance.now();
  await inTheMiddle?.();
  paused += performance.now();
  await all(steps.slice(Math.ceil(count / 2)));
  await all(alive.map((live) => () => end(live)));
  return { seconds: (performance.now() - started - paused) / 1000, replies };
}

/** With the agent as it is shipped. */
export async function benchTurnover(quick: boolean): Promise<TurnoverFigures> {
  await using bench = await startBenchCluster();
  const { sandbox } = bench;
  const network = await makeNetwork(sandbox);
  const [host, server, proxy] = [
    await network.addHost('pods'),
    await network.addHost('server'),
    await network.addHost('proxy'),
  ];
  await bench.addNamespace(NAMESPACE);
  await bench.addNamespace(MESH, {});
  const node = await bench.addNode(NODE);
  const proxyPod = await node.runPod(MESH, 'ztunnel-0', 1, { labels: { app: 'ztunnel' }, ip: proxy.ip4 });
  const proxyPlace: Place = {
    netns: proxy.netns,
    ...(proxyPod.cgroups[1] && { cgroup: proxyPod.cgroups[1] }),
  };
  await listen(sandbox, proxyPlace, 'proxy', proxy.ip4, [15001], '--quiet');
  await listen(sandbox, { netns: server.netns }, 'serve', server.ip4, [PORT], '--quiet');

  await using agent = await node.start(false, DEBUGGER_ENV);
  using rest = await openForcedRest(agent);
  using maps = node.maps();
  const { pid } = agent.running;
  const scene: Scene = {
    node,
    async make(name) {
      const pod = await node.runPod(NAMESPACE, name, CONTAINERS);
      const [, cgroup] = pod.cgroups;
      if (cgroup === undefined) throw new Error(`the pod ${name} has no container`);
      // A runtime takes longer than this to start a container; what is connected before is the leak test's matter.
      await eventually(`the pod ${name} is in the mesh`, () =>
        pod.cgroups.every(({ id }) => maps.cgroups.get(id)?.isInMesh === 1),
      );
      const process = sandbox.spawn({
        cmd: SOCK,
        args: ['connect', '--hold', server.ip4, String(PORT)],
        cgroup,
        netns: host.netns,
      });
      const result = await process.json<Connected>();
      if (!result.ok)
        throw new Error(`the pod ${name} could not connect: ${result.step} failed with ${result.errno}`);
      return { pod, process, reply: result.reply };
    },
    async end({ pod, process }) {
      await node.endPod(pod);
      await process.exit;
    },
  };

  const settled = async (): Promise<Footprint> => {
    const wanted = proxyPod.cgroups.length;
    await eventually(
      'the maps hold the proxy and nothing else',
      async () => {
        await delay(100);
        return (
          maps.cgroups.keys().length === wanted &&
          maps.pods.keys().length === 1 &&
          maps.originals.keys().length === 0
        );
      },
      { ownMs: SETTLE_MS },
    );
    return footprint(pid, node.bpffsRoot, rest);
  };

  await turnOver(scene, 'warm-up', WARM_UP);
  const before = await settled();
  let meanwhile: Readonly<Record<string, number>> = {};
  const count = quick ? 300 : 1000;
  const { seconds, replies } = await turnOver(scene, 'pod', count, async () => {
    meanwhile = await mapEntries(node.bpffsRoot);
  });
  const after = await settled();
  for (const { absolute } of proxyPod.cgroups.toReversed()) removeCgroup(absolute);
  const others = replies.filter((reply) => !reply.startsWith(`proxy ${server.ip4}:${PORT} `));
  return { pods: count, seconds, redirected: count - others.length, others, before, after, meanwhile };
}
