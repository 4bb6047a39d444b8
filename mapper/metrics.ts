/**
 * What `/metrics` tells, for Prometheus. One table says what there is; all but the
 * latency is read when somebody asks.
 */
import Counter from 'prom-client/lib/counter.js';
import Gauge from 'prom-client/lib/gauge.js';
import Histogram from 'prom-client/lib/histogram.js';
import Registry from 'prom-client/lib/registry.js';
import type { PinnedMaps } from '../native/data-plane.ts';
import { branch, setting } from '../native/layouts.ts';
import type { SourceState } from '../watcher/source-state.ts';
import type { SourceFigures } from './object-source.ts';
import { SHARED_SLOT } from './pod-slots.ts';
import type { Verdict } from './verdict.ts';

/** What the reconciler tells; totals are since the agent's start. */
export interface ReconcilerFigures {
  /** Cgroups of pods, and how many of them belong to pods that nobody knows. */
  readonly tracked: number;
  readonly unresolved: number;
  /** By errno. */
  readonly errors: ReadonlyMap<string, number>;
  /** Connections by branch of pods that are no more. */
  readonly retired: readonly number[];
  /** No pod has had counters beyond this slot. */
  readonly highestSlot: number;
}

/** Where the values come from. */
export interface MetricsView {
  readonly version: string;
  readonly maps: Pick<PinnedMaps, 'cgroups' | 'pods' | 'podAddresses' | 'connections' | 'originals' | 'settings' | 'counters'>;
  isReady(): boolean;
  /** The verdict of each pod that the source knows, as it should be now. */
  intended(): Iterable<Verdict>;
  reconciler(): ReconcilerFigures;
  sources(): readonly SourceState[];
  figures(): SourceFigures;
  /** How often the kernel dropped events, since the agent's start. */
  eventsLost(): number;
  /** Links put back, since the agent's start. */
  driftRepaired(): number;
}

export interface Metrics {
  readonly contentType: string;
  /** In Prometheus's text format. @throws CgrouteError `EBPF` when a map cannot be read */
  text(): Promise<string>;
  /** An object's change has reached the maps. */
  mapped(seconds: number): void;
}

interface Sample {
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/** What was so when the agent started, to be subtracted. */
interface Baseline {
  readonly connections: readonly number[];
}

interface Definition {
  readonly name: string;
  readonly type: 'gauge' | 'counter';
  readonly help: string;
  readonly labels: readonly string[];
  readonly read: (view: MetricsView, baseline: Baseline) => Iterable<Sample>;
}

const VERDICTS: readonly string[] = ['in', 'out', 'bypass'] satisfies Verdict[];
const STATES: readonly string[] = ['ok', 'degraded', 'failed', 'off'] satisfies SourceState['state'][];
const BRANCHES = Object.entries(branch).filter(([name]) => name !== 'count');
/** Arrays are always full, so these are the others. */
const COUNTED_MAPS = ['cgroups', 'pods', 'podAddresses', 'connections', 'originals'] as const;

const one = (value: number | boolean): Sample[] => [{ labels: {}, value: Number(value) }];
const by = (label: string, values: Iterable<readonly [string, number]>): Sample[] => [...values].map(([text, value]) => ({ labels: { [label]: text }, value }));

function byVerdict(verdicts: Iterable<string>): Sample[] {
  const counts = new Map(VERDICTS.map((verdict) => [verdict, 0]));
  for (const verdict of verdicts) counts.set(verdict, (counts.get(verdict) ?? 0) + 1);
  return by('verdict', counts);
}

/** A pod with an entry, and with a cgroup's entry that leads to it: the programs act on its connections. */
function* mappedVerdicts({ maps }: MetricsView): Iterable<string> {
  const slots = new Set(maps.cgroups.entries().map(([, { slot }]) => slot));
  for (const [, { slot, verdict }] of maps.pods.entries()) if (slot !== SHARED_SLOT && slots.has(slot)) yield verdict;
}

/** All connections by branch: of the pods that are, of those that were, and of the host. */
function connections({ maps, reconciler }: Pick<MetricsView, 'maps' | 'reconciler'>): number[] {
  const { retired, highestSlot } = reconciler();
  const sums = BRANCHES.map(([, index]) => retired[index] ?? 0);
  for (let slot = SHARED_SLOT; slot <= highestSlot; slot++) {
    const count = maps.counters.get(slot)?.count ?? [];
    BRANCHES.forEach(([, index], at) => (sums[at] = (sums[at] ?? 0) + Number(count[index] ?? 0n)));
  }
  return sums;
}

const DEFINITIONS: readonly Definition[] = [
  {
    name: 'cgroute_build_info', type: 'gauge', labels: ['version'], help: 'Always 1; the label says which version runs.',
    read: ({ version }) => by('version', [[version, 1]]),
  },
  {
    name: 'cgroute_ready', type: 'gauge', labels: [], help: '1 once programs are attached and all that ran then is mapped.',
    read: (view) => one(view.isReady()),
  },
  {
    name: 'cgroute_pods_intended', type: 'gauge', labels: ['verdict'], help: 'Pods of this node by the verdict that they should have.',
    read: (view) => byVerdict(view.intended()),
  },
  {
    name: 'cgroute_pods_mapped', type: 'gauge', labels: ['verdict'], help: 'Pods with a cgroup in the maps of the kernel, by the verdict that stands there. Fewer than intended: pods that do not run yet, or that could not be written.',
    read: (view) => byVerdict(mappedVerdicts(view)),
  },
  {
    name: 'cgroute_cgroups_tracked', type: 'gauge', labels: [], help: 'Cgroups of pods below the watched root.',
    read: (view) => one(view.reconciler().tracked),
  },
  {
    name: 'cgroute_cgroups_unresolved', type: 'gauge', labels: [], help: 'Those among them whose pod nobody knows.',
    read: (view) => one(view.reconciler().unresolved),
  },
  {
    name: 'cgroute_map_entries', type: 'gauge', labels: ['map'], help: 'Entries of a map of the kernel.',
    read: ({ maps }) => by('map', COUNTED_MAPS.map((key) => [maps[key].name, maps[key].keys().length] as const)),
  },
  {
    name: 'cgroute_map_capacity', type: 'gauge', labels: ['map'], help: 'Entries that a map of the kernel has room for.',
    read: ({ maps }) => by('map', COUNTED_MAPS.map((key) => [maps[key].name, maps[key].info.maxEntries] as const)),
  },
  {
    name: 'cgroute_map_errors_total', type: 'counter', labels: ['errno'], help: 'Failures to bring the maps up to date, by errno; "other" for one without.',
    read: (view) => by('errno', view.reconciler().errors),
  },
  {
    name: 'cgroute_source_state', type: 'gauge', labels: ['source', 'state'], help: '1 for the state that a source of facts is in (ok, degraded, failed, off), else 0.',
    read: (view) => view.sources().flatMap(({ name, state }) => STATES.map((text) => ({ labels: { source: name, state: text }, value: Number(text === state) }))),
  },
  {
    name: 'cgroute_source_restarts_total', type: 'counter', labels: ['source', 'reason'], help: 'How often a list or watch of the API server began anew, by reason.',
    read: (view) => Object.entries(view.figures().restarts).flatMap(([source, reasons]) => Object.entries(reasons).map(([reason, value]) => ({ labels: { source, reason }, value }))),
  },
  {
    name: 'cgroute_source_last_event_age_seconds', type: 'gauge', labels: ['source'], help: 'Seconds since the API server last said anything about it.',
    read: (view) => by('source', Object.entries(view.figures().lastEventAgeMs).map(([source, ms]) => [source, ms / 1000] as const)),
  },
  {
    name: 'cgroute_api_requests_total', type: 'counter', labels: [], help: 'Requests to the API server.',
    read: (view) => one(view.figures().requests),
  },
  {
    name: 'cgroute_events_lost_total', type: 'counter', labels: [], help: 'How often the kernel dropped process events; a sweep followed.',
    read: (view) => one(view.eventsLost()),
  },
  {
    name: 'cgroute_drift_repaired_total', type: 'counter', labels: [], help: 'Links of programs that somebody else removed, put back.',
    read: (view) => one(view.driftRepaired()),
  },
  {
    name: 'cgroute_connections_total', type: 'counter', labels: ['branch'], help: "Connections since the agent's start, by what became of them; the branches are the counters of `cgroute status`.",
    read: (view, baseline) => {
      const sums = connections(view);
      return by('branch', BRANCHES.map(([name], at) => [name, Math.max(0, (sums[at] ?? 0) - (baseline.connections[at] ?? 0))] as const));
    },
  },
  {
    name: 'cgroute_proxy_known', type: 'gauge', labels: [], help: "1 while the maps hold the address of the node's proxy.",
    read: ({ maps }) => one(maps.settings.get(setting.proxyIp4) !== undefined || maps.settings.get(setting.proxyIp6) !== undefined),
  },
];

const LATENCY = {
  name: 'cgroute_enrolment_latency_seconds',
  help: "From an object's change as the source told it, to the last map write for a pod that runs.",
  buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
};

/** @throws CgrouteError `EBPF` when the counters cannot be read */
export function createMetrics(view: MetricsView): Metrics {
  const registry = new Registry();
  const registers = [registry];
  // A process's counters begin at zero, and Prometheus reads a smaller value as a new process.
  const baseline: Baseline = { connections: connections(view) };
  for (const { name, help, labels, type, read } of DEFINITIONS) {
    const options = { name, help, labelNames: [...labels], registers };
    if (type === 'gauge') {
      new Gauge({ ...options, collect() {
        this.reset();
        for (const { labels: at, value } of read(view, baseline)) this.set(at, value);
      } });
    } else {
      new Counter({ ...options, collect() {
        this.reset();
        for (const { labels: at, value } of read(view, baseline)) this.inc(at, value);
      } });
    }
  }
  const latency = new Histogram({ ...LATENCY, registers });
  return {
    contentType: registry.contentType,
    text: () => registry.metrics(),
    mapped: (seconds) => latency.observe(seconds),
  };
}

/** docs/metrics.md. */
export function metricsReference(): string {
  const rows = [...DEFINITIONS, { ...LATENCY, type: 'histogram', labels: [] }].map(({ name, type, labels, help }) =>
    `| \`${name}\` | ${type} | ${labels.map((label) => `\`${label}\``).join(', ')} | ${help} |`);
  return `<!-- Generated from the table in mapper/metrics.ts. -->

# Metrics

\`GET /metrics\` at the address of \`--http\`, in the text format of Prometheus. No label names a pod. While the agent starts, the answer is 503.

| metric | type | labels | |
|---|---|---|---|
${rows.join('\n')}
`;
}
