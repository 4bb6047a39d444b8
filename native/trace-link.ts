/** Programs on the kernel's tracepoints by pinned links. These cannot have their program replaced in place. */
import { closeSync, existsSync, renameSync, unlinkSync } from 'node:fs';
import type { Program } from './bpf-object.ts';
import { checked, libbpf } from './libbpf.ts';

const pinOf = (directory: string, program: string): string => `${directory}/${program}`;

/**
 * Makes `program` run, then lets go of the one that ran under the same pin: for
 * a moment both do, so it must bear to see an event twice.
 * @throws CgrouteError `EBPF`
 */
export function replaceTraceLink(directory: string, program: Program): void {
  const pin = pinOf(directory, program.name);
  const fresh = `${pin}-new`;
  if (existsSync(fresh)) unlinkSync(fresh);
  const link = checked(libbpf().rawTracepointOpen(null, program.fd), 'bpf_raw_tracepoint_open', program.name);
  try {
    checked(libbpf().objPin(link, fresh), 'bpf_obj_pin', fresh);
    renameSync(fresh, pin);
  } finally {
    closeSync(link);
  }
}

/** Lets go of a program that an earlier agent attached. */
export function dropTraceLink(directory: string, program: string): void {
  const pin = pinOf(directory, program);
  if (existsSync(pin)) unlinkSync(pin);
}

export function hasTraceLink(directory: string, program: string): boolean {
  return existsSync(pinOf(directory, program));
}
