/** Pods whose connections were refused, or passed the mesh by, before anybody knew them are told so. */
import { UnknownPods } from '../../connections/unknown-pods.ts';
import { podKeys } from '../../objects/pod.ts';
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';

export function unknownPodsPart({ dataPlane, ledger, logger, marks }: AgentCore): AgentPart {
  const unknown = new UnknownPods({
    maps: dataPlane.maps,
    logger,
    tell: (pod, message) => marks?.knownLate(pod, message),
  });
  return {
    name: 'unknown-pods',
    podWritten({ pod, decision, before }) {
      if (before !== undefined) return;
      const cgroups = podKeys(pod).flatMap((key) => ledger.of(key));
      unknown.known(
        pod,
        decision,
        cgroups.filter(({ owner }) => !owner.monitor).map(({ cgroup }) => cgroup.id),
      );
    },
    look: () => unknown.look(),
  };
}
