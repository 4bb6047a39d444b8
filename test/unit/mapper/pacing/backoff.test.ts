import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { makeBackoff } from '../../../../mapper/pacing/backoff.ts';

describe('backoff', () => {
  test('doubles up to its cap, in the upper half of each step, and begins anew when reset', () => {
    for (const [luck, factor] of [
      [0, 0.5],
      [1, 1],
    ] as const) {
      const backoff = makeBackoff(500, 30_000, () => luck);
      const waits = Array.from({ length: 9 }, () => backoff.next());
      assert.deepEqual(
        waits,
        [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000].map((ms) => ms * factor),
      );
      backoff.reset();
      assert.equal(backoff.next(), 500 * factor);
    }
  });

  test('waits as long as the server asks, within the cap, however many tries there were', () => {
    const backoff = makeBackoff(500, 30_000, () => 0);
    assert.equal(backoff.next(5000), 5000);
    assert.equal(backoff.next(3_600_000), 30_000);
    for (let i = 0; i < 5000; i++) backoff.next();
    assert.equal(backoff.next(), 15_000);
  });
});
