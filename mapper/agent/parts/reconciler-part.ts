/** The kernel's maps, true to what is known of pods. */
import { connectionMetrics, connectionsFromNow } from '../../reports/connection-metrics.ts';
import { mapErrorMetrics } from '../../reports/map-metrics.ts';
import { metricSources, type MetricSource } from '../../reports/metric-source.ts';
import { cgroupMetrics, podMetrics } from '../../reports/pod-metrics.ts';
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';

export function reconcilerPart(core: AgentCore): AgentPart {
  const { reconciler, host } = core;
  return {
    name: 'reconciler',
    start() {
      // The agent's own cgroup is known before any other, as it has to ask who the pods are.
      const own = host.ownCgroup();
      if (own !== undefined) host.ensure(own);
    },
    cgroupAppeared: (owned) => reconciler.cgroupAppeared(owned),
    cgroupGone: (owned) => reconciler.cgroupGone(owned),
    wantsProcess: (cgroupId) => reconciler.wantsProcess(cgroupId),
    processSeen: ({ cgroupId }) => reconciler.processSeen(cgroupId),
    podsChanged: (uids) => reconciler.objectsChanged(uids),
    takeOver: () => reconciler.removeLeftovers(),
    look: () => reconciler.retryFailed(),
    repairs: reconciler.repairs(),
    metrics: metricsOf(core),
    [Symbol.dispose]: () => reconciler.stop(),
  };
}

function metricsOf({ reconciler, dataPlane: { maps }, inventory, enrolment }: AgentCore): MetricSource[] {
  const figures = () => reconciler.figures;
  return [
    ...metricSources(podMetrics, () => ({
      maps,
      intended: () =>
        [...inventory.pods()].map((pod) => ({
          uid: pod.uid,
          isRunning: pod.phase === 'Running',
          verdict: enrolment.decide(pod).verdict,
        })),
      failedPods: () => figures().failedPods,
    })),
    ...metricSources(cgroupMetrics, figures),
    ...metricSources(mapErrorMetrics, () => figures().errors),
    ...metricSources(connectionMetrics, connectionsFromNow({ maps, former: figures })),
  ];
}
