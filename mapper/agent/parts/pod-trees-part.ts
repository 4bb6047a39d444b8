/** The connect programs where kubelets keep their pods. */
import { PodTrees } from '../../placement/pod-trees.ts';
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';

export function podTreesPart({ dataPlane, root, host }: AgentCore): AgentPart {
  const trees = new PodTrees({
    dataPlane,
    cgroupRoot: root.path,
    cgroupIdAt: (path) => host.ensure(path)?.id,
  });
  return {
    name: 'pod-trees',
    cgroupAppeared: (owned) => trees.appeared(owned),
    cgroupGone: (owned) => trees.gone(owned),
    attach: () => trees.attach(),
    look: () => trees.retry(),
    repairs: [() => trees.repair()],
  };
}
