/**
 * How long is waited for what ought to come. Here alone: whoever waits says what
 * for, and not how long. A wait is far longer than what is waited for takes, and
 * its clock goes slower on a machine that is slow or has other work, so that one
 * that is over says that something is wrong and not that the machine is busy.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { SLOWDOWN } from './slowdown.ts';

/** Of a wait, in milliseconds, on a machine that is not slow and has nothing else to do. */
export const PATIENCE_MS = 30_000;

const TICK_MS = 250;

/** Processes that would run at this moment and the average of a minute, whichever are more; proc_loadavg(5). */
function wouldRun(): number {
  const [minute = '', , , now = ''] = readFileSync('/proc/loadavg', 'utf8').split(' ');
  return Math.max(parseFloat(minute), parseInt(now, 10)) || 0;
}

/** By how much everything takes longer right now: 1 on a machine that is as fast as usual and has a processor for each. */
export function stretch(load = wouldRun(), processors = availableParallelism()): number {
  return SLOWDOWN * Math.max(1, load / processors);
}

/** The same for what takes a number: {@link PATIENCE_MS}, as things are right now. */
export const patienceMs = (): number => Math.round(PATIENCE_MS * stretch());

export interface Wait {
  /** Whether the time is up; looks at the machine's load each time that it is asked. */
  isOver(): boolean;
  /** `34 s passed`, for the error. */
  passed(): string;
}

/**
 * Begins a wait.
 * @param baseMs default {@link PATIENCE_MS}; more where something has a clock of its own, a file of tests say
 */
export function beginWait(baseMs = PATIENCE_MS, slowness: () => number = stretch): Wait {
  const began = performance.now();
  let at = began;
  let left = baseMs;
  return {
    isOver() {
      const now = performance.now();
      left -= (now - at) / slowness();
      at = now;
      return left <= 0;
    },
    passed: () => `${Math.round((performance.now() - began) / 1000)} s passed`,
  };
}

/** Calls back when a wait is over, unless the returned function has been called before. */
export function whenOver(wait: Wait, callback: () => void): () => void {
  const timer = setInterval(() => {
    if (!wait.isOver()) return;
    clearInterval(timer);
    callback();
  }, TICK_MS);
  return () => clearInterval(timer);
}
