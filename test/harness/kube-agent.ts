/** Agents that follow an API server, one after another on the same node. */
import { writeFileSync } from 'node:fs';
import type { AgentOptions } from '../../deploy/stage/agent.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';
import { type AgentSeat, agentSeat, type SeatOptions } from './agent-seat.ts';

/** What the agent's DaemonSet may do. */
export const AGENT_RULES = [
  { apiGroups: [''], resources: ['pods', 'namespaces'], verbs: ['list', 'watch'] },
  { apiGroups: [''], resources: ['pods/status'], verbs: ['patch'] },
  { apiGroups: [''], resources: ['events'], verbs: ['create'] },
];

export interface KubeAgentOptions extends Partial<AgentOptions> {
  /** The text of its configuration file. */
  readonly config?: string;
  /** Default: the seat's. */
  readonly kubeconfig?: string;
}

/** @param kubeconfig the path of the file that an agent is given unless it is told another */
export function kubeAgentSeat(
  sandbox: Sandbox,
  { node, roots }: Pick<SeatOptions<never>, 'node' | 'roots'>,
  kubeconfig: () => string,
): AgentSeat<KubeAgentOptions> {
  let configs = 0;
  return agentSeat<KubeAgentOptions>(sandbox, {
    node,
    ...(roots === undefined ? {} : { roots }),
    agentOptions({ config, kubeconfig: own = kubeconfig(), args = [], env, ...more } = {}) {
      const file = sandbox.file(`${node}-${++configs}.yaml`);
      if (config !== undefined) writeFileSync(file, config);
      return {
        node,
        ...more,
        args: [...(config === undefined ? [] : ['--config', file]), ...args],
        env: { KUBECONFIG: own, ...env },
      };
    },
  });
}
