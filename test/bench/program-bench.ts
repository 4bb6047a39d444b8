/** What each program costs a call, by the kernel's own statistics, and how often a connection calls it. */
import { closeSync, openSync } from 'node:fs';
import { resolve } from 'node:path';
import { checked, closeObject, libbpf, loadObject, openObject } from '../../native/boundary/libbpf.ts';
import { connect } from '../../deploy/stage/sock.ts';
import { type BenchNode, connections, type Way } from './bench-node.ts';
import {
  attachedPrograms,
  difference,
  enableStatistics,
  runTime,
  type AttachedPrograms,
} from './program-statistics.ts';
import { median } from './statistics.ts';

/** Does nothing: test/harness/empty.bpf.c. */
const EMPTY = resolve(import.meta.dirname, '../../dist/test/empty.bpf.o');

/** One program along one way. */
export interface ProgramFigure {
  /** Average of a call; the kernel's measuring is in it. */
  readonly ns: number;
  /** Calls for a connection, both ends and its end included. */
  readonly calls: number;
}

/** By program, along one way. */
export type ProgramFigures = Readonly<Record<string, ProgramFigure>>;

/** Along each of these ways, in turn; the median of the rounds. */
export async function benchPrograms<Name extends keyof BenchNode['ways']>(
  node: BenchNode,
  names: readonly Name[],
  rounds: number,
  count: number,
): Promise<Record<Name, ProgramFigures>> {
  using _statistics = enableStatistics();
  await node.prepare(node.ways.redirected);
  using programs = attachedPrograms(node.bpffsRoot);
  const measured = new Map<Name, Map<string, ProgramFigure[]>>(names.map((name) => [name, new Map()]));
  for (let round = 0; round < rounds; round++) {
    for (const name of names) {
      const ran = measured.get(name) ?? new Map<string, ProgramFigure[]>();
      for (const [program, figure] of await once(node, node.ways[name], programs, count)) {
        ran.set(program, [...(ran.get(program) ?? []), figure]);
      }
    }
  }
  return Object.fromEntries(
    [...measured].map(([name, ran]) => [
      name,
      Object.fromEntries(
        [...ran].map(([program, figures]) => [
          program,
          {
            ns: median(figures.map(({ ns }) => ns)),
            calls: median(figures.map(({ calls }) => calls)),
          },
        ]),
      ),
    ]),
  ) as Record<Name, ProgramFigures>;
}

async function once(
  node: BenchNode,
  way: Way,
  programs: AttachedPrograms,
  count: number,
): Promise<[string, ProgramFigure][]> {
  if (!way.attached) throw new Error('no program of ours is attached along this way');
  await node.prepare(way);
  const before = programs.runTimes();
  await node.connect(way, count);
  const ran = difference(before, programs.runTimes());
  return [...ran].map(([name, run]) => [
    name,
    { ns: run.ns / run.count, calls: run.count / connections(count) },
  ]);
}

/** getpeername() by the client, which is shown its destination, and by the proxy, which is left alone; each from a process of its own. */
export async function benchPeerName(node: BenchNode, count: number): Promise<ProgramFigure> {
  using _statistics = enableStatistics();
  const { place, address } = node.ways.redirected;
  await node.prepare(node.ways.redirected);
  using programs = attachedPrograms(node.bpffsRoot);
  const before = programs.runTimes();
  for (let i = 0; i < count; i++) {
    const result = await connect(place, address, 8080);
    if (!result.ok || result.peer !== `${address}:8080`)
      throw new Error(`getpeername() is to show ${address}:8080: ${JSON.stringify(result)}`);
  }
  const ran = difference(before, programs.runTimes()).get('getpeername4');
  if (ran === undefined) throw new Error('the program getpeername4 did not run');
  return { ns: ran.ns / ran.count, calls: ran.count / count };
}

/** What the kernel reports for a program that does nothing: part of every other figure. Nanoseconds a call. */
export async function benchEmpty(node: BenchNode, rounds: number, count: number): Promise<number> {
  const lib = libbpf();
  const open = openObject(EMPTY);
  try {
    loadObject(open, EMPTY);
    const program = lib.nextProgram(open.object, null);
    if (program === null) throw new Error(`${EMPTY} has no program`);
    const fd = lib.programFd(program);
    const cgroup = node.sandbox.cgroup('empty');
    const directory = openSync(cgroup.absolute, 'r');
    const link = checked(
      lib.linkCreate(fd, directory, lib.programAttachType(program), null),
      'bpf_link_create',
      'the empty program',
    );
    try {
      using _statistics = enableStatistics();
      const way = { ...node.ways.direct, place: { ...node.ways.direct.place, cgroup } };
      const averages: number[] = [];
      await node.prepare(way);
      for (let round = 0; round < rounds; round++) {
        const before = runTime(fd);
        await node.connect(way, count);
        const after = runTime(fd);
        averages.push((after.ns - before.ns) / (after.count - before.count));
      }
      return median(averages);
    } finally {
      closeSync(link);
      closeSync(directory);
    }
  } finally {
    closeObject(open);
  }
}
