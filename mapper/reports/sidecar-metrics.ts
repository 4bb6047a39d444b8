/** Metrics of sidecars that should be out of their pods' path. */
import type { SidecarFigures } from '../sidecars/sidecar-rules.ts';
import { by, one, type MetricOf } from './metric-source.ts';

export const sidecarMetrics: readonly MetricOf<SidecarFigures>[] = [
  {
    name: 'cgroute_sidecar_pods',
    type: 'gauge',
    labels: ['state'],
    help: 'Pods whose sidecar should be out of their path: it is (bypassed, short_circuited), it cannot be yet as no process or no rules of a sidecar were found (waiting), or its rules could not be changed (failing).',
    samples: ({ bypassed, shortCircuited, waiting, failing }) =>
      by('state', Object.entries({ bypassed, short_circuited: shortCircuited, waiting, failing })),
  },
  {
    name: 'cgroute_sidecar_failures_total',
    type: 'counter',
    labels: [],
    help: "Failures to change rules in a pod's network namespace; each is tried again.",
    samples: ({ failures }) => one(failures),
  },
];
