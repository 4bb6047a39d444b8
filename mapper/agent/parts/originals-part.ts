/** Original destinations that no proxy fetched, and that nobody will fetch any more. */
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';

export function originalsPart({ dataPlane, logger }: AgentCore): AgentPart {
  return {
    name: 'originals',
    look() {
      const entries = dataPlane.expireOriginals();
      if (entries > 0)
        logger.warn(
          { entries },
          'original destinations that no proxy fetched were dropped: is the proxy under the watched root?',
        );
    },
  };
}
