/** The kernel's own run-time statistics of the programs of one data plane. */
import { closeSync, readdirSync } from 'node:fs';
import { PIN_VERSION } from '../../native/pins/pin-directory.ts';
import { checked, libbpf } from '../../native/boundary/libbpf.ts';

/** How often a program ran, and for how long in all, since it was loaded and statistics were on. */
export interface RunTime {
  readonly count: number;
  readonly ns: number;
}

/** Where a data plane pins its links; a link that is not pinned there is gone. */
export function linkDirectory(bpffsRoot: string): string {
  return `${bpffsRoot}/${PIN_VERSION}/links`;
}

/** Fields of `struct bpf_prog_info` and `struct bpf_link_info` in <linux/bpf.h>. */
const PROG_RUN_TIME_NS = 192;
const PROG_RUN_CNT = 200;
const LINK_PROG_ID = 8;

const BPF_STATS_RUN_TIME = 0;

function info(fd: number, what: string): Buffer {
  const buffer = Buffer.alloc(256);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(buffer.length);
  checked(libbpf().objGetInfo(fd, buffer, length), 'bpf_obj_get_info_by_fd', what);
  return buffer;
}

/** Statistics of a program by its descriptor. */
export function runTime(program: number): RunTime {
  const bytes = info(program, 'a program');
  return {
    count: Number(bytes.readBigUInt64LE(PROG_RUN_CNT)),
    ns: Number(bytes.readBigUInt64LE(PROG_RUN_TIME_NS)),
  };
}

/** Programs that are attached, by name: descriptors, which keep the programs alive. */
export interface AttachedPrograms extends Disposable {
  runTimes(): Map<string, RunTime>;
}

/** Looks them up by their pinned links, so that nobody else's are among them. */
export function attachedPrograms(bpffsRoot: string): AttachedPrograms {
  const programs = new Map<string, number>();
  for (const pin of readdirSync(linkDirectory(bpffsRoot))) {
    const name = pin.replace(/@.*/, '');
    const link = checked(libbpf().objGet(`${linkDirectory(bpffsRoot)}/${pin}`), 'bpf_obj_get', pin);
    const id = info(link, pin).readUInt32LE(LINK_PROG_ID);
    closeSync(link);
    if (!programs.has(name))
      programs.set(name, checked(libbpf().progFdById(id), 'bpf_prog_get_fd_by_id', name));
  }
  return {
    runTimes: () => new Map([...programs].map(([name, fd]) => [name, runTime(fd)])),
    [Symbol.dispose]() {
      for (const fd of programs.values()) closeSync(fd);
    },
  };
}

/** Has the kernel measure, for all programs of the machine, until it is disposed of. */
export function enableStatistics(): Disposable {
  const fd = checked(libbpf().enableStats(BPF_STATS_RUN_TIME), 'bpf_enable_stats', 'run times');
  return { [Symbol.dispose]: () => closeSync(fd) };
}

/** What was added between two readings; programs that did not run are left out. */
export function difference(
  before: ReadonlyMap<string, RunTime>,
  after: ReadonlyMap<string, RunTime>,
): Map<string, RunTime> {
  const added = new Map<string, RunTime>();
  for (const [name, { count, ns }] of after) {
    const { count: countBefore, ns: nsBefore } = before.get(name) ?? { count: 0, ns: 0 };
    if (count > countBefore) added.set(name, { count: count - countBefore, ns: ns - nsBefore });
  }
  return added;
}
