/** What is true on a node now, before anybody says whether it is as it should be. */
import type { CapabilityReport } from '../../native/survey/capability.ts';
import type { branch, policy } from '../../native/layout/layouts.ts';
import type { SourceState } from '../../watcher/source-state.ts';
import type { MapRoom } from '../connections/connection-room.ts';
import type { ProxyReport } from '../placement/node-proxy.ts';
import type { ProxyStatus } from './status-proxy.ts';

/** Connections by what became of them, one counter for each branch. */
export type Connections = Record<Exclude<keyof typeof branch, 'count'>, number>;

export interface CgroupStatus {
  readonly id: string;
  /** Relative to the watched root; null for one that exists no more, or could not be looked for, see {@link NodeFacts.unseen}. */
  readonly path: string | null;
}

export interface UnknownCgroup extends CgroupStatus {
  /** Whether a process is in it or below it; null where that cannot be told. */
  readonly isPopulated: boolean | null;
}

export interface PodStatus {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string;
  readonly verdict: string;
  readonly reason: string;
  readonly ips: readonly string[];
  readonly cgroups: readonly CgroupStatus[];
  readonly connections: Connections;
}

/** What the agent alone knows, as it answers now; of an older version, or one that starts, there is less. */
export interface LiveAgent {
  readonly ready: boolean;
  readonly sources: readonly SourceState[];
  readonly proxy?: ProxyReport;
  /** Pods whose entries could not be written. */
  readonly failedPods?: number;
  /** Entries and links that the last look put back. */
  readonly drift?: number;
}

export interface NodeFacts {
  readonly node: string | null;
  /** Whether a connect program is attached by a pinned link. */
  readonly redirecting: boolean;
  readonly agent: {
    readonly running: boolean;
    readonly ready: boolean;
    /** Whether it has answered `status`. */
    readonly answers: boolean;
    readonly pid: number | null;
    readonly version: string | null;
  };
  readonly proxy: ProxyStatus;
  /** Those that the programs act by. */
  readonly policies: PolicyStatus | null;
  readonly sources: readonly SourceState[];
  /** What this host's kernel offers; null where it could not be tried. */
  readonly capabilities: CapabilityReport | null;
  /** A sentence for each thing that this process could not look at. */
  readonly unseen: readonly string[];
  readonly pods: readonly PodStatus[];
  /** Cgroups of pods that nobody knows. */
  readonly unknown: readonly UnknownCgroup[];
  /** Connections of host processes and of unknown pods. */
  readonly host: Connections;
  /** How full the maps are whose room can run out. */
  readonly maps: readonly MapRoom[];
  /** Undefined when it does not answer. */
  readonly live: LiveAgent | undefined;
}

export interface PolicyStatus {
  readonly unknownPods: keyof typeof policy;
  readonly whenProxyDown: keyof typeof policy;
}
