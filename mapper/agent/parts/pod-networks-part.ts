/** Pods' networks, looked at again from time to time: nobody tells when a pod gets another address or interface. */
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';

/** Of one piece of work, in milliseconds: there may be thousands of pods. */
const SLICE_MS = 4;

export function podNetworksPart({ networks, reconciler, failed }: AgentCore): AgentPart {
  let isLooking = false;
  let isWanted = false;
  let isOver = false;

  async function lookAtAll(): Promise<void> {
    let until = performance.now() + SLICE_MS;
    for (const key of networks.keys()) {
      if (isOver) return;
      if (networks.hasChanged(key)) reconciler.lookAgain(key);
      if (performance.now() < until) continue;
      await new Promise((resolve) => setImmediate(resolve));
      until = performance.now() + SLICE_MS;
    }
  }

  function look(): void {
    isWanted = isLooking;
    if (isLooking) return;
    isLooking = true;
    void lookAtAll()
      .catch((error: unknown) => failed(error, "pods' networks could not be looked at"))
      .finally(() => {
        isLooking = false;
        if (isWanted && !isOver) look();
      });
  }

  return {
    name: 'pod-networks',
    look,
    // Which of a pod's interfaces leads to it is another matter now.
    proxyMoved: look,
    [Symbol.dispose]: () => void (isOver = true),
  };
}
