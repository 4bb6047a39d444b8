/** Metrics of connections: what became of them, and those that were reset. */
import type { PinnedMaps } from '../../native/data-plane/maps.ts';
import { branch } from '../../native/layout/layouts.ts';
import type { ResetFigures } from '../connections/connection-reset.ts';
import { SHARED_SLOT } from '../maps/pod-slots.ts';
import { by, OTHER_ERRNO, type MetricOf } from './metric-source.ts';

/** These are there from the start, at zero. */
const NO_RESET_FAILURES = ['EPERM', 'EOPNOTSUPP', OTHER_ERRNO].map((errno) => [errno, 0] as const);

const NO_RESETS: ResetFigures = { outbound: 0, inbound: 0, failures: new Map() };

/** Undefined with `existingConnections: keep`. */
export const resetMetrics: readonly MetricOf<ResetFigures | undefined>[] = [
  {
    name: 'cgroute_connections_reset_total',
    type: 'counter',
    labels: ['direction'],
    help: 'Open connections that were reset because a verdict changed (`existingConnections: reset`): opened by the pod (outbound), or by processes of the host to it (inbound).',
    samples: ({ outbound, inbound } = NO_RESETS) => by('direction', Object.entries({ outbound, inbound })),
  },
  {
    name: 'cgroute_connection_reset_failures_total',
    type: 'counter',
    labels: ['errno'],
    help: 'How often the connections that a change of a verdict concerns could not all be reset, by errno; `other` for one without. They go on as they were.',
    samples: ({ failures } = NO_RESETS) => by('errno', new Map([...NO_RESET_FAILURES, ...failures])),
  },
];

const BRANCHES = Object.entries(branch).filter(([name]) => name !== 'count');

/** Where the kernel's counters are, of pods that are and of those that were. */
export interface ConnectionCounters {
  readonly maps: Pick<PinnedMaps, 'counters'>;
  former(): FormerConnections;
}

export interface FormerConnections {
  /** Connections by branch of pods that are no more. */
  readonly retired: readonly number[];
  /** No pod has had counters beyond this slot. */
  readonly highestSlot: number;
}

/** All connections by branch: of the pods that are, of those that were, and of the host. */
function connections({ maps, former }: ConnectionCounters): number[] {
  const { retired, highestSlot } = former();
  const sums = BRANCHES.map(([, index]) => retired[index] ?? 0);
  for (let slot = SHARED_SLOT; slot <= highestSlot; slot++) {
    const count = maps.counters.get(slot)?.count ?? [];
    BRANCHES.forEach(([, index], at) => {
      sums[at] = (sums[at] ?? 0) + Number(count[index] ?? 0n);
    });
  }
  return sums;
}

/**
 * How many there have been since this call, by the name of the branch. A process's
 * counters begin at zero, and Prometheus reads a smaller value as a new process.
 * @throws CgrouteError `EBPF` when the counters cannot be read, now and later
 */
export function connectionsFromNow(counters: ConnectionCounters): () => ReadonlyMap<string, number> {
  const before = connections(counters);
  return () => {
    const sums = connections(counters);
    return new Map(
      BRANCHES.map(([name], at) => [name, Math.max(0, (sums[at] ?? 0) - (before[at] ?? 0))] as const),
    );
  };
}

export const connectionMetrics: readonly MetricOf<ReadonlyMap<string, number>>[] = [
  {
    name: 'cgroute_connections_total',
    type: 'counter',
    labels: ['branch'],
    help: "Connections since the agent's start, by what became of them; the branches are the counters of `cgroute status`.",
    samples: (counts) => by('branch', counts),
  },
];
