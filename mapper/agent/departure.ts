/**
 * How an agent goes: redirection goes on without it, or all that there is of
 * cgroute on this host goes with it.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import type { PodMarks } from '../reports/pod-marks.ts';
import type { PartWalk } from './part-walk.ts';

/** So long an API server may take that does not answer. */
const TAKE_OFF_MS = 3000;

export interface Departing {
  readonly walk: Pick<PartWalk, 'leave' | 'withdraw' | 'clear'>;
  readonly dataPlane: Pick<DataPlane, 'stopRedirecting' | 'detach'>;
  readonly logger: Logger;
}

/** Links and maps stay. @throws what a part has thrown first, when all had their turn */
export function leave({ walk }: Departing): void {
  throwFirst(walk.leave());
}

/**
 * What redirects goes first, and what rules in pods name after them.
 * @throws CgrouteError `EBPF`; what a part has thrown first, when all is done
 */
export async function withdraw({ walk, dataPlane, logger }: Departing): Promise<void> {
  const thrown = await walk.withdraw();
  dataPlane.stopRedirecting();
  const left = await walk.clear();
  for (const sentence of left) logger.error(`${sentence}; run \`cgroute cleanup\``);
  dataPlane.detach(left.length > 0);
  throwFirst(thrown);
}

function throwFirst(thrown: readonly unknown[]): void {
  if (thrown.length > 0) throw thrown[0];
}

/** Takes the annotations off, because redirection is about to end for all; gives up after a few seconds. */
export async function takeMarksOff(marks: Pick<PodMarks, 'takeOff'>, ms = TAKE_OFF_MS): Promise<void> {
  await Promise.race([marks.takeOff(), delay(ms, undefined, { ref: false })]);
}
