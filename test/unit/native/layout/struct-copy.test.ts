/** Structs of one version in another's layout, by the names of their fields. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import type { Leaf, Shape } from '../../../../native/layout/btf-shape.ts';
import { foreignCodec } from '../../../../native/layout/foreign-codec.ts';
import { cgroupInfo, connection, layouts } from '../../../../native/layout/layouts.ts';
import { PIN_VERSION } from '../../../../native/pins/pin-directory.ts';
import { structCopy } from '../../../../native/layout/struct-copy.ts';

/** `['id', 8]`, `['text', 1, 4, 'text']`: one after another. */
function shape(
  ...fields: readonly (readonly [path: string, size: number, count?: number, kind?: 'text'])[]
): Shape {
  let offset = 0;
  const leaves = fields.map(([path, size, count = 1, kind]): Leaf => {
    const leaf = { path, offset, size, count, isText: kind === 'text' };
    offset += size * count;
    return leaf;
  });
  return { size: offset, leaves };
}

function copied(from: Shape, to: Shape, bytes: readonly number[]): number[] | undefined {
  const target = Buffer.alloc(to.size, 0xee);
  const copy = structCopy(from, to);
  copy?.(Buffer.from(bytes), target);
  return copy === undefined ? undefined : [...target];
}

describe('a struct in another layout', () => {
  for (const [what, from, to, bytes, expected] of [
    [
      'keeps fields that have moved',
      shape(['a', 2], ['b', 1]),
      shape(['b', 1], ['a', 2]),
      [1, 2, 3],
      [3, 1, 2],
    ],
    ['has zero in a field that is new', shape(['a', 2]), shape(['new', 2], ['a', 2]), [1, 2], [0, 0, 1, 2]],
    ['is without a field that is gone', shape(['a', 2], ['gone', 2]), shape(['a', 2]), [1, 2, 3, 4], [1, 2]],
    [
      'has wider numbers, and narrower ones',
      shape(['a', 2], ['b', 4]),
      shape(['a', 4], ['b', 2]),
      [1, 2, 3, 4, 0, 0],
      [1, 2, 0, 0, 3, 4],
    ],
    [
      'has what both have room for of an array',
      shape(['a', 1, 3]),
      shape(['a', 1, 2], ['b', 1]),
      [1, 2, 3],
      [1, 2, 0],
    ],
    ['has arrays of wider numbers', shape(['a', 1, 2]), shape(['a', 2, 2]), [1, 2], [1, 0, 2, 0]],
    [
      'ends a text that is cut with a zero',
      shape(['t', 1, 4, 'text']),
      shape(['t', 1, 3, 'text']),
      [65, 66, 67, 0],
      [65, 66, 0],
    ],
    [
      'drops what is reserved',
      shape(['a', 1], ['in.reserved2', 1]),
      shape(['in.reserved2', 1], ['a', 1], ['b', 1]),
      [1, 9],
      [0, 1, 0],
    ],
    [
      'is copied as it is where nothing has changed',
      shape(['a', 1], ['reserved', 1]),
      shape(['a', 1], ['reserved', 1]),
      [1, 9],
      [1, 9],
    ],
    ['is one number', shape(['', 4]), shape(['', 8]), [1, 2, 3, 4], [1, 2, 3, 4, 0, 0, 0, 0]],
  ] as const) {
    test(what, () => assert.deepEqual(copied(from, to, bytes), expected));
  }

  test('cannot be made from one with which it shares no field', () => {
    assert.equal(copied(shape(['a', 4]), shape(['b', 4]), []), undefined);
    assert.equal(copied(shape(['', 4]), shape(['word', 4]), []), undefined);
  });

  test('is the same again after the way there and back, where the other has all fields', () => {
    const fields = [
      ['a', 1],
      ['b', 2],
      ['c', 4],
      ['d', 8],
    ] as const;
    fc.assert(
      fc.property(
        fc.shuffledSubarray([...fields], { minLength: 4 }),
        fc.uint8Array({ minLength: 15, maxLength: 15 }),
        (order, bytes) => {
          const own = shape(...fields);
          const other = shape(...order, ['new', 8]);
          assert.deepEqual(copied(other, own, copied(own, other, [...bytes]) ?? []), [...bytes]);
        },
      ),
    );
  });
});

test('a codec for another layout reads what the other one has, structs in structs too', () => {
  const address = Uint8Array.from({ length: 16 }, (_, i) => i);
  const value = {
    original: { address: { word: address }, port: 8080, slot: 7, atNs: 5n, service: 0, waypoint: 0 },
    tuple: { netns: 1n, client: { word: address }, clientPort: 4711, isn: 99 },
    proxy: { word: address },
    proxyPort: 15001,
  };
  const codec = foreignCodec(
    connection,
    shape(
      ['proxy_port_be', 2],
      ['original.port_be', 2],
      ['original.slot', 4],
      ['tuple.isn', 4],
      ['original.address.word_be', 4, 4],
      ['more', 8],
    ),
  );
  const bytes = Buffer.alloc(codec.size + 4);
  codec.encode(value, bytes, 4);
  assert.deepEqual(
    [bytes.readUInt16BE(4), bytes.readUInt16BE(6), bytes.readUInt32LE(8), bytes.readUInt32LE(12)],
    [15001, 8080, 7, 99],
  );
  const back = codec.decode(bytes, 4);
  assert.deepEqual(
    [back.proxyPort, back.original.port, back.original.slot, back.tuple.isn, back.tuple.netns],
    [15001, 8080, 7, 99, 0n],
  );
  assert.deepEqual(back.original.address.word, address);
  assert.throws(
    () => foreignCodec(cgroupInfo, shape(['other', 8])),
    /no field in common with struct cgroup_info/,
  );
});

test('the version of the pins changes with the layouts', () => {
  const text = JSON.stringify(
    layouts.map(({ name, size, fields }) => ({ name, size, fields })),
    null,
    1,
  );
  const known: Readonly<Record<string, string>> = { v1: 'c2e3a587f69f4b99', v2: '23daf2aaad5a3998' };
  assert.equal(
    createHash('sha256').update(text).digest('hex').slice(0, 16),
    known[PIN_VERSION],
    'a struct of bpf/cgroute.h or bpf/connection.h has changed: raise PIN_VERSION in native/pins/pin-directory.ts, and put the new version and hash here. Until a version has been released, the hash alone will do.',
  );
});
