import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';
import { test } from 'node:test';
import { follow } from './kube-follow.ts';
import { pod } from './kube-stub.ts';

test('what many objects have left is collected once nothing has come for three seconds, and then no more', async () => {
  const collected: unknown[] = [];
  const before = globalThis.gc;
  globalThis.gc = ((options: unknown) => void collected.push(options)) as unknown as NonNullable<
    typeof before
  >;
  try {
    await using followed = await follow({
      prepare: (api) => Array.from({ length: 150 }, (_, i) => api.put('pods', pod(`p${i}`, `uid-${i}`))),
    });
    await followed.watching();
    // Still moving when three seconds are over.
    for (let i = 0; i < 3; i++) {
      await delay(1200);
      followed.api.put('pods', pod('a', 'uid-a', { v: String(i) }));
    }
    assert.deepEqual(collected, []);
    await followed.until('it is collected', () => collected.length > 0);
    assert.deepEqual(collected, [{ type: 'major', execution: 'sync', flavor: 'last-resort' }]);
    // A few leave little.
    followed.api.put('pods', pod('a', 'uid-a', { v: 'last' }));
    await delay(3500);
    assert.equal(collected.length, 1);
  } finally {
    if (before === undefined) Reflect.deleteProperty(globalThis, 'gc');
    else globalThis.gc = before;
  }
});
