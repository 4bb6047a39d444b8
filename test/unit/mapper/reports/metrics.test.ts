/** The table of metrics, without an agent. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  agentMetrics,
  driftMetrics,
  lostEventMetrics,
  sourceStateMetrics,
} from '../../../../mapper/reports/agent-metrics.ts';
import {
  connectionMetrics,
  connectionsFromNow,
  resetMetrics,
} from '../../../../mapper/reports/connection-metrics.ts';
import { mapErrorMetrics, mapMetrics } from '../../../../mapper/reports/map-metrics.ts';
import { metricSources, type MetricSource } from '../../../../mapper/reports/metric-source.ts';
import { createMetrics, metricsReference } from '../../../../mapper/reports/metrics.ts';
import { objectSourceMetrics } from '../../../../mapper/reports/object-source-metrics.ts';
import { cgroupMetrics, podMetrics, type IntendedPod } from '../../../../mapper/reports/pod-metrics.ts';
import { proxyMetrics } from '../../../../mapper/reports/proxy-metrics.ts';
import { sidecarMetrics } from '../../../../mapper/reports/sidecar-metrics.ts';
import type { PinnedMaps } from '../../../../native/data-plane/maps.ts';
import { CgrouteError } from '../../../../native/error.ts';
import { branch } from '../../../../native/layout/layouts.ts';

/** A map as far as metrics read it. */
function fakeMap<K>(name: string, entries: [K, unknown][], maxEntries = 10) {
  return {
    name,
    info: { keySize: 4, valueSize: 4, maxEntries },
    count: () => entries.length,
    entries: () => entries,
    get: (key: K) => entries.find(([of]) => of === key)?.[1],
  };
}

interface Fake {
  counters: [number, { count: bigint[] }][];
  retired: number[];
  intended: IntendedPod[];
  unresolvedSince?: number[];
}

function counts(values: Partial<Record<keyof typeof branch, bigint>>): { count: bigint[] } {
  const count = Array.from({ length: branch.count }, () => 0n);
  for (const [name, value] of Object.entries(values)) count[branch[name as keyof typeof branch]] = value;
  return { count };
}

function mapsOf(fake: Fake): PinnedMaps {
  return {
    cgroups: fakeMap<bigint>('cgroup_info_map', [
      [7n, { slot: 1 }],
      [8n, { slot: 1 }],
      [9n, { slot: 0 }],
    ]),
    pods: fakeMap('pod_info_map', [
      [{ text: 'a' }, { uid: 'a', slot: 1, verdict: 'in' }],
      [{ text: 'b' }, { uid: 'b', slot: 2, verdict: 'in' }],
      [{ text: 'c' }, { uid: 'c', slot: 0, verdict: 'out' }],
    ]),
    podAddresses: fakeMap('pod_ip_map', []),
    connections: fakeMap('connection_map', [], 1000),
    // The kernel's own count is believed, whatever a walk would give.
    overflowConnections: fakeMap('connection_overflow_map', [[1, {}]], 2000),
    overflowCount: fakeMap<number>('overflow_count_map', [[0, 150n]]),
    originals: fakeMap('original_dst_map', []),
    settings: fakeMap<number>('settings', []),
    get counters() {
      return fakeMap('pod_counters_map', fake.counters);
    },
  } as unknown as PinnedMaps;
}

/** All that an agent has, in an order that is not the documents'. */
function sourcesOf(fake: Fake): MetricSource[] {
  const maps = mapsOf(fake);
  const errors = new Map([
    ['E2BIG', 2],
    ['ENOSPC', 1],
  ]);
  const resets = {
    outbound: 14,
    inbound: 15,
    failures: new Map([
      ['EPERM', 16],
      ['ENETDOWN', 17],
    ]),
  };
  const sidecars = { bypassed: 9, shortCircuited: 10, waiting: 11, failing: 12, failures: 13 };
  const connections = connectionsFromNow({ maps, former: () => ({ retired: fake.retired, highestSlot: 1 }) });
  return [
    ...metricSources(proxyMetrics, () => ({
      settings: maps.settings,
      report: {
        pod: 'istio-system/ztunnel',
        unready: null,
        notListening: ['10.0.0.5:15001'],
        trouble: null,
        notTaken: [],
      },
    })),
    ...metricSources(connectionMetrics, connections),
    ...metricSources(resetMetrics, () => resets),
    ...metricSources(sidecarMetrics, () => sidecars),
    ...metricSources(driftMetrics, () => 8),
    ...metricSources(lostEventMetrics, () => 6),
    ...metricSources(objectSourceMetrics, () => ({
      requests: 5,
      restarts: { pods: { expired: 4 } },
      lastEventAgeMs: { pods: 1500 },
    })),
    ...metricSources(sourceStateMetrics, () => [{ name: 'pods', state: 'degraded' as const, detail: '' }]),
    ...metricSources(mapErrorMetrics, () => errors),
    ...metricSources(mapMetrics, () => maps),
    ...metricSources(cgroupMetrics, () => ({ tracked: 3, unresolvedSince: fake.unresolvedSince ?? [] })),
    ...metricSources(podMetrics, () => ({ maps, intended: () => fake.intended, failedPods: () => 7 })),
    ...metricSources(agentMetrics, () => ({ version: '1.2.3', isReady: true })),
  ];
}

const pod = (uid: string, verdict: IntendedPod['verdict'], isRunning = true): IntendedPod => ({
  uid,
  verdict,
  isRunning,
});
const lines = (text: string): string[] =>
  text.split('\n').filter((line) => line !== '' && !line.startsWith('#'));

test('each value is where its name says, read when it is asked for', async () => {
  const fake: Fake = {
    counters: [],
    retired: [],
    intended: [pod('a', 'in'), pod('x', 'in'), pod('y', 'out')],
    unresolvedSince: [performance.now() - 5000],
  };
  const metrics = createMetrics(sourcesOf(fake));
  const has = async (...wanted: string[]): Promise<void> => {
    const found = lines(await metrics.text());
    assert.deepEqual(
      wanted.filter((line) => !found.includes(line)),
      [],
      found.join('\n'),
    );
  };
  await has(
    'cgroute_build_info{version="1.2.3"} 1',
    'cgroute_ready 1',
    'cgroute_proxy_known 0',
    'cgroute_proxy_ready 1',
    'cgroute_proxy_ports_not_listened 1',
    'cgroute_pods_intended{verdict="in"} 2',
    'cgroute_pods_intended{verdict="out"} 1',
    'cgroute_pods_intended{verdict="bypass"} 0',
    'cgroute_cgroups_tracked 3',
    'cgroute_cgroups_unresolved 1',
    'cgroute_map_errors_total{errno="E2BIG"} 2',
    'cgroute_pods_failed 7',
    'cgroute_map_entries{map="cgroup_info_map"} 3',
    'cgroute_map_entries{map="connection_overflow_map"} 150',
    'cgroute_map_capacity{map="connection_overflow_map"} 2000',
    'cgroute_map_capacity{map="connection_map"} 1000',
    'cgroute_source_state{source="pods",state="degraded"} 1',
    'cgroute_source_state{source="pods",state="ok"} 0',
    'cgroute_source_restarts_total{source="pods",reason="expired"} 4',
    'cgroute_source_last_event_age_seconds{source="pods"} 1.5',
    'cgroute_api_requests_total 5',
    'cgroute_events_lost_total 6',
    'cgroute_drift_repaired_total 8',
    'cgroute_sidecar_pods{state="short_circuited"} 10',
    'cgroute_sidecar_pods{state="failing"} 12',
    'cgroute_sidecar_failures_total 13',
    'cgroute_connections_reset_total{direction="outbound"} 14',
    'cgroute_connections_reset_total{direction="inbound"} 15',
    'cgroute_connection_reset_failures_total{errno="EPERM"} 16',
    'cgroute_connection_reset_failures_total{errno="EOPNOTSUPP"} 0',
    'cgroute_connection_reset_failures_total{errno="ENETDOWN"} 17',
  );
  fake.intended = [pod('a', 'bypass')];
  await has(
    'cgroute_pods_intended{verdict="in"} 0',
    'cgroute_pods_intended{verdict="bypass"} 1',
    'cgroute_map_errors_total{errno="E2BIG"} 2',
  );
});

test('a pod is mapped when a cgroup leads to it; one without a slot of its own is not', async () => {
  const text = await createMetrics(sourcesOf({ counters: [], retired: [], intended: [] })).text();
  assert.match(text, /^cgroute_pods_mapped\{verdict="in"\} 1$/m);
  assert.match(text, /^cgroute_pods_mapped\{verdict="out"\} 0$/m);
});

test('a pod that runs and is not in the maps as it should be is unmapped', async () => {
  const unmapped = async (...intended: IntendedPod[]): Promise<string[]> =>
    lines(await createMetrics(sourcesOf({ counters: [], retired: [], intended })).text()).filter((line) =>
      /^cgroute_pods_unmapped.* [^0]/.test(line),
    );
  assert.deepEqual(await unmapped(pod('a', 'in')), []);
  assert.deepEqual(
    await unmapped(pod('a', 'bypass')),
    ['cgroute_pods_unmapped{verdict="bypass"} 1'],
    'another verdict stands there',
  );
  assert.deepEqual(
    await unmapped(pod('b', 'in'), pod('c', 'out')),
    ['cgroute_pods_unmapped{verdict="in"} 1', 'cgroute_pods_unmapped{verdict="out"} 1'],
    'no cgroup, no slot',
  );
  assert.deepEqual(await unmapped(pod('x', 'in')), ['cgroute_pods_unmapped{verdict="in"} 1'], 'no entry');
  assert.deepEqual(await unmapped(pod('x', 'in', false)), [], 'it does not run');
});

test('for how long cgroups have been unresolved is the age of the oldest', async () => {
  const told = async (unresolvedSince: number[]): Promise<(number | undefined)[]> => {
    const text = await createMetrics(
      sourcesOf({ counters: [], retired: [], intended: [], unresolvedSince }),
    ).text();
    return [/^cgroute_cgroups_unresolved (.*)$/m, /^cgroute_cgroups_unresolved_age_seconds (.*)$/m].map(
      (line) => Math.round(Number(line.exec(text)?.[1])),
    );
  };
  const now = performance.now();
  assert.deepEqual(await told([]), [0, 0]);
  assert.deepEqual(await told([now - 1000, now - 61_000, now - 2000]), [3, 61]);
});

test('what is to be expected of a counter is there from the start, and errors of all kinds are in one', async () => {
  const metrics = createMetrics(sourcesOf({ counters: [], retired: [], intended: [] }));
  const errors = async (): Promise<string[]> =>
    lines(await metrics.text())
      .filter((line) => line.startsWith('cgroute_map_errors_total'))
      .map((line) => line.slice('cgroute_map_errors_total'.length));
  assert.deepEqual(await errors(), [
    '{errno="E2BIG"} 2',
    '{errno="ENOMEM"} 0',
    '{errno="EPERM"} 0',
    '{errno="other"} 0',
    '{errno="ENOSPC"} 1',
  ]);
  metrics.failed(new CgrouteError('EBPF', 'the settings', { errno: 'EPERM' }));
  metrics.failed(new CgrouteError('EBPF', 'the settings', { errno: 'E2BIG' }));
  metrics.failed(new Error('no errno'));
  assert.deepEqual(await errors(), [
    '{errno="E2BIG"} 3',
    '{errno="ENOMEM"} 0',
    '{errno="EPERM"} 1',
    '{errno="other"} 1',
    '{errno="ENOSPC"} 1',
  ]);
  const text = await metrics.text();
  for (const reason of ['cut', 'unreachable', 'idle', 'timeout', 'relist'])
    assert.ok(text.includes(`cgroute_source_restarts_total{source="pods",reason="${reason}"} 0\n`), reason);
});

test('connections begin at zero with the agent, and those of a pod that is gone still count', async () => {
  const fake: Fake = {
    counters: [
      [0, counts({ hostUntouched: 40n })],
      [1, counts({ redirected: 100n })],
    ],
    retired: [],
    intended: [],
  };
  const metrics = createMetrics(sourcesOf(fake));
  assert.match(await metrics.text(), /^cgroute_connections_total\{branch="redirected"\} 0$/m);
  fake.counters = [
    [0, counts({ hostUntouched: 41n })],
    [1, counts({ redirected: 103n })],
  ];
  assert.match(await metrics.text(), /^cgroute_connections_total\{branch="redirected"\} 3$/m);
  assert.match(await metrics.text(), /^cgroute_connections_total\{branch="hostUntouched"\} 1$/m);
  // Another pod gets the slot.
  fake.retired[branch.redirected] = 103;
  fake.counters = [
    [0, counts({})],
    [1, counts({ redirected: 1n })],
  ];
  assert.match(await metrics.text(), /^cgroute_connections_total\{branch="redirected"\} 4$/m);
});

test('without resets their counters are there, at zero', async () => {
  const found = lines(await createMetrics(metricSources(resetMetrics, () => undefined)).text());
  assert.deepEqual(
    found.filter((line) => line.startsWith('cgroute_connection')),
    [
      'cgroute_connections_reset_total{direction="outbound"} 0',
      'cgroute_connections_reset_total{direction="inbound"} 0',
      'cgroute_connection_reset_failures_total{errno="EPERM"} 0',
      'cgroute_connection_reset_failures_total{errno="EOPNOTSUPP"} 0',
      'cgroute_connection_reset_failures_total{errno="other"} 0',
    ],
  );
});

test('a counter that no branch has yet is not told', async () => {
  const names = async (metrics: ReturnType<typeof createMetrics>): Promise<string[]> =>
    [...(await metrics.text()).matchAll(/^cgroute_connections_total\{branch="(.*)"\}/gm)]
      .map(([, name = '']) => name)
      .toSorted();
  const fake: Fake = { counters: [], retired: Array.from({ length: 32 }, () => 5), intended: [] };
  const metrics = createMetrics(sourcesOf(fake));
  fake.counters = [[1, { count: Array.from({ length: 32 }, () => 7n) }]];
  assert.deepEqual(
    await names(metrics),
    Object.keys(branch)
      .filter((name) => name !== 'count')
      .toSorted(),
  );
});

test('the latency is a histogram in seconds', async () => {
  const metrics = createMetrics(sourcesOf({ counters: [], retired: [], intended: [] }));
  metrics.mapped(0.004);
  const text = await metrics.text();
  assert.match(text, /^cgroute_enrolment_latency_seconds_bucket\{le="0.0025"\} 0$/m);
  assert.match(text, /^cgroute_enrolment_latency_seconds_bucket\{le="0.005"\} 1$/m);
  assert.match(text, /^cgroute_enrolment_latency_seconds_sum 0.004$/m);
});

test('what is said to be served is served', async () => {
  const text = await createMetrics(sourcesOf({ counters: [], retired: [], intended: [] })).text();
  const served = [...text.matchAll(/^# TYPE (\w+) (\w+)/gm)].map(([, name, type]) => ({ name, type }));
  assert.deepEqual(
    served,
    metricsReference.map(({ name, type }) => ({ name, type })),
  );
  for (const { name, labels } of metricsReference) {
    const line = lines(text).find((each) => each.startsWith(`${name}{`)) ?? '';
    assert.deepEqual(
      [...line.matchAll(/(\w+)="/g)].map(([, label]) => label).filter((label) => label !== 'le'),
      [...labels],
      name,
    );
  }
});

test('names have the prefix, and no label names a pod', () => {
  assert.ok(metricsReference.length > 15);
  for (const { name, type, labels, help } of metricsReference) {
    assert.match(name, /^cgroute_/);
    assert.equal(name.endsWith('_total'), type === 'counter', name);
    assert.doesNotMatch(labels.join(), /pod|namespace|uid/);
    assert.doesNotMatch(help, /\|/, 'it goes into a table');
  }
});
