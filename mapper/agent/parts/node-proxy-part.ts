/** What the programs must know of the node as a whole: ports, policies, and where its proxy is. */
import { metricSources } from '../../reports/metric-source.ts';
import { proxyMetrics } from '../../reports/proxy-metrics.ts';
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';

export function nodeProxyPart(core: AgentCore): AgentPart {
  const { proxy, settings, config, dataPlane, reconciler, isReady } = core;
  let isFollowing = false;

  /**
   * Once for all that changes in a row, and when the queue is empty: in the middle
   * of a change of several pods it may look as if there were no proxy at all.
   */
  async function followSoon(): Promise<void> {
    if (!isReady() || isFollowing) return;
    isFollowing = true;
    try {
      await reconciler.idle();
      isFollowing = false;
      proxy.follow();
    } catch (error) {
      core.failed(error, "the proxy's address could not be written");
    }
  }

  return {
    name: 'proxy',
    start: () => settings.writeConfig(config),
    takeOver() {
      proxy.follow();
      return 0;
    },
    cgroupGone({ cgroup }) {
      proxy.cgroupGone(cgroup.id);
      void followSoon();
    },
    reconciled: () => void followSoon(),
    look: () => void followSoon(),
    repairs: [() => settings.repair()],
    metrics: metricSources(proxyMetrics, () => dataPlane.maps),
  };
}
