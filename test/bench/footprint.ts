/** What an agent holds on to: entries in its pinned maps, pinned links, open files, memory. */
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { PIN_VERSION } from '../../native/pins/pin-directory.ts';
import { must } from '../../deploy/stage/process.ts';
import type { ForcedRest } from './forced-rest.ts';
import { linkDirectory } from './program-statistics.ts';

export interface Footprint {
  /** Of each pinned map that can grow, by its name. */
  readonly entries: Readonly<Record<string, number>>;
  /** Programs at cgroups, by their pins. */
  readonly links: number;
  readonly files: number;
  /** Child processes, dead ones among them. */
  readonly children: number;
  /** PSS and resident anonymous memory, 10^6 bytes; the first has its share of what it shares with others. */
  readonly pssMb: number;
  readonly anonymousMb: number;
}

/** Maps whose size never changes, or that make room by themselves; what is in the sockets' storage goes with them. */
const FIXED = new Set(['array', 'percpu_array', 'ringbuf', 'sk_storage', 'lru_hash']);
/** The agent gives memory back when it has heard of nothing for three seconds. */
const REST_MS = 6000;
/** Garbage is collected so often; the least of the memory after each counts, as a sweep may come in between. */
const COLLECTIONS = 3;
/** Until the kernel has the pages that were given back. */
const AFTER_MS = 400;

/** A line of /proc/PID/smaps_rollup, proc_pid_smaps(5), in 10^6 bytes. */
function rollup(text: string, field: 'Pss' | 'Anonymous'): number {
  const [, kib] = new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(text) ?? [];
  if (kib === undefined) throw new Error(`smaps_rollup has no ${field}`);
  return (Number(kib) * 1024) / 1e6;
}

export function memoryOf(pid: number): Pick<Footprint, 'pssMb' | 'anonymousMb'> {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
  return { pssMb: rollup(text, 'Pss'), anonymousMb: rollup(text, 'Anonymous') };
}

export const openFiles = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length;

const childrenOf = (pid: number): number =>
  readdirSync(`/proc/${pid}/task`).flatMap((task) =>
    readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8').split(' ').filter(Boolean),
  ).length;

/** Entries of each pinned map that can grow, as bpftool counts them. */
export async function mapEntries(bpffsRoot: string): Promise<Record<string, number>> {
  const directory = `${bpffsRoot}/${PIN_VERSION}/maps`;
  const entries: Record<string, number> = {};
  for (const name of readdirSync(directory).toSorted()) {
    const pinned = ['pinned', `${directory}/${name}`];
    const { type } = JSON.parse(await must({ cmd: 'bpftool', args: ['-j', 'map', 'show', ...pinned] })) as {
      type: string;
    };
    if (FIXED.has(type)) continue;
    entries[name] = (
      JSON.parse(await must({ cmd: 'bpftool', args: ['-j', 'map', 'dump', ...pinned] })) as unknown[]
    ).length;
  }
  return entries;
}

/** After a rest, when nothing is happening any more and the garbage is collected. */
export async function footprint(pid: number, bpffsRoot: string, rest: ForcedRest): Promise<Footprint> {
  await delay(REST_MS);
  const memory: Pick<Footprint, 'pssMb' | 'anonymousMb'>[] = [];
  for (let n = 0; n < COLLECTIONS; n++) {
    await rest.collect();
    await delay(AFTER_MS);
    memory.push(memoryOf(pid));
  }
  const least = (field: 'pssMb' | 'anonymousMb'): number => Math.min(...memory.map((each) => each[field]));
  return {
    pssMb: least('pssMb'),
    anonymousMb: least('anonymousMb'),
    files: openFiles(pid),
    children: childrenOf(pid),
    links: readdirSync(linkDirectory(bpffsRoot)).length,
    entries: await mapEntries(bpffsRoot),
  };
}

export interface Growth {
  /** The maps that have more entries than before, with how many more. */
  readonly entries: Readonly<Record<string, number>>;
  /** All of these together. */
  readonly entriesMore: number;
  readonly links: number;
  readonly files: number;
  readonly children: number;
  readonly pssMb: number;
  readonly anonymousMb: number;
}

/** What has grown from one to the other; maps that have shrunk do not count against those that grew. */
export function growth(before: Footprint, after: Footprint): Growth {
  const more = Object.entries(after.entries)
    .map(([name, count]) => [name, count - (before.entries[name] ?? 0)] as const)
    .filter(([, count]) => count > 0);
  return {
    entries: Object.fromEntries(more),
    entriesMore: more.reduce((sum, [, count]) => sum + count, 0),
    links: after.links - before.links,
    files: after.files - before.files,
    children: after.children - before.children,
    pssMb: after.pssMb - before.pssMb,
    anonymousMb: after.anonymousMb - before.anonymousMb,
  };
}
