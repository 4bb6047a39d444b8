/**
 * Programs at tracepoints, by links that are pinned. A link of this kind takes no
 * other program, so a new one is put in the old one's place: both run for a moment.
 */
import { closeSync, renameSync, unlinkSync } from 'node:fs';
import type { Program } from './bpf-object.ts';
import { clearPin, type LinkPins } from './cgroup-link.ts';
import { checked, libbpf } from '../boundary/libbpf.ts';
import { isThere } from '../boundary/presence.ts';
import { linkPin, NO_CGROUP } from '../pins/link-pin.ts';
import { isLiveLink } from '../pins/pinned-object.ts';

/** Like that of a link at a cgroup. */
export const tracePin = (program: string): string => linkPin(program, NO_CGROUP);

/**
 * @param held descriptor of this program's link, which this process made before; pinned again where its pin is gone
 * @throws CgrouteError `EBPF`, `EPINFOREIGN`; the link that was there stays
 */
export function replaceTraceLink(pins: LinkPins, program: Program, held?: number): void {
  const pin = `${pins.directory}/${tracePin(program.name)}`;
  const isLive = clearPin(pins, pin, program.name, NO_CGROUP);
  // Nobody can detach it; and before Linux 6.10 one program is not attached twice.
  if (held !== undefined && !isLive) return void checked(libbpf().objPin(held, pin), 'bpf_obj_pin', pin);
  const next = `${pin}_next`;
  const link = checked(libbpf().rawTracepointOpen(null, program.fd), 'bpf_raw_tracepoint_open', program.name);
  try {
    if (isThere(next)) unlinkSync(next);
    checked(libbpf().objPin(link, next), 'bpf_obj_pin', next);
    renameSync(next, pin);
  } finally {
    closeSync(link);
  }
}

/** Nobody can take such a program away but by its pin, and not while the agent holds the link. */
export function hasTraceLink(directory: string, program: string): boolean {
  return isLiveLink(`${directory}/${tracePin(program)}`, program, NO_CGROUP);
}
