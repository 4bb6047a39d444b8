/** Pods that have ended and run on: whether their last process has ended. */
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';

export function endedPodsPart({ ended, tell }: AgentCore): AgentPart {
  const look = (): void => {
    const over = ended.look();
    if (over.length > 0) tell.podsChanged(over);
  };
  // The end of a process is told by nobody; the removal of its cgroup leads to the reconciler at once.
  return { name: 'ended-pods', ready: look, look };
}
