/**
 * What `/metrics` tells, for Prometheus: which metrics there are, and the walk over
 * those who know their values. All but the latency is read when somebody asks.
 */
import Counter from 'prom-client/lib/counter.js';
import Gauge from 'prom-client/lib/gauge.js';
import Histogram from 'prom-client/lib/histogram.js';
import Registry from 'prom-client/lib/registry.js';
import { agentMetrics, driftMetrics, lostEventMetrics, sourceStateMetrics } from './agent-metrics.ts';
import { connectionMetrics, resetMetrics } from './connection-metrics.ts';
import { mapErrorMetrics, mapMetrics } from './map-metrics.ts';
import { errnoOf, metricSources, type Metric, type MetricSource, type Sample } from './metric-source.ts';
import { objectSourceMetrics } from './object-source-metrics.ts';
import { cgroupMetrics, podMetrics } from './pod-metrics.ts';
import { proxyMetrics } from './proxy-metrics.ts';
import { sidecarMetrics } from './sidecar-metrics.ts';

/** Every feature's, in the order in which they are documented and served. */
const TABLES: readonly (readonly Metric[])[] = [
  agentMetrics,
  podMetrics,
  cgroupMetrics,
  mapMetrics,
  mapErrorMetrics,
  sourceStateMetrics,
  objectSourceMetrics,
  lostEventMetrics,
  driftMetrics,
  sidecarMetrics,
  resetMetrics,
  connectionMetrics,
  proxyMetrics,
];

const LATENCY = {
  name: 'cgroute_enrolment_latency_seconds',
  help: "From an object's change as the source told it, to the last map write for a pod that runs; changes that need no write are not counted.",
  buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
};

export interface MetricReference {
  readonly name: string;
  readonly type: Metric['type'] | 'histogram';
  readonly labels: readonly string[];
  readonly help: string;
}

/** What there is, in the order in which it is served; for docs/metrics.md, and to check dashboards and alerts. */
export const metricsReference: readonly MetricReference[] = [
  ...TABLES.flat().map(({ name, type, labels, help }): MetricReference => ({ name, type, labels, help })),
  { name: LATENCY.name, type: 'histogram', labels: [], help: LATENCY.help },
];

export interface Metrics {
  readonly contentType: string;
  /** In Prometheus's text format. @throws CgrouteError `EBPF` when a map cannot be read */
  text(): Promise<string>;
  /** An object's change has reached the maps. */
  mapped(seconds: number): void;
  /** A map or a program could not be brought up to date, outside of a pod's reconcile. */
  failed(error: unknown): void;
}

/** @param sources of all features, in any order */
export function createMetrics(sources: readonly MetricSource[]): Metrics {
  const registry = new Registry();
  const failures = new Map<string, number>();
  const all = [...sources, ...metricSources(mapErrorMetrics, () => failures)];
  for (const sourcesOfOne of Map.groupBy(all.toSorted(byPlace), ({ name }) => name).values())
    register(registry, sourcesOfOne);
  const latency = new Histogram({ ...LATENCY, registers: [registry] });
  return {
    contentType: registry.contentType,
    text: () => registry.metrics(),
    mapped: (seconds) => latency.observe(seconds),
    failed(error) {
      const errno = errnoOf(error);
      failures.set(errno, (failures.get(errno) ?? 0) + 1);
    },
  };
}

function byPlace(a: Metric, b: Metric): number {
  const placeOf = ({ name }: Metric): number => metricsReference.findIndex((metric) => metric.name === name);
  return placeOf(a) - placeOf(b);
}

function register(registry: Registry, sources: readonly MetricSource[]): void {
  const [first] = sources;
  if (first === undefined) return;
  const { name, help, labels, type } = first;
  const options = { name, help, labelNames: [...labels], registers: [registry] };
  const samples = (): Iterable<Sample> => sources.flatMap(({ collect }) => [...collect()]);
  if (type === 'gauge') {
    new Gauge({
      ...options,
      collect() {
        this.reset();
        for (const { labels: at, value } of samples()) this.set(at, value);
      },
    });
  } else {
    new Counter({
      ...options,
      collect() {
        this.reset();
        for (const { labels: at, value } of samples()) this.inc(at, value);
      },
    });
  }
}
