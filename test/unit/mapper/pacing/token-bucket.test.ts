import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeTokenBucket } from '../../../../mapper/pacing/token-bucket.ts';

/** How many of so many tries get one. */
const taken = (take: () => boolean, tries: number): number =>
  Array.from({ length: tries }, take).filter(Boolean).length;

test('as many as fit are there at once, and then so many a second', () => {
  let ms = 1000;
  const take = makeTokenBucket({ most: 25, perSecond: 5 }, () => ms);
  assert.equal(taken(take, 40), 25);
  ms += 199;
  assert.equal(take(), false);
  ms += 1;
  assert.equal(taken(take, 2), 1);
  ms += 1000;
  assert.equal(taken(take, 40), 5);
});

test('what nobody takes is lost once the bucket is full', () => {
  let ms = 0;
  const take = makeTokenBucket({ most: 3, perSecond: 5 }, () => ms);
  ms += 3_600_000;
  assert.equal(taken(take, 40), 3);
});
