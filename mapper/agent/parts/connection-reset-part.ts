/** `existingConnections: reset`: open connections end when the verdict on their pod flips. */
import { ConnectionReset } from '../../connections/connection-reset.ts';
import { resetMetrics } from '../../reports/connection-metrics.ts';
import { metricSources } from '../../reports/metric-source.ts';
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';

export function connectionResetPart(core: AgentCore): AgentPart {
  const { config, dataPlane, root, procRoot, host, ledger, inventory, marks, isReady } = core;
  const name = 'connection-reset';
  if (config.existingConnections === 'keep')
    return { name, metrics: metricSources(resetMetrics, () => undefined) };
  const reset = new ConnectionReset({
    maps: dataPlane.maps,
    sidecarUser: config.sidecarUser,
    cgroupRoot: root.path,
    procRoot,
    logger: core.logger.child({ component: 'reset' }),
    host,
    hostCgroups: () => [
      ...ledger.hosts(),
      ...[...inventory.pods()]
        .filter(({ hostNetwork }) => hostNetwork)
        .flatMap((pod) => ledger.of(ledger.homeOf(pod)).map(({ cgroup }) => cgroup)),
    ],
    isReady,
    onFailed: (pod, message) => marks?.notReset(pod, message),
  });
  return {
    name,
    podWritten: (written) => reset.written(written),
    metrics: metricSources(resetMetrics, () => reset.figures),
    [Symbol.dispose]: () => reset[Symbol.dispose](),
  };
}
