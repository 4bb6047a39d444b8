/** What the agent's memory comes to while pods come and go without end. */
import { setTimeout as delay } from 'node:timers/promises';
import PQueue from 'p-queue';
import { eventually } from '../../deploy/stage/process.ts';
import { type BenchPod, each, type KubeBenchCluster, numbers } from './kube-pods.ts';
import { megabytes } from './memory-bench.ts';
import { median } from './statistics.ts';

/** As many as a kubelet runs by default. */
const PODS = 110;
const CONTAINERS = 2;
const NAMESPACE = 'churned';
/** Pods that are being made or deleted at one time. */
const AT_ONCE = 8;
const SAMPLES = 40;
/** The agent gives memory back when it has heard of nothing for three seconds. */
const REST_MS = 5000;

export interface ChurnFigures {
  readonly pods: number;
  readonly perSecond: number;
  /** VmRSS in 10^6 bytes: before the first has gone, then in the middle and at the end, each after a rest. */
  readonly readyMb: number;
  readonly halfMb: number;
  readonly rssMb: number;
  readonly peakMb: number;
  /** RssAnon at the end less that in the middle: without the pages of programs, which come and go. */
  readonly growthMb: number;
  /** Medians while pods come and go, in the third quarter and in the last one. */
  readonly busyMb: readonly [third: number, last: number];
}

/** `count` pods come, and each goes when 110 younger ones are there. */
export async function benchChurn(bench: KubeBenchCluster, count: number): Promise<ChurnFigures> {
  const node = await bench.addNode('node-churned');
  await bench.addNamespace(NAMESPACE);
  const pods: BenchPod[] = await each(numbers(PODS), (i) => node.runPod(NAMESPACE, `first-${i}`, CONTAINERS));
  await using agent = await node.start();
  using maps = node.maps();
  const { pid } = agent.running;
  const isMapped = (): boolean => {
    const ids = new Set(maps.cgroups.keys());
    return (
      ids.size === PODS * (CONTAINERS + 1) &&
      pods.every(({ cgroups }) => cgroups.every(({ id }) => ids.has(id)))
    );
  };
  /** Nothing of pods that are gone is left, and those that run are there. */
  const settled = async (): Promise<{ readonly all: number; readonly anonymous: number }> => {
    await eventually('the maps hold the pods that run, and no others', isMapped, { ownMs: 30_000 });
    await delay(REST_MS);
    return { all: megabytes(pid, 'VmRSS'), anonymous: megabytes(pid, 'RssAnon') };
  };

  const ready = await settled();
  const samples: { readonly pods: number; readonly mb: number }[] = [];
  let done = 0;
  const churn = async (until: number): Promise<void> => {
    const queue = new PQueue({ concurrency: AT_ONCE });
    const started = Array.from({ length: until - done }, (_, i) => done + i);
    await Promise.all(
      started.map((i) =>
        queue.add(async () => {
          const young = await node.runPod(NAMESPACE, `pod-${i}`, CONTAINERS);
          const old = pods.shift();
          pods.push(young);
          if (old !== undefined) await node.endPod(old);
          if (++done % Math.ceil(count / SAMPLES) === 0)
            samples.push({ pods: done, mb: megabytes(pid, 'VmRSS') });
        }),
      ),
    );
  };
  const half = Math.floor(count / 2);
  let busyMs = -performance.now();
  await churn(half);
  busyMs += performance.now();
  const middle = await settled();
  busyMs -= performance.now();
  await churn(count);
  busyMs += performance.now();
  const end = await settled();
  const busy = (from: number, to: number): number =>
    median(samples.filter(({ pods: at }) => at > from * count && at <= to * count).map(({ mb }) => mb));
  return {
    pods: count,
    perSecond: count / (busyMs / 1000),
    readyMb: ready.all,
    halfMb: middle.all,
    rssMb: end.all,
    peakMb: megabytes(pid, 'VmHWM'),
    growthMb: end.anonymous - middle.anonymous,
    busyMb: [busy(0.5, 0.75), busy(0.75, 1)],
  };
}
