/** Pods whose connections find no room in the kernel's maps are told so. */
import { ConnectionRoom } from '../../connections/connection-room.ts';
import { mapShares } from '../../maps/map-sizes.ts';
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';

export function connectionRoomPart({ dataPlane, config, logger, marks }: AgentCore): AgentPart {
  const room = new ConnectionRoom({
    maps: dataPlane.maps,
    shares: mapShares(config),
    logger,
    tell: (uid, message) => marks?.noRoom(uid, message),
  });
  return { name: 'connection-room', look: () => room.look() };
}
