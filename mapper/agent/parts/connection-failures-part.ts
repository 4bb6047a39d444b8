/** Pods whose connections fail for want of a proxy, or of room in the kernel's maps, are told so. */
import { ConnectionFailures } from '../../connections/connection-failures.ts';
import { mapShares } from '../../maps/map-sizes.ts';
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';

export function connectionFailuresPart({ dataPlane, config, logger, marks }: AgentCore): AgentPart {
  const failures = new ConnectionFailures({
    maps: dataPlane.maps,
    shares: mapShares(config),
    logger,
    tell: (uid, reason, message) => marks?.connectionsFail(uid, reason, message),
  });
  return {
    name: 'connection-failures',
    look: () => failures.look(),
    source() {
      const pods = failures.withoutRoom;
      const name = 'connections';
      return pods === 0
        ? { name, state: 'ok', detail: 'none failed for want of room since the last look' }
        : {
            name,
            state: 'degraded',
            detail: `those of ${pods} pods fail for want of room: \`cgroute explain\` and the agent's log say why`,
          };
    },
  };
}
