/** Who listens, by the text of /proc/PID/net/tcp and tcp6, on a machine of this byte order. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { endianness, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isListenedOn, listenersOf, type Listener } from '../../../watcher/listeners.ts';

const procRoot = mkdtempSync(join(tmpdir(), 'cgroute-test-'));
after(() => rmSync(procRoot, { recursive: true }));

const HEAD =
  '  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode';
/** Words in network order, as the kernel prints them here. */
const kernel = (hex: string): string =>
  (hex.match(/.{8}/g) ?? [])
    .map((word) => (endianness() === 'LE' ? (word.match(/../g) ?? []).toReversed().join('') : word))
    .join('')
    .toUpperCase();
const line = (at: number, address: string, port: number, state = '0A'): string =>
  `${String(at).padStart(4)}: ${kernel(address)}:${port.toString(16).toUpperCase().padStart(4, '0')} ${'0'.repeat(address.length)}:0000 ${state} 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0`;

function listeners(
  pid: number,
  tcp: readonly string[],
  tcp6: readonly string[],
): readonly Listener[] | undefined {
  mkdirSync(join(procRoot, `${pid}/net`), { recursive: true });
  writeFileSync(join(procRoot, `${pid}/net/tcp`), `${[HEAD, ...tcp].join('\n')}\n`);
  writeFileSync(join(procRoot, `${pid}/net/tcp6`), `${[HEAD, ...tcp6].join('\n')}\n`);
  return listenersOf(pid, procRoot);
}

const IP = '0a000005';
const IP6 = 'fd000000000000000000000000000005';
const ANY6 = '0'.repeat(32);
const hears = (found: readonly Listener[] | undefined, hex: string, port: number): boolean =>
  isListenedOn(found ?? [], Buffer.from(hex, 'hex'), port);

test('a port is listened on at its own address, at any, and by a socket of both families', () => {
  const cases: readonly (readonly [
    name: string,
    tcp: string[],
    tcp6: string[],
    ip4: boolean,
    ip6: boolean,
  ])[] = [
    ['nobody', [], [], false, false],
    ['its address', [line(0, IP, 15001)], [], true, false],
    ['another', [line(0, '0a000006', 15001)], [line(0, `${IP6.slice(0, -1)}6`, 15001)], false, false],
    ['any of IPv4', [line(0, '00000000', 15001)], [], true, false],
    ['its address of IPv6', [], [line(0, IP6, 15001)], false, true],
    ['any of both', [], [line(0, ANY6, 15001)], true, true],
    ['its address, mapped', [], [line(0, `${'0'.repeat(20)}ffff${IP}`, 15001)], true, false],
    ['another port', [line(0, IP, 15006)], [line(0, ANY6, 15006)], false, false],
    ['the second', [line(0, IP, 80), line(1, IP, 15001)], [], true, false],
    ['a connection', [line(0, IP, 15001, '01')], [line(0, IP6, 15001, '06')], false, false],
  ];
  for (const [name, tcp, tcp6, ip4, ip6] of cases) {
    const found = listeners(1, tcp, tcp6);
    assert.deepEqual([hears(found, IP, 15001), hears(found, IP6, 15001)], [ip4, ip6], name);
  }
});

test('of a file that is longer than a read, all listeners are found, and nothing behind them is', () => {
  const many = Array.from({ length: 500 }, (_, at) => line(at, IP, 1000 + at));
  const found = listeners(2, [...many, line(500, IP, 15001, '01'), line(501, IP, 15002)], []);
  assert.equal(found?.length, 500);
  assert.deepEqual(
    [hears(found, IP, 1000), hears(found, IP, 1499), hears(found, IP, 15002)],
    [true, true, false],
  );
});

test('nothing is told of a process that is gone', () => assert.equal(listenersOf(3, procRoot), undefined));
