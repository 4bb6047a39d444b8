/** Which addresses stand in the maps of bypassed pods. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BypassList, type BypassMaps } from '../../../../mapper/sidecars/bypass-list.ts';

/** A map as far as the list uses it; its entries are read as `key=value`, the key in hexadecimal. */
function fakeMap(before: Readonly<Record<string, number>> = {}, room = 100) {
  const entries = new Map(Object.entries(before));
  const hex = (key: Uint8Array): string => Buffer.from(key).toString('hex');
  return {
    all: () => [...entries].map(([key, value]) => `${key}=${value}`).sort(),
    entries: () => [...entries].map(([key, value]) => [Buffer.from(key, 'hex'), value] as const),
    set(key: Uint8Array, value: number) {
      if (!entries.has(hex(key)) && entries.size >= room) throw new Error('it is full');
      entries.set(hex(key), value);
    },
    delete: (key: Uint8Array) => entries.delete(hex(key)),
  };
}

function listOf(bypass4 = fakeMap(), bypass6 = fakeMap()) {
  return { bypass4, bypass6, list: new BypassList({ bypass4, bypass6 } as unknown as BypassMaps) };
}
const SIX = `fd00${'0'.repeat(26)}01`;

test('a bypassed pod has its addresses there with its directions, and no other has', () => {
  const { list, bypass4, bypass6 } = listOf();
  list.set('a', ['10.0.0.1', 'fd00::1'], 3);
  list.set('b', ['10.0.0.2'], 0);
  assert.deepEqual([bypass4.all(), bypass6.all()], [['0a000001=3'], [`${SIX}=3`]]);
  list.set('a', ['10.0.0.3'], 1);
  assert.deepEqual([bypass4.all(), bypass6.all()], [['0a000003=1'], []]);
  list.set('a', ['10.0.0.3'], 0);
  assert.deepEqual(bypass4.all(), []);
});

test('an address that another pod has by now stays when its first pod goes', () => {
  const { list, bypass4 } = listOf();
  list.set('a', ['10.0.0.1'], 3);
  list.set('b', ['10.0.0.1'], 2);
  list.forget('a');
  assert.deepEqual(bypass4.all(), ['0a000001=2']);
  list.forget('b');
  assert.deepEqual(bypass4.all(), []);
});

test('what an earlier agent left goes once all pods are known, and that of pods that are stays', () => {
  const { list, bypass4, bypass6 } = listOf(
    fakeMap({ '0a000001': 3, '0a000002': 3 }),
    fakeMap({ [SIX]: 3, [SIX.replace('01', '02')]: 1 }),
  );
  list.set('a', ['10.0.0.1', 'fd00::1'], 3);
  assert.equal(list.removeLeftovers(), 2);
  assert.deepEqual([bypass4.all(), bypass6.all()], [['0a000001=3'], [`${SIX}=3`]]);
});

test('a map that is full is said to be, and another try does it', () => {
  const { list, bypass4 } = listOf(fakeMap({}, 1));
  list.set('a', ['10.0.0.1'], 3);
  assert.throws(() => list.set('b', ['10.0.0.2'], 3), /full/);
  list.forget('a');
  list.set('b', ['10.0.0.2'], 3);
  assert.deepEqual(bypass4.all(), ['0a000002=3']);
});

test('what somebody else altered is put back', () => {
  const { list, bypass4 } = listOf();
  list.set('a', ['10.0.0.1'], 3);
  bypass4.set(Buffer.from('0a000001', 'hex'), 1);
  bypass4.set(Buffer.from('0a000009', 'hex'), 1);
  assert.equal(list.repair(), 2);
  assert.deepEqual(bypass4.all(), ['0a000001=3']);
});
