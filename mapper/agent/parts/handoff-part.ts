/** `sock_ops`, which brings original destinations to the proxy, where connections are redirected. */
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';

export function handoffPart({ handoffs, dataPlane, reconciler }: AgentCore): AgentPart {
  const look = (): void => handoffs.look(reconciler.isHostRedirected);
  return {
    name: 'handoff',
    cgroupAppeared: (owned) => handoffs.cgroupAppeared(owned),
    cgroupGone: (owned) => handoffs.cgroupGone(owned),
    attach() {
      look();
      dataPlane.attachSockets();
    },
    look,
    repairs: [() => handoffs.repair()],
    leave: () => handoffs.leave(),
  };
}
