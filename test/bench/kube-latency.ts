/**
 * How long until a label on a namespace is in the kernel's maps for all its pods,
 * seen from outside: from the first byte of the event on its way to the agent, to
 * the last entry that is as it should be.
 */
import { setImmediate, setTimeout as delay } from 'node:timers/promises';
import { addressBytes } from '../../mapper/objects/address.ts';
import type { PinnedMaps } from '../../native/data-plane/maps.ts';
import { eventually, run } from '../../deploy/stage/process.ts';
import {
  type BenchPod,
  each,
  type KubeBenchCluster,
  type KubeNodeBench,
  numbers,
  PRIORITY,
} from './kube-pods.ts';
import type { Relay, Relayed } from './kube-relay.ts';
import { quantile } from './statistics.ts';
import { MODE } from '../harness/label-names.ts';

const PODS = 100;
const CONTAINERS = 2;
const NAMESPACE = 'labelled';
const TIMEOUT_MS = 10_000;
/** Between two looks at the maps, so that the processor is the agent's and the API server's. */
const LOOK_MS = 0.2;
/** Nothing has come from the API server for so long: annotations are written, and their events are through. */
const QUIET_MS = 300;

export interface LabelLatencies {
  /** Milliseconds, of all flips: until the last pod is as it should be. */
  readonly p50: number;
  readonly p99: number;
  readonly flips: number;
  /** Medians of one direction: into the mesh, and out of it, where the annotation goes first. */
  readonly inP50: number;
  readonly outP50: number;
  readonly worst: number;
}

/** Sleeps on this thread: a timer would be late by up to a millisecond. */
const pause = (milliseconds: number): unknown =>
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);

/** Whether nothing is left to write for this pod: each of its cgroups, and its address, which comes last. */
function isMapped(maps: PinnedMaps, pod: BenchPod, isInMesh: boolean): boolean {
  const word = addressBytes(pod.ip);
  if (word === undefined) throw new Error(`${pod.ip} is no address`);
  return (
    pod.cgroups.every(({ id }) => maps.cgroups.get(id)?.isInMesh === Number(isInMesh)) &&
    (maps.podAddresses.get({ word }) !== undefined) === isInMesh
  );
}

/** Until it is disposed of, this process is ahead, too: it must see at once what changes. Not longer, as what it starts would inherit that. */
async function goAhead(): Promise<AsyncDisposable> {
  const pid = String(process.pid);
  await run({ cmd: 'chrt', args: ['-f', '-p', PRIORITY, pid] });
  return {
    [Symbol.asyncDispose]: async () => void (await run({ cmd: 'chrt', args: ['-o', '-p', '0', pid] })),
  };
}

async function untilQuiet(relay: Relay): Promise<void> {
  for (let bytes = -1; bytes !== relay.bytes; ) {
    bytes = relay.bytes;
    await delay(QUIET_MS);
  }
}

async function label({ cluster }: KubeBenchCluster, key: string, value: string | null): Promise<void> {
  await cluster.api.patch(`/api/v1/namespaces/${NAMESPACE}`, 'merge-patch+json', {
    metadata: { labels: { [key]: value } },
  });
}

/** The connection of the watch of namespaces, which nothing else goes over: the one on which a label is heard of that decides nothing. */
async function namespaceWatch(bench: KubeBenchCluster, { relay }: KubeNodeBench): Promise<Relayed> {
  for (let tries = 0; tries < 20; tries++) {
    await untilQuiet(relay);
    const open = [...relay.connections];
    for (const connection of open) connection.heardAt = undefined;
    await label(bench, 'tried', String(tries));
    await delay(QUIET_MS);
    const [one, ...others] = open.filter(({ heardAt }) => heardAt !== undefined);
    // A bookmark of the pods may come in between.
    if (one !== undefined && others.length === 0) return one;
  }
  throw new Error('it could not be told which connection the namespaces are watched on');
}

/** Changes the label, and gives the milliseconds until all pods are so. */
async function flip(
  bench: KubeBenchCluster,
  { relay }: KubeNodeBench,
  watch: Relayed,
  maps: PinnedMaps,
  pods: readonly BenchPod[],
  isInMesh: boolean,
): Promise<number> {
  await untilQuiet(relay);
  if (!relay.connections.has(watch))
    throw new Error('the watch of namespaces has ended in the middle of the measuring');
  watch.heardAt = undefined;
  let failure: unknown;
  label(bench, MODE, isInMesh ? 'ambient' : null).catch((error: unknown) => (failure = error));
  const until = performance.now() + TIMEOUT_MS;
  for (let mapped = 0; mapped < pods.length; ) {
    for (let pod = pods[mapped]; pod !== undefined && isMapped(maps, pod, isInMesh); pod = pods[mapped])
      mapped++;
    if (failure !== undefined) throw failure;
    if (performance.now() > until)
      throw new Error(
        `${TIMEOUT_MS} ms passed, and ${pods.length - mapped} of ${pods.length} pods are not as the label says`,
      );
    if (mapped === pods.length) break;
    pause(LOOK_MS);
    await setImmediate();
  }
  const now = performance.now();
  if (watch.heardAt === undefined)
    throw new Error('the maps changed before the API server had told of the label');
  return now - watch.heardAt;
}

/**
 * @param flips of the label, one in and one out by turns
 * @param isAhead whether the agent gets real-time priority; the API server has none
 */
export async function benchLabels(
  bench: KubeBenchCluster,
  flips: number,
  isAhead: boolean,
): Promise<LabelLatencies> {
  const node = await bench.addNode('node-labels');
  await bench.addNamespace(NAMESPACE);
  const pods = await each(numbers(PODS), (i) => node.runPod(NAMESPACE, `web-${i}`, CONTAINERS));
  await using _agent = await node.start(isAhead);
  using maps = node.maps();
  await eventually('all pods are mapped', () => pods.every((pod) => isMapped(maps, pod, true)));
  const watch = await namespaceWatch(bench, node);
  await using _ahead = isAhead ? await goAhead() : undefined;
  const into: number[] = [];
  const out: number[] = [];
  // The first of each direction runs code that is not compiled yet, as in an agent that has just been started: it counts.
  for (let i = 0; i < flips; i++) {
    const isInMesh = i % 2 === 1;
    (isInMesh ? into : out).push(await flip(bench, node, watch, maps, pods, isInMesh));
  }
  const all = [...into, ...out];
  return {
    p50: quantile(all, 0.5),
    p99: quantile(all, 0.99),
    worst: Math.max(...all),
    flips,
    inP50: quantile(into, 0.5),
    outP50: quantile(out, 0.5),
  };
}
