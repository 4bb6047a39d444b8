/** Metrics of the source of objects: what the API server was asked, and how it is followed. */
import type { Restart } from '../kube/kube-resource.ts';
import type { SourceFigures } from '../object-sources/object-source.ts';
import { by, one, type MetricOf } from './metric-source.ts';

/** All are there from the start, at zero. */
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

export const objectSourceMetrics: readonly MetricOf<SourceFigures>[] = [
  {
    name: 'cgroute_source_restarts_total',
    type: 'counter',
    labels: ['source', 'reason'],
    help: 'How often a list or watch of the API server began anew, by reason.',
    samples: ({ restarts }) =>
      Object.entries(restarts).flatMap(([source, reasons]) =>
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
    samples: ({ lastEventAgeMs }) =>
      by(
        'source',
        Object.entries(lastEventAgeMs).map(([source, ms]) => [source, ms / 1000] as const),
      ),
  },
  {
    name: 'cgroute_api_requests_total',
    type: 'counter',
    labels: [],
    help: 'Requests to the API server.',
    samples: ({ requests }) => one(requests),
  },
];
