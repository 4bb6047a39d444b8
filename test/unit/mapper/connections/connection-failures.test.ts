/** What is said of connections for which the maps have no room: once, for as long as it goes on. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import {
  ConnectionFailures,
  type ConnectionFailuresOptions,
} from '../../../../mapper/connections/connection-failures.ts';
import { mapRoom, type RoomMaps } from '../../../../mapper/connections/connection-room.ts';
import { branch } from '../../../../native/layout/layouts.ts';

function setUp() {
  const state = {
    refused: [7n, 0n],
    lost: [0n, 0n],
    denied: 0n,
    allowed: 0n,
    overflow: 0n,
    originals: 0,
    share: { connections: 0n, originals: 0n },
  };
  const told: string[] = [];
  const logged: string[] = [];
  const counts = (slot: number): bigint[] => {
    const count = Array.from({ length: branch.count }, () => 0n);
    count[branch.errorDenied] = state.refused[slot - 1] ?? 0n;
    count[branch.handoffLost] = state.lost[slot - 1] ?? 0n;
    count[branch.noProxyDenied] = state.denied;
    count[branch.noProxyAllowed] = state.allowed;
    return count;
  };
  const maps = {
    pods: {
      entries: () =>
        ['a', 'b'].map((uid, at) => [
          { text: uid },
          { uid, slot: at + 1, podNamespace: 'shop', podName: uid },
        ]),
    },
    counters: { get: (slot: number) => ({ count: counts(slot) }) },
    shares: { get: () => state.share },
    overflowConnections: { info: { maxEntries: 64 } },
    overflowCount: { get: () => state.overflow },
    originals: { info: { maxEntries: 32 }, count: () => state.originals },
  } as unknown as ConnectionFailuresOptions['maps'];
  const room = new ConnectionFailures({
    maps,
    shares: { connections: 16, originals: 8 },
    logger: pino(
      {},
      { write: (line: string) => void logged.push((JSON.parse(line) as { msg: string }).msg) },
    ),
    tell: (uid, reason, message) => void told.push(`${uid}: ${reason}: ${message}`),
  });
  const look = (): string[] => {
    room.look();
    return told.splice(0);
  };
  return { state, look, logged };
}

test('a pod is told once while its connections are refused, and again when that has ended and begins anew', () => {
  const { state, look, logged } = setUp();
  assert.deepEqual(look(), [], 'what an earlier agent has seen');
  state.refused[0] = 9n;
  state.overflow = 64n;
  assert.deepEqual(look(), [
    "a: NoRoom: connections of this pod, or from the host to it, are refused (errorDenied): the node's map of open connections is full, which has room for 64 (maxConnections)",
  ]);
  assert.match(logged.at(-1) ?? '', /^pod shop\/a: connections of this pod.* are refused/);
  for (const more of [12n, 20n]) {
    state.refused[0] = more;
    assert.deepEqual(look(), []);
  }
  assert.deepEqual(look(), [], 'over');
  state.refused[0] = 21n;
  assert.equal(look().length, 1);
  assert.equal(logged.length, 2);
});

test('each pod is told of its own, and why', () => {
  const { state, look } = setUp();
  state.refused = [8n, 1n];
  state.share = { connections: 16n, originals: 0n };
  const reasons = (): string[] =>
    look().map((text) => text.replace(/^(.): NoRoom: .*errorDenied\): /, '$1 '));
  assert.deepEqual(
    reasons(),
    ['a', 'b'].map(
      (uid) =>
        `${uid} it has 16 open beside the node's first 4,096, which is what one pod may have (maxConnectionsPerPod)`,
    ),
  );
  look();
  state.refused = [9n, 1n];
  state.share = { connections: 4n, originals: 0n };
  state.overflow = 48n;
  assert.deepEqual(reasons(), [
    "a it has 4 open beside the node's first 4,096, which is what one pod may have while the node has 48 of the 64 for which there is room (maxConnections)",
  ]);
  state.overflow = 0n;
  look();
  state.share = { connections: 0n, originals: 0n };
  state.refused = [9n, 2n];
  assert.match(
    look().join(),
    /^b: NoRoom: .* no room to keep their destinations, no way yet to tell the proxy, or they went to addresses such as ::10\.1\.2\.3, of which it would be told 10\.1\.2\.3$/,
  );
});

test('pods are told once that no proxy is known, and what becomes of their connections', () => {
  const { state, look } = setUp();
  state.denied = 3n;
  assert.deepEqual(
    look(),
    ['a', 'b'].map(
      (uid) =>
        `${uid}: NoProxy: connections of this pod, or from the host to it, are refused (noProxyDenied): no proxy of this node is known`,
    ),
  );
  state.denied = 4n;
  assert.deepEqual(look(), []);
  state.allowed = 1n;
  assert.match(
    look().join(),
    /^a: NoProxy: .* pass the mesh by \(noProxyAllowed\): .* whenProxyDown is allow/,
  );
});

test('a destination that is lost is told, and whose fault that may be', () => {
  const { state, look } = setUp();
  const reason = (): string =>
    look()
      .join()
      .replace(/^.*\(handoffLost\): /, '');
  state.lost[1] = 1n;
  state.share = { connections: 0n, originals: 4n };
  assert.equal(
    reason(),
    'the proxy has not asked for 4 others of this pod yet, which is what one pod may have while the node has 0 of the 32 for which there is room (maxConnections)',
  );
  look();
  state.lost[1] = 3n;
  state.share = { connections: 0n, originals: 0n };
  assert.equal(
    reason(),
    'the proxy was late to ask for others, or they went to a listener with its address in a network namespace that is not its own',
  );
  look();
  state.lost[1] = 4n;
  state.originals = 32;
  assert.equal(reason(), 'the proxy has not asked for 32 others of the node yet, for which there is room');
});

test("how full the maps are is told by the kernel's own count where it keeps one", () => {
  const map = (name: string, entries: number) => ({ name, info: { maxEntries: 10 }, count: () => entries });
  const maps = {
    cgroups: map('cgroup_info_map', 3),
    pods: map('pod_info_map', 2),
    podAddresses: map('pod_ip_map', 1),
    originals: map('original_dst_map', 10),
    overflowConnections: map('connection_overflow_map', 99),
    overflowCount: { get: () => 4n },
  } as unknown as RoomMaps;
  assert.deepEqual(
    mapRoom(maps).map(({ name, entries, capacity }) => `${name} ${entries}/${capacity}`),
    [
      'cgroup_info_map 3/10',
      'pod_info_map 2/10',
      'pod_ip_map 1/10',
      'connection_overflow_map 4/10',
      'original_dst_map 10/10',
    ],
  );
});
