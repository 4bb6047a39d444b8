/** `startupTaint`: pods come to the node when its agent is ready. */
import { StartupTaint } from '../../reports/startup-taint.ts';
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';

/** Undefined where it is not wanted, or no API server knows the node. */
export function startupTaintPart({
  config,
  node,
  source: { client },
  logger,
}: AgentCore): AgentPart | undefined {
  const key = config.startupTaint;
  if (key === '' || client === undefined) return undefined;
  const taint = new StartupTaint({ client, node, key, logger: logger.child({ component: 'startup-taint' }) });
  return {
    name: 'startup-taint',
    ready: () => void taint.begin(),
    look: () => void taint.soon(),
    source: () => taint.source(),
    [Symbol.dispose]: () => taint[Symbol.dispose](),
  };
}
