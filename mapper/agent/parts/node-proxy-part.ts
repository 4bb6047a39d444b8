/** What the programs must know of the node as a whole: ports, policies, and where its proxy is. */
import { metricSources } from '../../reports/metric-source.ts';
import { proxyMetrics } from '../../reports/proxy-metrics.ts';
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';

const AGAIN_MS = 500;

export function nodeProxyPart(core: AgentCore): AgentPart {
  const { proxy, settings, config, dataPlane, reconciler, isReady, ledger } = core;
  let isFollowing = false;
  let again: NodeJS.Timeout | undefined;

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
      follow();
    } catch (error) {
      core.failed(error, "the proxy's address could not be written");
    }
  }

  /** What nobody tells, that a proxy listens by now for instance, is looked at soon again. */
  function follow(): void {
    const before = settings.proxyIps().join();
    proxy.follow();
    if (settings.proxyIps().join() !== before) core.tell.proxyMoved();
    clearTimeout(again);
    again = proxy.isPassing ? setTimeout(() => void followSoon(), AGAIN_MS).unref() : undefined;
  }

  return {
    name: 'proxy',
    start: () => settings.writeConfig(config),
    takeOver() {
      follow();
      return 0;
    },
    cgroupGone({ cgroup }) {
      proxy.cgroupGone(cgroup.id);
      void followSoon();
    },
    // The first process of a proxy that has none yet.
    wantsProcess: (cgroupId) => proxy.isWaitingIn(ledger.keyOf(cgroupId)),
    processSeen: ({ cgroupId }) => {
      if (proxy.isWaitingIn(ledger.keyOf(cgroupId))) void followSoon();
    },
    reconciled: () => void followSoon(),
    look: () => void followSoon(),
    repairs: [() => settings.repair()],
    metrics: metricSources(proxyMetrics, () => ({ settings: dataPlane.maps.settings, report: proxy.report })),
    [Symbol.dispose]: () => clearTimeout(again),
  };
}
