/** Whose turn it is, and who has to give way, where the kernel's maps may not have room for all pods. Pure. */
import type { Decision } from '../decisions/decision.ts';

/** Who has a lower one is written first. */
export const podRank = {
  /** It has ended or is gone, and has no cgroup: what it had is room for others. */
  over: 0,
  proxy: 1,
  enrolled: 2,
  other: 3,
  /** Nothing of it runs yet. */
  enrolledAwaited: 4,
  otherAwaited: 5,
} as const;

export interface Ranked {
  /** Undefined for one that nobody knows. */
  readonly decision: Pick<Decision, 'proxy' | 'enrolled'> | undefined;
  readonly hasEnded: boolean;
  readonly hasCgroup: boolean;
}

export function rankOf({ decision, hasEnded, hasCgroup }: Ranked): number {
  if (!hasCgroup && (hasEnded || decision === undefined)) return podRank.over;
  if (decision?.proxy === true) return podRank.proxy;
  const isEnrolled = decision?.enrolled === true;
  if (hasCgroup) return isEnrolled ? podRank.enrolled : podRank.other;
  return isEnrolled ? podRank.enrolledAwaited : podRank.otherAwaited;
}

const isAwaited = (rank: number): boolean => rank >= podRank.enrolledAwaited;

/**
 * Whether a pod's entry makes room for another's. What does not run loses nothing by
 * it; without the proxy all that are enrolled lose their connections.
 */
export const yieldsTo = (rank: number, other: number): boolean =>
  other === podRank.proxy ? rank > other : isAwaited(rank) && !isAwaited(other);
