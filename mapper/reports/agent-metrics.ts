/** Metrics of the agent itself: what it is, how its sources of facts are, what it had to put right. */
import type { SourceState } from '../../watcher/source-state.ts';
import { by, one, type MetricOf } from './metric-source.ts';

export interface AgentFigures {
  readonly version: string;
  readonly isReady: boolean;
}

export const agentMetrics: readonly MetricOf<AgentFigures>[] = [
  {
    name: 'cgroute_build_info',
    type: 'gauge',
    labels: ['version'],
    help: 'Always 1; the label says which version runs.',
    samples: ({ version }) => by('version', [[version, 1]]),
  },
  {
    name: 'cgroute_ready',
    type: 'gauge',
    labels: [],
    help: '1 once programs are attached and all that ran then is mapped.',
    samples: ({ isReady }) => one(isReady),
  },
];

const STATES: readonly string[] = ['ok', 'degraded', 'failed', 'off'] satisfies SourceState['state'][];

export const sourceStateMetrics: readonly MetricOf<readonly SourceState[]>[] = [
  {
    name: 'cgroute_source_state',
    type: 'gauge',
    labels: ['source', 'state'],
    help: '1 for the state that a source of facts is in (ok, degraded, failed, off), else 0.',
    samples: (sources) =>
      sources.flatMap(({ name, state }) =>
        STATES.map((text) => ({ labels: { source: name, state: text }, value: Number(text === state) })),
      ),
  },
];

/** How often the kernel dropped events, since the agent's start. */
export const lostEventMetrics: readonly MetricOf<number>[] = [
  {
    name: 'cgroute_events_lost_total',
    type: 'counter',
    labels: [],
    help: 'How often the kernel dropped process events; a sweep followed.',
    samples: one,
  },
];

/** Links, entries and rules put back, since the agent's start. */
export const driftMetrics: readonly MetricOf<number>[] = [
  {
    name: 'cgroute_drift_repaired_total',
    type: 'counter',
    labels: [],
    help: 'Links of programs, entries of maps and rules for sidecars that somebody else removed or altered, put back.',
    samples: one,
  },
];
