/** The leak test's book-keeping: it must not call clean what is not. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { account, isClean, type Observed } from '../../leak/account.ts';
import type { Attempt, ClientLine, ProxyLine, ServerLine, Way } from '../../leak/connection.ts';

const PROXY = '10.77.0.2';
const TO = '10.79.1.1:8080';

const attempt = (allowed: readonly Way[], more: Partial<Attempt> = {}): Attempt => ({
  case: 'known',
  directory: '/root/pod',
  isNew: true,
  isExec: false,
  isMapped: false,
  from: 'pods',
  to: { ip: '10.79.1.1', port: 8080 },
  token: 'c1',
  allowed: () => allowed,
  ...more,
});
const CLIENT: ClientLine = {
  token: 'c1',
  startNs: 1,
  endNs: 2,
  ok: true,
  reply: `server ${TO} ${PROXY}:50000`,
  local: '10.77.0.4:40000',
  peer: TO,
};
const BY_PROXY: ProxyLine = {
  client: '10.77.0.4:40000',
  destination: TO,
  port: 15001,
  server: `${PROXY}:50000`,
  state: '--',
};
const SERVED: ServerLine = { token: 'c1', local: TO, peer: `${PROXY}:50000` };
const DIRECT = {
  clients: [{ ...CLIENT, reply: `server ${TO} 10.77.0.4:40000` }],
  proxy: [],
  server: [{ ...SERVED, peer: '10.77.0.4:40000' }],
};
const refused = (errno: string, step = 'connect', local = ''): ClientLine => ({
  token: 'c1',
  startNs: 1,
  endNs: 2,
  ok: false,
  step,
  errno,
  local,
  peer: '',
});

const of = (observed: Partial<Observed>, allowed: readonly Way[] = ['proxied']) =>
  account({
    attempts: [attempt(allowed)],
    clients: [CLIENT],
    proxy: [BY_PROXY],
    server: [SERVED],
    cgroupRoot: '/root',
    proxyIp: PROXY,
    ports: { outbound: 15001, inbound: 15006 },
    ...observed,
  });
const tally = (result: ReturnType<typeof of>) => {
  const { failed, ...rest } = result.cases.get('known')!;
  return {
    ...Object.fromEntries(Object.entries(rest).filter(([, count]) => count > 0)),
    ...(Object.keys(failed).length === 0 ? {} : { failed }),
  };
};

test('a connection that all three tell the same of is clean where its way is right', () => {
  assert.deepEqual(tally(of({})), { connects: 1, proxied: 1 });
  assert.ok(isClean(of({})));
  assert.ok(isClean(of(DIRECT, ['direct'])));
  assert.ok(isClean(of({ proxy: [{ ...BY_PROXY, port: 15006 }] }, ['inbound'])));
  assert.ok(isClean(of({ clients: [refused('EPERM')], proxy: [], server: [] }, ['denied', 'proxied'])));
});

test('what goes past the proxy has escaped, and what goes through it unasked was caught', () => {
  assert.deepEqual(tally(of(DIRECT)), { connects: 1, direct: 1, escaped: 1 });
  assert.deepEqual(tally(of({}, ['direct'])), { connects: 1, proxied: 1, caughtWrongly: 1 });
  assert.deepEqual(tally(of({ proxy: [{ ...BY_PROXY, port: 15006 }] })), {
    connects: 1,
    inbound: 1,
    caughtWrongly: 1,
  });
  assert.deepEqual(tally(of({ clients: [refused('EPERM')], proxy: [], server: [] })), {
    connects: 1,
    denied: 1,
    deniedWrongly: 1,
  });
  for (const [observed, allowed] of [
    [DIRECT, ['proxied']],
    [{}, ['direct']],
  ] as const)
    assert.equal(isClean(of(observed, allowed)), false);
});

test('what is right depends on when it began', () => {
  const attempts = [attempt([], { allowed: (startNs) => (startNs > 5n ? ['proxied'] : ['direct']) })];
  assert.equal(of({ ...DIRECT, attempts }).faults.length, 0);
  assert.equal(
    of({ ...DIRECT, attempts, clients: DIRECT.clients.map((client) => ({ ...client, startNs: 6 })) }).faults
      .length,
    1,
  );
});

test('a lost connection is told with its errno, and with what the proxy made of it', () => {
  const lost = of({
    clients: [refused('ENODATA', 'read', '10.77.0.4:40000')],
    server: [],
    proxy: [{ ...BY_PROXY, destination: `${PROXY}:15001`, server: '-:-', state: 'PR' }],
  });
  assert.deepEqual(tally(lost), { connects: 1, failed: { 'read ENODATA': 1 } });
  assert.deepEqual(lost.disagreements, []);
  assert.match(lost.faults.join(), /the proxy took 10\.77\.0\.2:15001 for its destination/);
  assert.equal(isClean(lost), false);
});

const disagreements: readonly [string, Partial<Observed>, RegExp][] = [
  ['a server that knows nothing of it', { server: [] }, /the server knows nothing/],
  ['a proxy that knows nothing of it', { proxy: [] }, /the proxy knows nothing/],
  ['a server that saw it twice', { server: [SERVED, SERVED] }, /saw it 2 times/],
  [
    'a server that had it at another address',
    { server: [{ ...SERVED, local: '10.79.1.2:8080' }] },
    /had it at 10\.79\.1\.2/,
  ],
  [
    'a proxy that took another destination',
    { proxy: [{ ...BY_PROXY, destination: '10.79.1.2:8080' }] },
    /took 10\.79\.1\.2/,
  ],
  [
    'a peer that is neither the client nor the proxy',
    { server: [{ ...SERVED, peer: '10.77.0.9:1' }] },
    /saw it from 10\.77\.0\.9/,
  ],
  [
    'an application that was shown another peer',
    { clients: [{ ...CLIENT, peer: `${PROXY}:15001` }] },
    /getpeername said/,
  ],
  [
    'a client that was answered something else',
    { clients: [{ ...CLIENT, reply: 'server elsewhere' }] },
    /was answered/,
  ],
  ['a client that tells nothing', { clients: [] }, /told of it 0 times/],
  ['a client that was refused, and got there', { clients: [refused('EPERM')] }, /the server saw it/],
  [
    'a client of which nobody knew',
    { clients: [CLIENT, { ...CLIENT, token: 'c2' }] },
    /c2, which nobody asked for/,
  ],
  [
    'a server that was sent what no client sent',
    { server: [SERVED, { ...SERVED, token: '' }] },
    /of which no client tells/,
  ],
  [
    'a proxy with one connection more',
    { proxy: [BY_PROXY, { ...BY_PROXY, client: '10.77.0.4:40001' }] },
    /of which no client tells/,
  ],
];
for (const [what, observed, pattern] of disagreements) {
  test(`the counts do not agree: ${what}`, () => {
    const result = of(observed, ['proxied', 'direct', 'denied']);
    assert.match(result.disagreements.join('\n'), pattern);
    assert.equal(isClean(result), false);
  });
}
