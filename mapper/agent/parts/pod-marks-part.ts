/** What people see on a pod: the annotation and Events. */
import type { AgentCore } from '../agent-core.ts';
import type { AgentPart } from '../agent-part.ts';
import { takeMarksOff } from '../departure.ts';

/** Undefined where pods are told nothing. */
export function podMarksPart({ marks }: AgentCore): AgentPart | undefined {
  if (marks === undefined) return undefined;
  return {
    name: 'pod-marks',
    cgroupAppeared: (owned) => marks.cgroupAppeared(owned),
    cgroupGone: (owned) => marks.cgroupGone(owned),
    // Who leaves loses the annotation before the maps change.
    holdBack: (uids, tell) => marks.objectsChanged(uids, tell),
    reconciled: () => marks.soon(),
    ready: () => marks.start(),
    look: () => marks.soon(),
    withdraw: () => takeMarksOff(marks),
    [Symbol.dispose]: () => marks[Symbol.dispose](),
  };
}
