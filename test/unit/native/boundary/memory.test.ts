import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { cleanMappings, trimMemory } from '../../../../native/boundary/memory.ts';

const mapping = (range: string, permissions: string, path: string, anonymous: number): string =>
  `${range} ${permissions} 0042e000 fe:00 5309464                            ${path}\nSize:              64 kB\nRss:               64 kB\nAnonymous:         ${anonymous} kB\nVmFlags: rd ex mr mw me\n`;

test('only mappings of the file that cannot have been written to are dropped', () => {
  const smaps = [
    mapping('00400000-0082e000', 'r--p', '/bin/node', 0),
    mapping('0082e000-03489000', 'r-xp', '/bin/node', 0),
    mapping('03489000-072a7000', 'r--p', '/bin/node', 4),
    mapping('072a7000-072a8000', 'rw-p', '/bin/node', 0),
    mapping('072a8000-072a9000', 'r--s', '/bin/node', 0),
    mapping('7f62faa44000-7f62fab9a000', 'r-xp', '/lib/libc.so.6', 0),
    mapping('7f62fab9a000-7f62fab9b000', 'r-xp', '/bin/node (deleted)', 0),
    '7f62faad0000-7f62faad1000 rw-p 00000000 00:00 0 \nAnonymous:         0 kB\n',
  ].join('');
  assert.deepEqual(cleanMappings(smaps, '/bin/node'), [
    { start: 0x400000n, length: 0x42e000 },
    { start: 0x82e000n, length: 0x2c5b000 },
  ]);
});

test('trimming takes pages of the binary from this process, which goes on', () => {
  const resident = (): number =>
    Number(/^RssFile:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]);
  // Brings pages in, of all kinds.
  JSON.stringify([new Intl.DateTimeFormat('en').format(0), 'x'.localeCompare('y'), /\p{L}/u.test('z')]);
  const before = resident();
  trimMemory();
  assert.ok(resident() < before, `${resident()} kB of files are mapped in, ${before} before`);
  assert.equal(JSON.stringify([/a(b)/.exec('ab'), 'x'.localeCompare('y')]), '[["ab","b"],-1]');
});
