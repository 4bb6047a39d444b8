import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';
import { test } from 'node:test';
import { follow } from './kube-follow.ts';
import { pod } from './kube-stub.ts';

/** So long nothing must have come. */
const STILL_MS = 3000;

test('what many objects have left is collected once nothing has come for three seconds, and then no more', async () => {
  const collected: { readonly options: unknown; readonly atMs: number }[] = [];
  const before = globalThis.gc;
  globalThis.gc = ((options: unknown) =>
    void collected.push({ options, atMs: performance.now() })) as unknown as NonNullable<typeof before>;
  try {
    await using followed = await follow({
      prepare: (api) => Array.from({ length: 150 }, (_, i) => api.put('pods', pod(`p${i}`, `uid-${i}`))),
    });
    await followed.watching();
    // Still moving when three seconds are over; a machine that stands still meanwhile may have it collected.
    let toldAt = 0;
    for (const began = performance.now(); performance.now() - began < 3600 && collected.length === 0; ) {
      const told = followed.told.length;
      followed.api.put('pods', pod('a', 'uid-a', { v: String(told) }));
      await followed.until('it is told', () => followed.told.length > told);
      toldAt = performance.now();
      await delay(200);
    }
    await followed.until('it is collected', () => collected.length > 0);
    const [{ options, atMs } = assert.fail()] = collected;
    assert.deepEqual(options, { type: 'major', execution: 'sync', flavor: 'last-resort' });
    assert.ok(atMs - toldAt > STILL_MS - 500, `collected ${Math.round(atMs - toldAt)} ms after a change`);
    // A few leave little.
    followed.api.put('pods', pod('a', 'uid-a', { v: 'last' }));
    await delay(STILL_MS + 500);
    assert.equal(collected.length, 1);
  } finally {
    if (before === undefined) Reflect.deleteProperty(globalThis, 'gc');
    else globalThis.gc = before;
  }
});
