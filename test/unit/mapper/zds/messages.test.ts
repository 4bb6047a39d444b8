/** The messages of ZDS are what a protobuf library makes and reads by their definition. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import type protobuf from 'protobufjs';
import {
  addMessage,
  delMessage,
  isUnreadable,
  keepMessage,
  readAnswer,
  readHello,
  snapshotSentMessage,
  whyUnfit,
} from '../../../../mapper/zds/messages.ts';
import { zds } from '../../../harness/zds-schema.ts';

const type = (name: string): protobuf.Type => zds.lookupType(name);
const encoded = (name: string, value: object): Uint8Array => type(name).encode(value).finish();
const same = (ours: Uint8Array, theirs: Uint8Array): void =>
  assert.deepEqual(Buffer.from(ours), Buffer.from(theirs));

const name = fc.string({ minLength: 1, unit: 'grapheme' });
const workload = fc.record({ uid: name, name, namespace: name, serviceAccount: name });

describe('a message to a ztunnel', () => {
  test('is byte for byte what a protobuf library writes', () => {
    fc.assert(
      fc.property(workload, ({ uid, ...names }) => {
        same(addMessage({ uid, ...names }), encoded('Request', { add: { uid, names } }));
        same(delMessage(uid), encoded('Request', { del: { uid } }));
        same(keepMessage(uid), encoded('Request', { keep: { uid } }));
      }),
    );
    same(snapshotSentMessage(), encoded('Request', { snapshotSent: {} }));
    // As they go over the wire, for whoever reads a trace.
    assert.deepEqual([...snapshotSentMessage()], [0x1a, 0x00]);
    assert.deepEqual([...delMessage('u')], [0x12, 0x03, 0x12, 0x01, 0x75]);
  });

  test('fits into what a ztunnel reads with the longest names of the API', () => {
    const longest = { uid: 'u'.repeat(36), name: 'n'.repeat(253), namespace: 's'.repeat(63) };
    assert.equal(whyUnfit({ ...longest, serviceAccount: 'a'.repeat(253) }), undefined);
  });

  test('is refused with a sentence where names are missing or too long, and only there', () => {
    // One, two, three and four bytes a character, the third of them half of a pair.
    const text = fc
      .tuple(fc.constantFrom('a', 'é', '\ud800', '😀'), fc.nat(400))
      .map(([character, count]) => character.repeat(count % 10 === 0 ? 0 : count));
    const long = fc.record({ uid: text, name: text, namespace: text, serviceAccount: text });
    const seen = { missing: 0, long: 0, fine: 0 };
    fc.assert(
      fc.property(long, (names) => {
        const sentence = whyUnfit(names);
        if (Object.values(names).includes('')) {
          seen.missing++;
          assert.match(sentence ?? '', /^a pod without a (uid|name|namespace|serviceAccount) cannot be told/);
        } else if (addMessage(names).length > 1024) {
          seen.long++;
          assert.match(sentence ?? '', /^the names of this pod are too long .* 1024 bytes: .* has \d+$/);
        } else {
          seen.fine++;
          assert.equal(sentence, undefined);
        }
      }),
      { numRuns: 500 },
    );
    assert.ok(
      Object.values(seen).every((count) => count > 0),
      JSON.stringify(seen),
    );
    const atLimit = { uid: 'u', name: 'n'.repeat(500), namespace: 's'.repeat(506), serviceAccount: 'a' };
    assert.equal(addMessage(atLimit).length, 1024);
    assert.equal(whyUnfit(atLimit), undefined);
    assert.match(whyUnfit({ ...atLimit, serviceAccount: 'ab' }) ?? '', /has 1025$/);
  });
});

describe('a message of a ztunnel', () => {
  test('is read as it was written, with fields of a newer one passed over', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme' }), (error) => {
        assert.equal(readAnswer(encoded('Response', { ack: { error } })), error);
      }),
    );
    const more = fc.record({ a: fc.nat(), b: fc.nat(), c: fc.uint8Array(), d: fc.nat() });
    fc.assert(
      fc.property(fc.string(), more, fc.integer(), fc.string(), (error, { a, b, c, d }, e, f) => {
        const ack = { error, a, b, c, d };
        assert.equal(readAnswer(encoded('NewerResponse', { ack, e, f })), error);
      }),
    );
    fc.assert(
      fc.property(fc.integer(), fc.nat(), fc.string(), fc.double(), (version, a, b, c) => {
        assert.equal(readHello(encoded('NewerHello', { version, a, b, c, d: c })), version);
      }),
    );
    assert.equal(readHello(Uint8Array.of(0x08, 0x01)), 1);
    assert.equal(readAnswer(Uint8Array.of(0x0a, 0x00)), '');
    assert.equal(readHello(new Uint8Array(0)), 0);
  });

  test('of any bytes is a reading or a sentence, never an exception, and the reading is the one of a protobuf library', () => {
    const valid = fc
      .tuple(fc.constantFrom('Response', 'NewerResponse', 'NewerHello'), fc.string(), fc.nat())
      .map(([name, error, version]) => encoded(name, { ack: { error }, version, e: version, f: error }));
    // A message that is nearly right: cut off, or with some bytes changed.
    const near = fc
      .tuple(
        valid,
        fc.nat(),
        fc.array(fc.tuple(fc.nat(), fc.integer({ min: 0, max: 255 })), { maxLength: 3 }),
      )
      .map(([bytes, length, changes]) => {
        const changed = bytes.slice(0, length % (bytes.length + 1));
        for (const [at, byte] of changes) if (changed.length > 0) changed[at % changed.length] = byte;
        return changed;
      });
    const read = { hellos: 0, answers: 0, none: 0 };
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 40 }), near), (bytes) => {
        const [version, error] = [readHello(bytes), readAnswer(bytes)];
        if (isUnreadable(version)) {
          read.none++;
          assert.match(version.unreadable, /\d+ bytes that are no message|hello whose version/);
        } else {
          read.hellos++;
          const { version: theirs } = type('Hello').decode(bytes) as unknown as { version: number };
          assert.equal(version, theirs);
        }
        if (isUnreadable(error)) return;
        read.answers++;
        // The library refuses what is no UTF-8; a reason that is partly unreadable is still one.
        if (error.includes('\ufffd')) return;
        const { ack } = type('Response').decode(bytes) as unknown as { ack: { error: string } };
        assert.equal(error, ack.error);
      }),
      { numRuns: 5000 },
    );
    assert.ok(
      Object.values(read).every((count) => count > 50),
      JSON.stringify(read),
    );
  });

  for (const [what, bytes] of [
    ['nothing', []],
    ['a number in an ack’s place', [0x08, 0x01]],
    ['a number in an error’s place', [0x0a, 0x02, 0x08, 0x01]],
    ['a length beyond the end', [0x0a, 0x05, 0x0a]],
    ['a length of 4 GB', [0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]],
    ['a length of more', [0x0a, 0xff, 0xff, 0xff, 0xff, 0x1f]],
    ['a number without an end', [0x10, ...Array<number>(11).fill(0x80)]],
    ['a fixed number that is cut off', [0x0a, 0x00, 0x11, 0x00]],
    ['a group', [0x0a, 0x00, 0x13, 0x14]],
    ['a field 0', [0x02, 0x00]],
    ['text', [...Buffer.from('GET / HTTP/1.1\r\n\r\n')]],
  ] as const) {
    test(`is no ack: ${what}`, () => {
      const read = readAnswer(Uint8Array.from(bytes));
      assert.ok(isUnreadable(read));
      assert.match(read.unreadable, /\S/);
    });
  }
});
