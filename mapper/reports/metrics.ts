/**
 * What `/metrics` tells, for Prometheus. One table says what there is; all but the
 * latency is read when somebody asks.
 */
import Counter from 'prom-client/lib/counter.js';
import Gauge from 'prom-client/lib/gauge.js';
import Histogram from 'prom-client/lib/histogram.js';
import Registry from 'prom-client/lib/registry.js';
import type { PinnedMaps } from '../../native/data-plane/data-plane.ts';
import { CgrouteError } from '../../native/error.ts';
import { branch, setting } from '../../native/layout/layouts.ts';
import type { SourceState } from '../../watcher/source-state.ts';
import type { ResetFigures } from '../connections/connection-reset.ts';
import { overflowEntries } from '../connections/connection-room.ts';
import type { Restart } from '../kube/kube-resource.ts';
import type { SourceFigures } from '../object-sources/object-source.ts';
import { SHARED_SLOT } from '../maps/pod-slots.ts';
import type { SidecarFigures } from '../sidecars/sidecar-rules.ts';
import type { Verdict } from '../decisions/decision.ts';

/** What the reconciler tells; totals are since the agent's start. */
export interface ReconcilerFigures {
  /** Cgroups of pods. */
  readonly tracked: number;
  /** When each of those that belong to pods that nobody knows was seen, of `performance.now()`. */
  readonly unresolvedSince: readonly number[];
  /** Pods whose entries could not be written. */
  readonly failedPods: number;
  /** By errno. */
  readonly errors: ReadonlyMap<string, number>;
  /** Connections by branch of pods that are no more. */
  readonly retired: readonly number[];
  /** No pod has had counters beyond this slot. */
  readonly highestSlot: number;
}

/** A pod that the source knows, and what it should have now. */
export interface IntendedPod {
  readonly uid: string;
  readonly verdict: Verdict;
  /** By its phase. */
  readonly isRunning: boolean;
}

/** Where the values come from. */
export interface MetricsView {
  readonly version: string;
  readonly maps: Pick<
    PinnedMaps,
    | 'cgroups'
    | 'pods'
    | 'podAddresses'
    | 'connections'
    | 'overflowConnections'
    | 'overflowCount'
    | 'originals'
    | 'settings'
    | 'counters'
  >;
  isReady(): boolean;
  intended(): Iterable<IntendedPod>;
  reconciler(): ReconcilerFigures;
  sources(): readonly SourceState[];
  figures(): SourceFigures;
  /** How often the kernel dropped events, since the agent's start. */
  eventsLost(): number;
  /** Links and entries put back, since the agent's start. */
  driftRepaired(): number;
  sidecars(): SidecarFigures;
  /** Undefined with `existingConnections: keep`. */
  resets(): ResetFigures | undefined;
}

export interface Metrics {
  readonly contentType: string;
  /** In Prometheus's text format. @throws CgrouteError `EBPF` when a map cannot be read */
  text(): Promise<string>;
  /** An object's change has reached the maps. */
  mapped(seconds: number): void;
  /** A map or a program could not be brought up to date, outside of a pod's reconcile. */
  failed(error: unknown): void;
}

interface Sample {
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

interface Own {
  /** What was so when the agent started, to be subtracted. */
  readonly connectionsBefore: readonly number[];
  /** Of {@link Metrics.failed}, by errno. */
  readonly errors: Map<string, number>;
}

interface Definition {
  readonly name: string;
  readonly type: 'gauge' | 'counter';
  readonly help: string;
  readonly labels: readonly string[];
  readonly read: (view: MetricsView, own: Own) => Iterable<Sample>;
}

const OTHER_ERRNO = 'other';
const VERDICTS: readonly string[] = ['in', 'out', 'bypass'] satisfies Verdict[];
const STATES: readonly string[] = ['ok', 'degraded', 'failed', 'off'] satisfies SourceState['state'][];
const BRANCHES = Object.entries(branch).filter(([name]) => name !== 'count');
/** Arrays are always full, so these are the others. */
const COUNTED_MAPS = [
  'cgroups',
  'pods',
  'podAddresses',
  'connections',
  'overflowConnections',
  'originals',
] as const;
// A counter that is first seen at 1 has not increased, as Prometheus reads it: what is to be expected is there from the start, at zero.
const ERRNOS = ['E2BIG', 'ENOMEM', 'EPERM', OTHER_ERRNO];
const NO_RESET_FAILURES: readonly (readonly [string, number])[] = ['EPERM', 'EOPNOTSUPP', OTHER_ERRNO].map(
  (errno) => [errno, 0],
);
const NO_RESTARTS: Readonly<Record<Restart, number>> = {
  access: 0,
  unreachable: 0,
  cut: 0,
  idle: 0,
  refused: 0,
  server: 0,
  expired: 0,
  garbage: 0,
  ended: 0,
  internal: 0,
  timeout: 0,
  relist: 0,
};

const one = (value: number | boolean): Sample[] => [{ labels: {}, value: Number(value) }];
const by = (label: string, values: Iterable<readonly [string, number]>): Sample[] =>
  [...values].map(([text, value]) => ({ labels: { [label]: text }, value }));

function byVerdict(verdicts: Iterable<string>): Sample[] {
  const counts = new Map(VERDICTS.map((verdict) => [verdict, 0]));
  for (const verdict of verdicts) counts.set(verdict, (counts.get(verdict) ?? 0) + 1);
  return by('verdict', counts);
}

/** Pods with an entry, and with a cgroup's entry that leads to it: the programs act on their connections. Verdict by UID. */
function mappedVerdicts({ maps }: MetricsView): Map<string, string> {
  const slots = new Set(maps.cgroups.entries().map(([, { slot }]) => slot));
  const infos = maps.pods.entries().filter(([, { slot }]) => slot !== SHARED_SLOT && slots.has(slot));
  return new Map(infos.map(([, { uid, verdict }]) => [uid, verdict]));
}

function unmappedVerdicts(view: MetricsView): Verdict[] {
  const mapped = mappedVerdicts(view);
  return [...view.intended()]
    .filter(({ uid, verdict, isRunning }) => isRunning && mapped.get(uid) !== verdict)
    .map(({ verdict }) => verdict);
}

/** The kernel keeps count of what the large map holds, and the others are counted in a few calls, so a scrape costs little when they are full. */
function entryCount(maps: MetricsView['maps'], key: (typeof COUNTED_MAPS)[number]): number {
  return key === 'overflowConnections' ? overflowEntries(maps) : maps[key].count();
}

const errnoOf = (error: unknown): string =>
  (error instanceof CgrouteError ? error.errno : undefined) ?? OTHER_ERRNO;

function errorsByErrno(view: MetricsView, own: Own): Map<string, number> {
  const sums = new Map(ERRNOS.map((errno) => [errno, 0]));
  for (const errors of [view.reconciler().errors, own.errors]) {
    for (const [errno, count] of errors) sums.set(errno, (sums.get(errno) ?? 0) + count);
  }
  return sums;
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
    name: 'cgroute_build_info',
    type: 'gauge',
    labels: ['version'],
    help: 'Always 1; the label says which version runs.',
    read: ({ version }) => by('version', [[version, 1]]),
  },
  {
    name: 'cgroute_ready',
    type: 'gauge',
    labels: [],
    help: '1 once programs are attached and all that ran then is mapped.',
    read: (view) => one(view.isReady()),
  },
  {
    name: 'cgroute_pods_intended',
    type: 'gauge',
    labels: ['verdict'],
    help: 'Pods of this node by the verdict that they should have.',
    read: (view) => byVerdict([...view.intended()].map(({ verdict }) => verdict)),
  },
  {
    name: 'cgroute_pods_mapped',
    type: 'gauge',
    labels: ['verdict'],
    help: 'Pods with a cgroup in the maps of the kernel, by the verdict that stands there. Fewer than intended: pods that do not run yet, or that could not be written.',
    read: (view) => byVerdict(mappedVerdicts(view).values()),
  },
  {
    name: 'cgroute_pods_unmapped',
    type: 'gauge',
    labels: ['verdict'],
    help: 'Pods in phase Running, by the verdict that they should have, without a cgroup in the maps of the kernel or with another verdict there.',
    read: (view) => byVerdict(unmappedVerdicts(view)),
  },
  {
    name: 'cgroute_pods_failed',
    type: 'gauge',
    labels: [],
    help: 'Pods of which something could not be written to the maps of the kernel; it is tried again at each sweep.',
    read: (view) => one(view.reconciler().failedPods),
  },
  {
    name: 'cgroute_cgroups_tracked',
    type: 'gauge',
    labels: [],
    help: 'Cgroups of pods below the watched root.',
    read: (view) => one(view.reconciler().tracked),
  },
  {
    name: 'cgroute_cgroups_unresolved',
    type: 'gauge',
    labels: [],
    help: 'Those among them whose pod nobody knows.',
    read: (view) => one(view.reconciler().unresolvedSince.length),
  },
  {
    name: 'cgroute_cgroups_unresolved_age_seconds',
    type: 'gauge',
    labels: [],
    help: 'Seconds since the agent saw the oldest of those; 0 without any.',
    read: (view) => {
      const now = performance.now();
      return one(view.reconciler().unresolvedSince.reduce((age, at) => Math.max(age, (now - at) / 1000), 0));
    },
  },
  {
    name: 'cgroute_map_entries',
    type: 'gauge',
    labels: ['map'],
    help: 'Entries of a map of the kernel. `connection_map` is small and may be full: what finds no room there goes to `connection_overflow_map`.',
    read: ({ maps }) =>
      by(
        'map',
        COUNTED_MAPS.map((key) => [maps[key].name, entryCount(maps, key)] as const),
      ),
  },
  {
    name: 'cgroute_map_capacity',
    type: 'gauge',
    labels: ['map'],
    help: 'Entries that a map of the kernel has room for.',
    read: ({ maps }) =>
      by(
        'map',
        COUNTED_MAPS.map((key) => [maps[key].name, maps[key].info.maxEntries] as const),
      ),
  },
  {
    name: 'cgroute_map_errors_total',
    type: 'counter',
    labels: ['errno'],
    help: 'Failures to bring maps and programs up to date, by errno; `other` for one without.',
    read: (view, own) => by('errno', errorsByErrno(view, own)),
  },
  {
    name: 'cgroute_source_state',
    type: 'gauge',
    labels: ['source', 'state'],
    help: '1 for the state that a source of facts is in (ok, degraded, failed, off), else 0.',
    read: (view) =>
      view
        .sources()
        .flatMap(({ name, state }) =>
          STATES.map((text) => ({ labels: { source: name, state: text }, value: Number(text === state) })),
        ),
  },
  {
    name: 'cgroute_source_restarts_total',
    type: 'counter',
    labels: ['source', 'reason'],
    help: 'How often a list or watch of the API server began anew, by reason.',
    read: (view) =>
      Object.entries(view.figures().restarts).flatMap(([source, reasons]) =>
        Object.entries({ ...NO_RESTARTS, ...reasons }).map(([reason, value]) => ({
          labels: { source, reason },
          value,
        })),
      ),
  },
  {
    name: 'cgroute_source_last_event_age_seconds',
    type: 'gauge',
    labels: ['source'],
    help: 'Seconds since the API server last said anything about it.',
    read: (view) =>
      by(
        'source',
        Object.entries(view.figures().lastEventAgeMs).map(([source, ms]) => [source, ms / 1000] as const),
      ),
  },
  {
    name: 'cgroute_api_requests_total',
    type: 'counter',
    labels: [],
    help: 'Requests to the API server.',
    read: (view) => one(view.figures().requests),
  },
  {
    name: 'cgroute_events_lost_total',
    type: 'counter',
    labels: [],
    help: 'How often the kernel dropped process events; a sweep followed.',
    read: (view) => one(view.eventsLost()),
  },
  {
    name: 'cgroute_drift_repaired_total',
    type: 'counter',
    labels: [],
    help: 'Links of programs, entries of maps and rules for sidecars that somebody else removed or altered, put back.',
    read: (view) => one(view.driftRepaired()),
  },
  {
    name: 'cgroute_sidecar_pods',
    type: 'gauge',
    labels: ['state'],
    help: 'Pods whose sidecar should be out of their path: it is (bypassed, short_circuited), it cannot be yet as no process or no rules of a sidecar were found (waiting), or its rules could not be changed (failing).',
    read: (view) => {
      const { bypassed, shortCircuited, waiting, failing } = view.sidecars();
      return by('state', Object.entries({ bypassed, short_circuited: shortCircuited, waiting, failing }));
    },
  },
  {
    name: 'cgroute_sidecar_failures_total',
    type: 'counter',
    labels: [],
    help: "Failures to change rules in a pod's network namespace; each is tried again.",
    read: (view) => one(view.sidecars().failures),
  },
  {
    name: 'cgroute_connections_reset_total',
    type: 'counter',
    labels: ['direction'],
    help: 'Open connections that were reset because a verdict changed (`existingConnections: reset`): opened by the pod (outbound), or by processes of the host to it (inbound).',
    read: (view) => {
      const { outbound = 0, inbound = 0 } = view.resets() ?? {};
      return by('direction', Object.entries({ outbound, inbound }));
    },
  },
  {
    name: 'cgroute_connection_reset_failures_total',
    type: 'counter',
    labels: ['errno'],
    help: 'How often the connections that a change of a verdict concerns could not all be reset, by errno; `other` for one without. They go on as they were.',
    read: (view) => by('errno', new Map([...NO_RESET_FAILURES, ...(view.resets()?.failures ?? [])])),
  },
  {
    name: 'cgroute_connections_total',
    type: 'counter',
    labels: ['branch'],
    help: "Connections since the agent's start, by what became of them; the branches are the counters of `cgroute status`.",
    read: (view, own) => {
      const sums = connections(view);
      return by(
        'branch',
        BRANCHES.map(
          ([name], at) => [name, Math.max(0, (sums[at] ?? 0) - (own.connectionsBefore[at] ?? 0))] as const,
        ),
      );
    },
  },
  {
    name: 'cgroute_proxy_known',
    type: 'gauge',
    labels: [],
    help: "1 while the maps hold the address of the node's proxy.",
    read: ({ maps }) =>
      one(
        maps.settings.get(setting.proxyIp4) !== undefined ||
          maps.settings.get(setting.proxyIp6) !== undefined,
      ),
  },
];

const LATENCY = {
  name: 'cgroute_enrolment_latency_seconds',
  help: "From an object's change as the source told it, to the last map write for a pod that runs; changes that need no write are not counted.",
  buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
};

/** @throws CgrouteError `EBPF` when the counters cannot be read */
export function createMetrics(view: MetricsView): Metrics {
  const registry = new Registry();
  const registers = [registry];
  // A process's counters begin at zero, and Prometheus reads a smaller value as a new process.
  const own: Own = { connectionsBefore: connections(view), errors: new Map() };
  for (const { name, help, labels, type, read } of DEFINITIONS) {
    const options = { name, help, labelNames: [...labels], registers };
    if (type === 'gauge') {
      new Gauge({
        ...options,
        collect() {
          this.reset();
          for (const { labels: at, value } of read(view, own)) this.set(at, value);
        },
      });
    } else {
      new Counter({
        ...options,
        collect() {
          this.reset();
          for (const { labels: at, value } of read(view, own)) this.inc(at, value);
        },
      });
    }
  }
  const latency = new Histogram({ ...LATENCY, registers });
  return {
    contentType: registry.contentType,
    text: () => registry.metrics(),
    mapped: (seconds) => latency.observe(seconds),
    failed(error) {
      const errno = errnoOf(error);
      own.errors.set(errno, (own.errors.get(errno) ?? 0) + 1);
    },
  };
}

export interface MetricReference {
  readonly name: string;
  readonly type: 'gauge' | 'counter' | 'histogram';
  readonly labels: readonly string[];
  readonly help: string;
}

/** What there is, in the order in which it is served; for docs/metrics.md, and to check dashboards and alerts. */
export const metricsReference: readonly MetricReference[] = [
  ...DEFINITIONS.map(({ name, type, labels, help }): MetricReference => ({ name, type, labels, help })),
  { name: LATENCY.name, type: 'histogram', labels: [], help: LATENCY.help },
];
