/** The table of metrics, without an agent. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { test } from 'node:test';
import { createMetrics, metricsReference, type MetricsView } from '../../mapper/metrics.ts';
import type { Verdict } from '../../mapper/verdict.ts';
import { branch } from '../../native/layouts.ts';

type Maps = MetricsView['maps'];

/** A map as far as metrics read it. */
function fakeMap<K>(name: string, entries: [K, unknown][], maxEntries = 10) {
  return { name, info: { keySize: 4, valueSize: 4, maxEntries }, keys: () => entries.map(([key]) => key), entries: () => entries, get: (key: K) => entries.find(([of]) => of === key)?.[1] };
}

interface Fake {
  counters: [number, { count: bigint[] }][];
  retired: number[];
  intended: Verdict[];
}

function counts(values: Partial<Record<keyof typeof branch, bigint>>): { count: bigint[] } {
  const count = Array.from({ length: branch.count }, () => 0n);
  for (const [name, value] of Object.entries(values)) count[branch[name as keyof typeof branch]] = value;
  return { count };
}

function viewOf(fake: Fake): MetricsView {
  return {
    version: '1.2.3',
    maps: {
      cgroups: fakeMap<bigint>('cgroup_info_map', [[7n, { slot: 1 }], [8n, { slot: 1 }], [9n, { slot: 0 }]]),
      pods: fakeMap('pod_info_map', [[{ text: 'a' }, { slot: 1, verdict: 'in' }], [{ text: 'b' }, { slot: 2, verdict: 'in' }], [{ text: 'c' }, { slot: 0, verdict: 'out' }]]),
      podAddresses: fakeMap('pod_ip_map', []),
      connections: fakeMap('connection_map', [], 1000),
      originals: fakeMap('original_dst_map', []),
      settings: fakeMap<number>('settings', []),
      get counters() { return fakeMap('pod_counters_map', fake.counters); },
    } as unknown as Maps,
    isReady: () => true,
    intended: () => fake.intended,
    reconciler: () => ({ tracked: 3, unresolved: 1, errors: new Map([['E2BIG', 2]]), retired: fake.retired, highestSlot: 1 }),
    sources: () => [{ name: 'pods', state: 'degraded', detail: '' }],
    figures: () => ({ requests: 5, restarts: { pods: { expired: 4 } }, lastEventAgeMs: { pods: 1500 } }),
    eventsLost: () => 6,
    driftRepaired: () => 8,
  };
}

const lines = (text: string): string[] => text.split('\n').filter((line) => line !== '' && !line.startsWith('#'));

test('each value is where its name says, read when it is asked for', async () => {
  const fake: Fake = { counters: [], retired: [], intended: ['in', 'in', 'out'] };
  const metrics = createMetrics(viewOf(fake));
  const has = async (...wanted: string[]): Promise<void> => {
    const found = lines(await metrics.text());
    assert.deepEqual(wanted.filter((line) => !found.includes(line)), [], found.join('\n'));
  };
  await has(
    'cgroute_build_info{version="1.2.3"} 1', 'cgroute_ready 1', 'cgroute_proxy_known 0',
    'cgroute_pods_intended{verdict="in"} 2', 'cgroute_pods_intended{verdict="out"} 1', 'cgroute_pods_intended{verdict="bypass"} 0',
    'cgroute_cgroups_tracked 3', 'cgroute_cgroups_unresolved 1', 'cgroute_map_errors_total{errno="E2BIG"} 2',
    'cgroute_map_entries{map="cgroup_info_map"} 3', 'cgroute_map_capacity{map="connection_map"} 1000',
    'cgroute_source_state{source="pods",state="degraded"} 1', 'cgroute_source_state{source="pods",state="ok"} 0',
    'cgroute_source_restarts_total{source="pods",reason="expired"} 4', 'cgroute_source_last_event_age_seconds{source="pods"} 1.5',
    'cgroute_api_requests_total 5', 'cgroute_events_lost_total 6', 'cgroute_drift_repaired_total 8',
  );
  fake.intended = ['bypass'];
  await has('cgroute_pods_intended{verdict="in"} 0', 'cgroute_pods_intended{verdict="bypass"} 1', 'cgroute_map_errors_total{errno="E2BIG"} 2');
});

test('a pod is mapped when a cgroup leads to it; one without a slot of its own is not', async () => {
  const text = await createMetrics(viewOf({ counters: [], retired: [], intended: [] })).text();
  assert.match(text, /^cgroute_pods_mapped\{verdict="in"\} 1$/m);
  assert.match(text, /^cgroute_pods_mapped\{verdict="out"\} 0$/m);
});

test('connections begin at zero with the agent, and those of a pod that is gone still count', async () => {
  const fake: Fake = { counters: [[0, counts({ hostUntouched: 40n })], [1, counts({ redirected: 100n })]], retired: [], intended: [] };
  const metrics = createMetrics(viewOf(fake));
  assert.match(await metrics.text(), /^cgroute_connections_total\{branch="redirected"\} 0$/m);
  fake.counters = [[0, counts({ hostUntouched: 41n })], [1, counts({ redirected: 103n })]];
  assert.match(await metrics.text(), /^cgroute_connections_total\{branch="redirected"\} 3$/m);
  assert.match(await metrics.text(), /^cgroute_connections_total\{branch="hostUntouched"\} 1$/m);
  // Another pod gets the slot.
  fake.retired[branch.redirected] = 103;
  fake.counters = [[0, counts({})], [1, counts({ redirected: 1n })]];
  assert.match(await metrics.text(), /^cgroute_connections_total\{branch="redirected"\} 4$/m);
});

test('the latency is a histogram in seconds', async () => {
  const metrics = createMetrics(viewOf({ counters: [], retired: [], intended: [] }));
  metrics.mapped(0.004);
  const text = await metrics.text();
  assert.match(text, /^cgroute_enrolment_latency_seconds_bucket\{le="0.0025"\} 0$/m);
  assert.match(text, /^cgroute_enrolment_latency_seconds_bucket\{le="0.005"\} 1$/m);
  assert.match(text, /^cgroute_enrolment_latency_seconds_sum 0.004$/m);
});

test('docs/metrics.md is what the table says, and the table is what is served', async () => {
  const document = readFileSync(resolve(import.meta.dirname, '../../docs/metrics.md'), 'utf8');
  assert.equal(document, metricsReference());
  const text = await createMetrics(viewOf({ counters: [], retired: [], intended: [] })).text();
  const served = [...text.matchAll(/^# TYPE (\w+)/gm)].map(([, name]) => name);
  assert.deepEqual([...document.matchAll(/^\| `(\w+)`/gm)].map(([, name]) => name), served);
});

test('names have the prefix, and no label names a pod', () => {
  const rows = [...metricsReference().matchAll(/^\| `(\w+)` \| (\w+) \| (.*?) \|/gm)];
  assert.ok(rows.length > 15);
  for (const [, name = '', type, labels = ''] of rows) {
    assert.match(name, /^cgroute_/);
    assert.equal(name.endsWith('_total'), type === 'counter', name);
    assert.doesNotMatch(labels, /pod|namespace|uid/);
  }
});
