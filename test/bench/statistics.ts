/** What is said about many measurements of one thing. */
import { makeRandom } from '../harness/random.ts';

/** The value below which a share `q` (0 to 1) of the values lies; NaN of none. */
export function quantile(values: readonly number[], q: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? NaN;
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** A ratio of two things measured in the same rounds. */
export interface Ratio {
  /** The median of the rounds' own ratios: what drifts from round to round falls out. */
  readonly median: number;
  /** The middle half of the rounds lies between these two. */
  readonly low: number;
  readonly high: number;
}

/** Values of the same index come from the same round. */
export function ratio(values: readonly number[], base: readonly number[]): Ratio {
  const ratios = values.map((value, round) => value / (base[round] ?? NaN));
  return { median: median(ratios), low: quantile(ratios, 0.25), high: quantile(ratios, 0.75) };
}

/** Puts the ways of each round in another order, so that none always comes after the same other; the bench prints its seed. */
export const order = makeRandom();
