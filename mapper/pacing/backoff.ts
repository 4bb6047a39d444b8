/** How long to wait before another try: longer each time, and never for as long as everybody else. */

export interface Backoff {
  /** Milliseconds to wait now. @param atLeastMs what the server asked for */
  next(atLeastMs?: number): number;
  /** It works: the next wait is a short one again. */
  reset(): void;
  /** Waits since the last reset. */
  readonly failures: number;
}

/**
 * Each wait is somewhere in the upper half of a step; a step is twice the one
 * before. No clock is read, so none can jump.
 */
export function makeBackoff(firstMs: number, mostMs: number, random: () => number = Math.random): Backoff {
  let failures = 0;
  return {
    next(atLeastMs = 0) {
      const step = Math.min(mostMs, firstMs * 2 ** Math.min(failures, 30));
      failures++;
      const wait = step * (0.5 + random() / 2);
      // What the server asks for counts up to the cap: nothing may stop for good.
      return wait < atLeastMs ? Math.min(mostMs, atLeastMs * (1 + random() / 4)) : wait;
    },
    reset: () => {
      failures = 0;
    },
    get failures() {
      return failures;
    },
  };
}
