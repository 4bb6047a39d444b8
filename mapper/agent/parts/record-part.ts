/** Who writes the maps, written down with the time of each beat. */
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';

export function recordPart({ record }: AgentCore): AgentPart {
  return { name: 'record', look: () => record.beat() };
}
