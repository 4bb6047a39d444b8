/**
 * What a feature is to the agent. It says by name what it does at which moment and
 * which facts it wants to hear, and has one line in agent-parts.ts; all members but
 * the name are optional. {@link PartWalk} goes through the list, in its order unless
 * a member says otherwise.
 *
 * What a part throws in `start`, `takeOver` and `attach` ends the agent's start, as
 * it starts whole or not at all. Anywhere else it is logged and counted
 * (`cgroute_map_errors_total`), and the others go on.
 */
import type { HostProcess } from '../../watcher/host-watch.ts';
import type { SourceState } from '../../watcher/source-state.ts';
import type { Written } from '../connections/connection-reset.ts';
import type { OwnedCgroup } from '../inventory/owned-cgroup.ts';
import type { MetricSource } from '../reports/metric-source.ts';

export interface AgentPart extends PartMoments, PartFacts {
  /** Stable and short, for the log. */
  readonly name: string;
}

/** The life of the agent, in the order in which it goes. */
interface PartMoments {
  /** Before any pod or cgroup is told of. */
  readonly start?: () => void;
  /**
   * All pods and cgroups that there are have gone through the maps: what an earlier
   * agent left and is no more goes. Returns the number of entries. After `attach`
   * where the source had no answer at first; what is thrown then is tried again.
   */
  readonly takeOver?: () => number;
  /** The maps say what they should: programs may be attached. Those at the root follow. */
  readonly attach?: () => void;
  /** Once, when all is taken over and attached. */
  readonly ready?: () => void;

  /** Each `sweepSeconds`: looks at what nobody tells. */
  readonly look?: () => void;
  /** After all looks: undoes what somebody else did. Each step returns the number of entries, and is taken whatever becomes of the others. */
  readonly repairs?: readonly (() => number)[];
  /** How it does, for `status` and `/metrics`; asked at any time. */
  readonly source?: () => SourceState;
  /** What it tells for `/metrics`, see {@link metricSources}; asked at any time. */
  readonly metrics?: readonly MetricSource[];

  /** The agent goes and redirection goes on, with nobody who looks. From the end of the list. */
  readonly leave?: () => void;
  /** The agent goes and redirection ends, which it has not yet. From the end of the list, one after the other. */
  readonly withdraw?: () => void | Promise<void>;
  /**
   * Redirection has ended: what is left on the host outside of the pins goes. From
   * the end of the list. Returns a sentence for each place where something may be
   * left; what is pinned for it stays then.
   */
  readonly clear?: () => Promise<readonly string[]>;
  /** The last of all, also when a start has failed: nothing is done from then on. From the end of the list. */
  readonly [Symbol.dispose]?: () => void;
}

/** What happens, told to all who want to hear it. */
interface PartFacts {
  /** A cgroup exists; parents first. */
  readonly cgroupAppeared?: (owned: OwnedCgroup) => void;
  /** It exists no more; children first. */
  readonly cgroupGone?: (owned: OwnedCgroup) => void;
  /** Whether a process in this cgroup is of use to anybody; asked for each exec below the root. */
  readonly wantsProcess?: (cgroupId: bigint) => boolean;
  /** One of those runs. */
  readonly processSeen?: (process: HostProcess) => void;
  /**
   * Pods changed and nobody has heard of it: `tell` is to be called once for each of
   * them, at once or a moment later. Where it throws, all are told at once.
   */
  readonly holdBack?: (uids: Iterable<string>, tell: (uids: Iterable<string>) => void) => void;
  /** Pods of the inventory came, went or changed, or their namespaces did. */
  readonly podsChanged?: (uids: Iterable<string>) => void;
  /** A pod's entry has been written; its cgroups' follow. */
  readonly podWritten?: (written: Written) => void;
  /** The node's proxy has another address, or another pod is the proxy. */
  readonly proxyMoved?: () => void;
  /** A pod's entries are what they should be; said of each pod, in the middle of others. */
  readonly reconciled?: () => void;
}
