/**
 * Hints from the kernel itself: each cgroup that is made or removed, some
 * microseconds after it. The fastest witness, and the only one that needs no
 * second look to know what happened; where it is missing, the others do.
 */
import type { Logger } from 'pino';
import { messageOf } from '../native/error.ts';
import type { SourceState } from './source-state.ts';

/** A cgroup below the watched root, as the kernel names it. */
export interface CgroupChange {
  readonly id: bigint;
  readonly parent: bigint;
  /** Cut off when it is very long. */
  readonly name: string;
}

export interface KernelWatchOptions {
  readonly logger: Logger;
  /** Starts the events; undefined where this kernel has none. @throws what went wrong */
  readonly open:
    | ((onChange: (change: CgroupChange) => void, onError: (error: unknown) => void) => Disposable)
    | undefined;
  readonly onChange: (change: CgroupChange) => void;
}

export interface KernelWatch extends Disposable {
  state(): SourceState;
}

export function watchKernel({ logger, open, onChange }: KernelWatchOptions): KernelWatch {
  let state: SourceState['state'] = 'off';
  let failure = 'this kernel refused the programs at its tracepoints; see the log';
  let seen = 0;
  let events: Disposable | undefined;
  const onError = (err: unknown): void =>
    logger.error({ err }, 'the handler of cgroup events failed; the others go on');
  if (open !== undefined) {
    try {
      events = open((change) => {
        seen++;
        onChange(change);
      }, onError);
      state = 'ok';
    } catch (err) {
      state = 'failed';
      failure = `${messageOf(err)}; until then new cgroups are found by the cgroup watch, by process events and by the sweep`;
      logger.warn({ err }, failure);
    }
  }
  return {
    state: () => ({
      name: 'kernel',
      state,
      detail: state === 'ok' ? `tracepoints of cgroups; ${seen} made or removed below the root` : failure,
    }),
    [Symbol.dispose]() {
      events?.[Symbol.dispose]();
      events = undefined;
      state = 'off';
      failure = 'closed';
    },
  };
}
