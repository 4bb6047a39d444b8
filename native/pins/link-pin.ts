/** What a link's pin is called: `PROGRAM@CGROUP`, as `pod_connect4@4711`. */
import { basename } from 'node:path';

/** In the place of a cgroup's id, of a program at a tracepoint: no cgroup has this one. */
export const NO_CGROUP = 0n;

export interface LinkPin {
  readonly program: string;
  readonly cgroupId: bigint;
  /** `_v1` of what a former version has left, `_next` of what is not in its place yet; else empty. */
  readonly suffix: string;
}

export const linkPin = (program: string, cgroupId: bigint): string => `${program}@${cgroupId}`;

/** Of a path, or of the name alone; undefined for the name of something else. */
export function parseLinkPin(path: string): LinkPin | undefined {
  const [, program, id, suffix = ''] = /^(\w+)@(\d+)(_\w+)?$/.exec(basename(path)) ?? [];
  return program === undefined || id === undefined ? undefined : { program, cgroupId: BigInt(id), suffix };
}
