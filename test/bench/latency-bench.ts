/**
 * How long until the kernel's maps know a new container of a known pod: from the
 * begin of its first program, and, where none ever begins, from its mkdir().
 */
import { mkdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { openPinnedMaps, type PinnedMaps } from '../../native/data-plane/maps.ts';
import { startAgent } from '../../deploy/stage/agent.ts';
import type { Running } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';
import { SOCK } from '../../deploy/stage/sock.ts';
import { makeAgentPods } from './agent-pods.ts';
import { quantile } from './statistics.ts';

const PODS = 50;
/** Between two looks at the map; what a sleep takes comes on top. */
const LOOK_MS = 0.05;
const TIMEOUT_MS = 3000;
/** How long a container's program stays: the agent must be able to look at it. */
const STAY_MS = 500;

export interface Latencies {
  /** Milliseconds. */
  readonly p50: number;
  readonly p99: number;
  readonly samples: number;
}

export interface LatencyFigures {
  /** From just before execve(), the next one as soon as the last was seen, and 50 ms after that. */
  readonly proc: Latencies;
  readonly procBusy: Latencies;
  readonly procIdle: Latencies;
  /** Entries that were there before execve(): another witness was quicker. They count as 0 ms. */
  readonly procEarly: number;
  /** From just before mkdir(), one every 10 ms, and one after 600 ms of quiet. */
  readonly tree: Latencies;
  readonly treeBusy: Latencies;
  readonly treeIdle: Latencies;
}

const ms = (ns: bigint): number => Number(ns) / 1e6;
const of = (values: readonly number[]): Latencies => ({
  p50: quantile(values, 0.5),
  p99: quantile(values, 0.99),
  samples: values.length,
});

/** Sleeps on this thread, for parts of a millisecond too. */
const pause = (milliseconds: number): unknown =>
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);

/** When each cgroup was seen in the map, process.hrtime(); they need not exist yet. */
interface Watched {
  readonly directory: string;
  id?: bigint | undefined;
  seen?: bigint;
}

function look(maps: PinnedMaps, watched: Iterable<Watched>): void {
  for (const one of watched) {
    if (one.seen !== undefined) continue;
    one.id ??= statSync(one.directory, { bigint: true, throwIfNoEntry: false })?.ino;
    if (one.id !== undefined && maps.cgroups.get(one.id) !== undefined) one.seen = process.hrtime.bigint();
  }
}

/** Looks until all were seen, or some were not in time. */
function lookUntilSeen(maps: PinnedMaps, watched: readonly Watched[], timeoutMs = TIMEOUT_MS): void {
  const until = performance.now() + timeoutMs;
  for (;;) {
    look(maps, watched);
    const missing = watched.find(({ seen }) => seen === undefined);
    if (missing === undefined) return;
    if (performance.now() > until)
      throw new Error(`${timeoutMs} ms passed, and the map does not have ${missing.directory}`);
    pause(LOOK_MS);
  }
}

/** A program begins in a new cgroup, `samples` times. Returns milliseconds from execve() to the entry, negative when it was there before. */
async function benchProc(
  maps: PinnedMaps,
  starter: Running,
  directories: readonly string[],
  pauseMs: number,
): Promise<number[]> {
  const latencies: number[] = [];
  for (const directory of directories) {
    const watched: Watched = { directory };
    starter.write(`${directory}\n`);
    lookUntilSeen(maps, [watched]);
    const { execNs } = JSON.parse(await starter.line(/"execNs"/)) as { execNs: string };
    latencies.push(ms((watched.seen ?? 0n) - BigInt(execNs)));
    await delay(pauseMs);
  }
  return latencies;
}

/** Cgroups are made and stay empty. While one is awaited, the next ones are made. Returns milliseconds from mkdir() to the entry. */
async function benchTree(
  maps: PinnedMaps,
  directories: readonly string[],
  pauseMs: number,
): Promise<number[]> {
  const made: { watched: Watched; at: bigint }[] = [];
  for (const directory of directories) {
    const at = process.hrtime.bigint();
    mkdirSync(directory);
    const watched: Watched = { directory };
    made.push({ watched, at });
    const until = performance.now() + pauseMs;
    do {
      look(
        maps,
        made.map((one) => one.watched),
      );
      pause(LOOK_MS);
    } while (performance.now() < until);
  }
  lookUntilSeen(
    maps,
    made.map(({ watched }) => watched),
    35_000,
  );
  return made.map(({ watched, at }) => ms((watched.seen ?? 0n) - at));
}

/** With the agent as it is shipped, and 50 pods; `samples` of each kind. */
export async function benchLatency(samples: number): Promise<LatencyFigures> {
  await using sandbox = await makeSandbox('bench-latency');
  const pods = makeAgentPods(sandbox, PODS);
  for (const uid of pods.uids) pods.startContainer(uid);
  await using agent = startAgent(sandbox, { manifest: pods.manifest.path });
  await agent.ready();
  using maps = openPinnedMaps(`${sandbox.bpffs}/cgroute`);
  if (maps === undefined) throw new Error('the agent is ready and has pinned no maps');
  await using starter = sandbox.spawn({ cmd: SOCK, args: ['arrive', String(STAY_MS)] });
  await starter.line(/waiting/);
  let next = 0;
  const directories = (count: number): string[] =>
    Array.from({ length: count }, () =>
      join(sandbox.cgroupRoot, pods.newContainer(pods.uids[next++ % PODS] ?? '')),
    );
  await benchProc(maps, starter, directories(1), 50);

  const half = Math.ceil(samples / 2);
  const procBusy = await benchProc(maps, starter, directories(half), 0);
  const procIdle = await benchProc(maps, starter, directories(samples - half), 50);
  await delay(1000);
  const fifth = Math.ceil(samples / 5);
  const treeIdle = await benchTree(maps, directories(fifth), 600);
  const treeBusy = await benchTree(maps, directories(samples - fifth), 10);
  const proc = [...procBusy, ...procIdle];
  const atLeast0 = (values: readonly number[]): number[] => values.map((value) => Math.max(0, value));
  return {
    proc: of(atLeast0(proc)),
    procBusy: of(atLeast0(procBusy)),
    procIdle: of(atLeast0(procIdle)),
    procEarly: proc.filter((value) => value < 0).length,
    tree: of([...treeBusy, ...treeIdle]),
    treeBusy: of(treeBusy),
    treeIdle: of(treeIdle),
  };
}
