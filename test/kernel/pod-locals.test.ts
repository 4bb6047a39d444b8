/** What the agent writes of the addresses and interfaces of pods' networks, into maps of the kernel. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { PodLocals } from '../../mapper/maps/pod-locals.ts';
import { SHARED_SLOT } from '../../mapper/maps/pod-slots.ts';
import { CgrouteError } from '../../native/error.ts';
import { addressText } from '../../mapper/objects/address.ts';
import { inSandbox } from '../../deploy/stage/sandbox.ts';
import { openTestPlane } from './data-plane.ts';

/** A pod may have one in sixteen. */
const ROOM = 32;
const MOST = 2;
const { sandbox, plane } = await inSandbox('pod-locals', async (made) => ({
  sandbox: made,
  plane: openTestPlane(made, { maxEntries: { pod_local_map: ROOM, pod_device_map: 128 } }),
}));
after(async () => {
  plane[Symbol.dispose]();
  await sandbox[Symbol.asyncDispose]();
});
const { maps } = plane.plane;
const written = (): string[] =>
  [...maps.podLocals.entries()]
    .map(([{ slot, address }, value]) => `${slot} ${addressText(address.word)} ${value}`)
    .sort();
const devices = (slot: number) => {
  const { ip4, ip6 } = maps.podDevices.get(slot) ?? {};
  return [ip4, ip6];
};
const NONE = { ip4: 0, ip6: 0 };
const leads = (ip: string) => ({ ip, isElsewhere: false });
const elsewhere = (ip: string) => ({ ip, isElsewhere: true });

test('a pod has its addresses there, what is gone goes, and a cleared slot has nothing', () => {
  const locals = new PodLocals(maps);
  assert.deepEqual(locals.set(1, [leads('10.0.0.2'), elsewhere('fd99::2')], { ip4: 2, ip6: 3 }), {
    hasAny: true,
  });
  assert.deepEqual(written(), ['1 10.0.0.2 2', '1 fd99::2 1']);
  assert.deepEqual(devices(1), [2, 3]);
  assert.deepEqual(locals.set(1, [elsewhere('10.0.0.2')], { ip4: 2, ip6: 0 }), { hasAny: true });
  assert.deepEqual(written(), ['1 10.0.0.2 1']);
  assert.deepEqual(devices(1), [2, 0]);
  locals.clear(1);
  assert.deepEqual([written(), devices(1)], [[], [0, 0]]);
});

test('a pod has its part of the room, and no more; one without room has none of its addresses, with what was thrown', () => {
  const locals = new PodLocals(maps);
  const three = ['10.0.0.1', '10.0.0.2', '10.0.0.3'];
  for (let slot = 1; slot <= ROOM / MOST; slot++)
    assert.deepEqual(locals.set(slot, three.map(leads), NONE), { hasAny: true });
  assert.equal(written().length, ROOM);
  const { hasAny, unfit } = locals.set(99, [leads('10.0.0.1')], NONE);
  assert.equal(hasAny, false);
  assert.ok(unfit instanceof CgrouteError && unfit.errno === 'E2BIG', String(unfit));
  assert.equal(written().length, ROOM);
  // In a full map one may still have others in the place of its own.
  assert.deepEqual(locals.set(1, [leads('10.0.9.1'), leads('10.0.9.2')], NONE), { hasAny: true });
  assert.deepEqual(
    written().filter((line) => line.startsWith('1 ')),
    ['1 10.0.9.1 2', '1 10.0.9.2 2'],
  );
  for (let slot = 1; slot <= ROOM / MOST; slot++) locals.clear(slot);
  assert.deepEqual(locals.set(99, [leads('10.0.0.1')], NONE), { hasAny: true });
  locals.clear(99);
});

test('the slot that pods without one share has nothing of its own', () => {
  const locals = new PodLocals(maps);
  assert.deepEqual(locals.set(SHARED_SLOT, [leads('10.0.0.2')], { ip4: 2, ip6: 2 }), { hasAny: false });
  assert.deepEqual([written(), devices(SHARED_SLOT)], [[], [0, 0]]);
});

test('the next agent knows what the one before has left, and undoes what others did', () => {
  new PodLocals(maps).set(4, [leads('10.0.0.2')], { ip4: 2, ip6: 0 });
  new PodLocals(maps).set(5, [], { ip4: 7, ip6: 7 });
  const next = new PodLocals(maps);
  assert.deepEqual([...next.slots()].sort(), [4, 5]);
  for (const key of maps.podLocals.keys()) maps.podLocals.delete(key);
  maps.podDevices.set(5, { ip4: 1, ip6: 1 });
  assert.equal(next.repair(), 2);
  assert.deepEqual([written(), devices(5)], [['4 10.0.0.2 2'], [7, 7]]);
  for (const slot of next.slots()) next.clear(slot);
  assert.deepEqual([written(), devices(5)], [[], [0, 0]]);
});
