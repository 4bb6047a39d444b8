/**
 * Random choices that can be made again: whoever takes a generator prints its
 * seed, and `SEED=... npm test` makes the same choices.
 */
export interface Random {
  readonly seed: number;
  /** From 0 to below 1. */
  next(): number;
  pick<T>(values: readonly T[]): T;
  /** By weight. */
  weighted<T extends string>(weights: Readonly<Record<T, number>>): T;
  /** The same items in another order. */
  shuffled<T>(items: readonly T[]): T[];
}

/** Another one each time, unless `SEED` says which. */
export function anySeed(): number {
  return Number(process.env['SEED'] ?? Math.floor(Math.random() * 1e9));
}

/** Mulberry32, by Tommy Ettinger; in the public domain: https://gist.github.com/tommyettinger/46a874533244883189143505d203312c */
export function makeRandom(seed = anySeed()): Random {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
  return {
    seed,
    next,
    pick: <T>(values: readonly T[]): T => values[Math.floor(next() * values.length)] as T,
    weighted<T extends string>(weights: Readonly<Record<T, number>>): T {
      const entries = Object.entries<number>(weights) as [T, number][];
      let rest = next() * entries.reduce((sum, [, weight]) => sum + weight, 0);
      for (const [name, weight] of entries) if ((rest -= weight) < 0) return name;
      return (entries.at(-1) as [T, number])[0];
    },
    shuffled: <T>(items: readonly T[]): T[] =>
      items
        .map((item) => ({ item, at: next() }))
        .sort((a, b) => a.at - b.at)
        .map(({ item }) => item),
  };
}
