/** Sidecars out of their pods' path, by rules in the pods' network namespaces. */
import { metricSources } from '../../reports/metric-source.ts';
import { sidecarMetrics } from '../../reports/sidecar-metrics.ts';
import { removeSidecarRules } from '../../sidecars/sidecar-cleanup.ts';
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';

export function sidecarsPart({ sidecars, procRoot, cgroupRoot, bpffsRoot }: AgentCore): AgentPart {
  return {
    name: 'sidecars',
    takeOver: () => sidecars.removeLeftovers(),
    repairs: [() => sidecars.repair()],
    source: () => sidecars.source(),
    metrics: metricSources(sidecarMetrics, () => sidecars.figures),
    withdraw: () => sidecars.stop(),
    async clear() {
      const { problems } = await removeSidecarRules({ procRoot, cgroupRoot, bpffsRoot });
      return problems.map((problem) => `rules for a sidecar may be left in ${problem}`);
    },
    [Symbol.dispose]: () => sidecars[Symbol.dispose](),
  };
}
