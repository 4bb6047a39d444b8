import assert from 'node:assert/strict';
import { BlockList } from 'node:net';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { addressBytes } from '../../../../mapper/objects/address.ts';
import {
  isExcludedInbound,
  isExcludedOutbound,
  MOST_LISTED,
  trafficOptions,
  type Range,
} from '../../../../mapper/decisions/traffic-options.ts';
import { TRAFFIC } from '../../../harness/label-names.ts';

const of = (annotations: Readonly<Record<string, string>>) =>
  trafficOptions(
    Object.fromEntries(Object.entries(annotations).map(([name, value]) => [TRAFFIC + name, value])),
  );
/** `4:10.0.0.0/8` */
function text({ family, address, prefix }: Range): string {
  const words = Buffer.from(address).toString('hex').match(/.{4}/g) ?? [];
  return `${family}:${family === 4 ? address.subarray(12).join('.') : words.map((word) => word.replace(/^0+(?=.)/, '')).join(':')}/${prefix}`;
}
const ranges = (value: string): string[] => {
  const { options } = of({ excludeOutboundIPRanges: value });
  return Array.isArray(options?.excludedRanges) ? (options.excludedRanges as Range[]).map(text) : [];
};

test('what cannot be read is named beside "*", too', () => {
  const { options, problems } = of({ excludeOutboundPorts: 'http, *' });
  assert.equal(options?.excludedPorts, 'all');
  assert.match(problems.join(), /excludeOutboundPorts has "http", .*the rest of the list counts/);
});

test('one pod cannot list more than its share: then none of it counts, and it is said', () => {
  const ports = (count: number): string => Array.from({ length: count }, (_, at) => at + 1).join();
  assert.equal(of({ excludeOutboundPorts: ports(MOST_LISTED) }).problems.length, 0);
  const { options, problems } = of({
    excludeOutboundPorts: ports(MOST_LISTED),
    excludeInboundPorts: '1',
    excludeOutboundIPRanges: '*',
  });
  assert.equal(options, undefined);
  assert.match(
    problems.join(),
    /list 4097 ports and 0 ranges, expected at most 4096 of each for one pod; all of them count as absent/,
  );
});

describe('ranges', () => {
  for (const [value, expected] of [
    ['10.0.0.0/8', ['4:10.0.0.0/8']],
    ['10.1.2.3', ['4:10.1.2.3/32']],
    ['10.1.2.3/8', ['4:10.0.0.0/8']],
    ['10.255.255.255/9', ['4:10.128.0.0/9']],
    ['0.0.0.0/0', ['4:0.0.0.0/0']],
    ['255.255.255.255/0', ['4:0.0.0.0/0']],
    [' 10.0.0.0/8 ,, 192.168.0.0/16,', ['4:10.0.0.0/8', '4:192.168.0.0/16']],
    ['fd00::/8', ['6:fd00:0:0:0:0:0:0:0/8']],
    ['fdff:1::1/9', ['6:fd80:0:0:0:0:0:0:0/9']],
    ['::/0', ['6:0:0:0:0:0:0:0:0/0']],
    ['::1', ['6:0:0:0:0:0:0:0:1/128']],
    ['::ffff:10.1.2.3', ['4:10.1.2.3/32']],
    ['::ffff:10.1.2.3/104', ['4:10.0.0.0/8']],
    ['::ffff:0:0/95', ['6:0:0:0:0:0:fffe:0:0/95']],
  ] as const) {
    test(`"${value}"`, () => assert.deepEqual(ranges(value), expected));
  }

  for (const bad of [
    '10.0.0.0/33',
    '10.0.0',
    '10.0.0.0/-1',
    '10.0.0.0/',
    '/8',
    'fd00::/129',
    'fe80::1%eth0',
    'kube-system',
    '10.0.0.0/8/8',
    '10.0.0.0/0x8',
    '010.0.0.1',
  ]) {
    test(`"${bad}" is refused with its words, and the rest counts`, () => {
      const { options, problems } = of({ excludeOutboundIPRanges: `${bad},10.0.0.0/8` });
      assert.deepEqual(((options?.excludedRanges ?? []) as Range[]).map(text), ['4:10.0.0.0/8']);
      assert.deepEqual(problems, [
        `${TRAFFIC}excludeOutboundIPRanges has ${JSON.stringify(bad)}, expected each to be an address, a range such as 10.0.0.0/8 or fd00::/8, or "*"; the rest of the list counts`,
      ]);
    });
  }
});

describe('ports', () => {
  test('are numbers', () =>
    assert.deepEqual(
      of({ excludeOutboundPorts: '80, 443,65535,1' }).options?.excludedPorts,
      [80, 443, 65_535, 1],
    ));
  for (const bad of ['0', '65536', '80-90', 'http', '-1', '8e1', '080000']) {
    test(`"${bad}" is refused`, () => {
      const { options, problems } = of({ excludeInboundPorts: `8080,${bad}` });
      assert.deepEqual(options?.excludedInbound, [8080]);
      assert.match(
        problems.join(),
        new RegExp(
          `excludeInboundPorts has "${bad}", expected each to be a port from 1 to 65535 or "\\*"; the rest of the list counts`,
        ),
      );
    });
  }
});

describe('all of an annotation', () => {
  test('without any there is nothing', () =>
    assert.deepEqual(trafficOptions({ other: 'x' }), { options: undefined, problems: [] }));
  test('"*" is all', () => {
    const { options } = of({ excludeOutboundPorts: '80,*', excludeInboundPorts: '*' });
    assert.deepEqual([options?.excludedPorts, options?.excludedInbound], ['all', 'all']);
  });
  test('"*" among what is included, and nothing among what is excluded, limit nothing', () => {
    assert.equal(
      of({
        includeOutboundIPRanges: '*',
        includeInboundPorts: '*',
        excludeOutboundPorts: '',
        excludeOutboundIPRanges: ' , ',
        includeOutboundPorts: '80',
      }).options,
      undefined,
    );
  });
  test('an empty list of what is included includes nothing', () => {
    assert.deepEqual(
      of({ includeOutboundIPRanges: '', includeInboundPorts: '' }).options?.includedRanges,
      [],
    );
  });
  test('one of which nothing can be read counts as absent: no slip of the pen takes a pod out', () => {
    const { options, problems } = of({ includeOutboundIPRanges: '10.0.0.0/88', includeInboundPorts: 'http' });
    assert.equal(options, undefined);
    assert.equal(problems.length, 2);
    assert.match(problems[0] ?? '', /the annotation counts as absent$/);
  });
  test('many bad parts are not all quoted, nor a long one whole', () => {
    const { problems } = of({ excludeOutboundPorts: `${'x'.repeat(500)},a,b,c,d` });
    assert.ok((problems[0] ?? '').length < 400);
    assert.match(problems[0] ?? '', /and 2 more/);
  });
});

test('no annotation makes it throw, and all that is listed is of its family and masked', () => {
  const name = fc.constantFrom(
    'excludeOutboundPorts',
    'excludeOutboundIPRanges',
    'includeOutboundPorts',
    'includeOutboundIPRanges',
    'excludeInboundPorts',
    'includeInboundPorts',
    'kubevirtInterfaces',
  );
  const range = fc
    .tuple(fc.oneof(fc.ipV4(), fc.ipV6()), fc.integer({ min: -1, max: 140 }))
    .map(([ip, prefix]) => `${ip}/${prefix}`);
  const value = fc.oneof(
    fc.string(),
    fc
      .array(fc.oneof(range, fc.ipV4(), fc.ipV6(), fc.integer().map(String), fc.string()), { maxLength: 5 })
      .map((parts) => parts.join(',')),
  );
  fc.assert(
    fc.property(fc.dictionary(name, value), (annotations) => {
      const { options } = of(annotations);
      for (const list of [options?.excludedRanges, options?.includedRanges]) {
        for (const { family, address, prefix } of Array.isArray(list) ? (list as Range[]) : []) {
          const bits = [...address].map((byte) => byte.toString(2).padStart(8, '0')).join('');
          const first = family === 4 ? 96 : 0;
          assert.ok(prefix >= 0 && first + prefix <= 128);
          assert.ok(
            !bits.slice(first + prefix).includes('1') && (family === 6 || !bits.slice(0, 96).includes('1')),
          );
        }
      }
      for (const list of [
        options?.excludedPorts,
        options?.includedPorts,
        options?.excludedInbound,
        options?.includedInbound,
      ]) {
        for (const port of Array.isArray(list) ? list : []) assert.ok(port >= 1 && port <= 65_535);
      }
    }),
  );
});

describe('a connection', () => {
  const excluded = (annotations: Readonly<Record<string, string>>, address: string, port = 80): boolean => {
    const { options } = of(annotations);
    return (
      options !== undefined && isExcludedOutbound(options, addressBytes(address) ?? new Uint8Array(16), port)
    );
  };
  for (const [annotations, address, port, expected] of [
    [{ excludeOutboundPorts: '80,443' }, '10.0.0.1', 443, true],
    [{ excludeOutboundPorts: '80,443' }, '10.0.0.1', 8080, false],
    [{ excludeOutboundPorts: '*' }, '10.0.0.1', 8080, true],
    [{ excludeOutboundIPRanges: '10.0.0.0/9,fd00::/8' }, '10.127.0.1', 80, true],
    [{ excludeOutboundIPRanges: '10.0.0.0/9,fd00::/8' }, '10.128.0.1', 80, false],
    [{ excludeOutboundIPRanges: '10.0.0.0/9,fd00::/8' }, 'fdff::1', 80, true],
    [{ excludeOutboundIPRanges: '10.0.0.0/9,fd00::/8' }, 'fe00::1', 80, false],
    [{ excludeOutboundIPRanges: '::/0' }, '10.0.0.1', 80, false],
    [{ includeOutboundIPRanges: '10.0.0.0/8' }, '10.0.0.1', 80, false],
    [{ includeOutboundIPRanges: '10.0.0.0/8' }, '11.0.0.1', 80, true],
    [{ includeOutboundIPRanges: '10.0.0.0/8', includeOutboundPorts: '443' }, '11.0.0.1', 443, false],
    [{ includeOutboundIPRanges: '10.0.0.0/8', includeOutboundPorts: '*' }, '11.0.0.1', 80, false],
    [{ includeOutboundIPRanges: '10.0.0.0/8', excludeOutboundPorts: '80' }, '10.0.0.1', 80, true],
  ] as const) {
    test(`to ${address}:${port} is ${expected ? 'left alone' : 'redirected'} under ${JSON.stringify(annotations)}`, () =>
      assert.equal(excluded(annotations, address, port), expected));
  }

  for (const [annotations, port, expected] of [
    [{}, 80, false],
    [{}, 15006, true],
    [{}, 15090, true],
    [{}, 15091, false],
    [{ excludeInboundPorts: '80,443' }, 443, true],
    [{ excludeInboundPorts: '80,443' }, 8080, false],
    [{ excludeInboundPorts: '*' }, 8080, true],
    [{ includeInboundPorts: '443' }, 443, false],
    [{ includeInboundPorts: '443' }, 80, true],
    [{ includeInboundPorts: '443', excludeInboundPorts: '443' }, 443, false],
    [{ includeInboundPorts: '443' }, 15021, true],
  ] as const) {
    test(`from the host to port ${port} is ${expected ? 'left alone' : 'redirected'} under ${JSON.stringify(annotations)}`, () =>
      assert.equal(isExcludedInbound(of(annotations).options, port), expected));
  }

  test('is in a range or not as Node.js says', () => {
    fc.assert(
      fc.property(fc.ipV4(), fc.integer({ min: 0, max: 32 }), fc.ipV4(), (network, prefix, address) => {
        const list = new BlockList();
        list.addSubnet(network, prefix);
        assert.equal(
          excluded({ excludeOutboundIPRanges: `${network}/${prefix}` }, address),
          list.check(address),
        );
      }),
    );
  });
});
