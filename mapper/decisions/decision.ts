/** The answer about one pod, and how it came about. */

import type { TrafficOptions } from './traffic-options.ts';

/** `in`: redirected. `out`: untouched. `bypass`: in the mesh, and one or both directions untouched for now. */
export const VERDICTS = ['in', 'out', 'bypass'] as const;
export type Verdict = (typeof VERDICTS)[number];

export const REASONS = [
  'host-network',
  'terminal',
  'proxy',
  'excluded-namespace',
  'gateway',
  'runtime',
  'other-mesh',
  'pod-label',
  'pod-opt-out',
  'namespace-label',
  'not-enrolled',
  'sidecar',
  'sidecar-short-circuited',
  'bypass',
  'bypass-outbound',
  'bypass-inbound',
] as const;
export type Reason = (typeof REASONS)[number];

/** Something that an operator should know about a pod. Equal messages are one fact: report each once. */
export interface Note {
  readonly code:
    | 'unknown-mode'
    | 'other-mesh'
    | 'unknown-bypass'
    | 'bypass-refused'
    | 'bypass-beside-sidecar'
    | 'sidecar-stays'
    | 'traffic-annotation';
  readonly message: string;
}

/** One rule as it was tried, for `explain`. */
export interface RuleStep {
  /** The number of the rule, in the order in which they are tried; each once. */
  readonly rule: number;
  readonly condition: string;
  /** The values that answered it. */
  readonly saw: string;
  /** `no`: does not apply. `yes`: applies, and a later rule has the last word. `decides`: its reason is the answer; exactly one step has it. */
  readonly outcome: 'no' | 'yes' | 'decides';
}

export interface Decision {
  readonly verdict: Verdict;
  readonly reason: Reason;
  /** In the mesh: the verdict is `in` or `bypass`. */
  readonly enrolled: boolean;
  /** The mesh mode that a label names, in lower case; undefined where none does, or an earlier rule leaves the pod out. */
  readonly mode: string | undefined;
  /**
   * The bypass label asks for it and may. Also set for a pod that is out by its
   * labels or for its sidecar, as a pod with a sidecar is bypassed inside its own
   * network namespace; never where a rule before the labels of modes decides.
   */
  readonly bypassOutbound: boolean;
  readonly bypassInbound: boolean;
  readonly sidecar: boolean;
  /** One of the node's ztunnels, also when an earlier rule decides; false for one that has ended. */
  readonly proxy: boolean;
  /** Of an enrolled pod: what its annotations leave outside the mesh; undefined is nothing. */
  readonly traffic: TrafficOptions | undefined;
  readonly notes: readonly Note[];
  readonly trace: readonly RuleStep[];
}

/** What the host says of a pod that has ended by what the API says. */
export interface Ending {
  /** Processes are left in its cgroups. */
  readonly isRunning: boolean;
  /** What was decided before it ended; undefined where nobody remembers. */
  readonly last: Decision | undefined;
}

/**
 * What a pod's namespace had when the pod was first seen. `enrollment: new-pods`
 * holds it across changes of the namespace's label; with `live` it has no say.
 */
export interface Remembered {
  /** A mesh mode in lower case; undefined where the label named none. */
  readonly mode: string | undefined;
}
