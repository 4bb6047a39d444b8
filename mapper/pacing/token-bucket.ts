/** So many at once, and so many a second after that. */

export interface TokenBucketLimits {
  /** There are so many at the start, and never more. */
  readonly most: number;
  readonly perSecond: number;
}

/**
 * Takes a token; false where none is left.
 * @param now milliseconds of a clock that nobody sets; the only clock that is read
 */
export function makeTokenBucket({ most, perSecond }: TokenBucketLimits, now: () => number): () => boolean {
  let tokens = most;
  let filledAt = now();
  return () => {
    const at = now();
    tokens = Math.min(most, tokens + ((at - filledAt) / 1000) * perSecond);
    filledAt = at;
    if (tokens < 1) return false;
    tokens--;
    return true;
  };
}
