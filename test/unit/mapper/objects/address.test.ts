import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  addressBytes,
  addressText,
  canonicalIp,
  isMapped,
  isNobodys,
  NO_ADDRESS,
} from '../../../../mapper/objects/address.ts';

describe('an IP address', () => {
  const table: readonly (readonly [string, string | undefined])[] = [
    ['10.0.0.1', '10.0.0.1'],
    ['2001:DB8:0:0::1', '2001:db8::1'],
    ['::ffff:10.0.0.1', '10.0.0.1'],
    ['::', '::'],
    ['::1', '::1'],
    ['fe80::1%eth0', undefined],
    ['10.0.0', undefined],
    ['010.0.0.1', undefined],
    ['', undefined],
    ['a.b.c.d', undefined],
    ['[::1]', undefined],
  ];
  for (const [text, canonical] of table)
    test(`${JSON.stringify(text)} is ${canonical}`, () => assert.equal(canonicalIp(text), canonical));

  test("of loopback, of a link, of nobody or that looks like another one in the maps is no pod's", () => {
    const addresses = [
      '127.0.0.1',
      '169.254.1.1',
      '0.0.0.0',
      '::',
      '::1',
      'fe80::1',
      '::10.0.0.1',
      '10.0.0.1',
      'fd77::1',
      '::1:0:0',
    ];
    assert.deepEqual(
      addresses.filter((ip) => !isNobodys(ip)),
      ['10.0.0.1', 'fd77::1', '::1:0:0'],
    );
  });

  test('is the same after its bytes in the maps, which are sixteen in network order', () => {
    const rows: readonly (readonly [string, string])[] = [
      ['10.1.2.3', '0000000000000000000000000a010203'],
      ['2001:db8::1', '20010db8000000000000000000000001'],
      ['1:2:3:4:5:6:7:8', '00010002000300040005000600070008'],
      ['fd00::', 'fd000000000000000000000000000000'],
    ];
    for (const [text, hex] of rows) {
      const bytes = addressBytes(text);
      assert.ok(bytes);
      assert.equal(Buffer.from(bytes).toString('hex'), hex);
      assert.equal(addressText(bytes), text);
    }
    assert.equal(addressBytes('10.0.0'), undefined);
    assert.equal(addressText(NO_ADDRESS), undefined);
  });

  test('is a mapped one where its bytes say so', () => {
    const isMappedText = (text: string): boolean => isMapped(addressBytes(text) ?? NO_ADDRESS);
    assert.deepEqual(
      ['::ffff:10.0.0.1', '::FFFF:0:0', '10.0.0.1', '::fffe:10.0.0.1', '1::ffff:10.0.0.1'].filter(
        isMappedText,
      ),
      ['::ffff:10.0.0.1', '::FFFF:0:0'],
    );
  });
});
