/** One connection of the leak test: who makes it, where to, and what may become of it. */

/** By the proxy's outbound port, by its inbound port, past it, or refused in connect(). */
export type Way = 'proxied' | 'inbound' | 'direct' | 'denied';

export const CASES = {
  known: 'pod known before its cgroup',
  static_pod: 'static pod known before its cgroup',
  new_tree: 'the first pod of a kubelet root made that moment',
  new_tree_dead: 'the same, while no agent runs',
  agent_dead: 'pod known, its cgroup made while no agent runs',
  same_moment: 'object and cgroup at the same moment',
  object_after: 'cgroup before its object',
  known_late: 'the pods of these two, once they are known',
  new_container: 'new container of a known pod',
  restarted: 'container removed and another made',
  pod_again: "pod's cgroup removed and made again",
  pod_again_dead: 'the same, while no agent runs',
  taken_over: 'known pods, while an agent starts and takes over',
  exec: 'exec into a container',
  nested: "cgroup below a pod, with another pod's name",
  nested_out: 'the same below a pod that is out',
  out: 'pod that is out',
  bypassed: 'bypassed pod',
  proxy_pod: "the proxy's own pod",
  host: 'host process',
  host_inbound: 'host process to an enrolled pod',
  kubelet: 'kubelet to an enrolled pod',
  flip_before: 'label flip: before it is written',
  flip_during: 'label flip: while it is under way',
  flip_after: 'label flip: when the agent has done it',
} as const;

export type CaseName = keyof typeof CASES;
export const CASE_NAMES = Object.keys(CASES) as readonly CaseName[];

export interface Endpoint {
  readonly ip: string;
  readonly port: number;
}

/** What a process in a cgroup is to do, once. */
export interface Job {
  readonly case: CaseName;
  /** Absolute. */
  readonly directory: string;
  /** Whether the cgroup is made for it, right before. */
  readonly isNew: boolean;
  /** Whether an exec() lies between birth and connect(). */
  readonly isExec: boolean;
  /** Whether it takes an IPv6 socket, and an IPv4-mapped address. */
  readonly isMapped: boolean;
  readonly from: 'pods' | 'host';
  /** Default: an address of the server that no other connection goes to. */
  readonly to?: Endpoint;
  /** The name that the process goes by. */
  readonly comm?: string;
  /** The ways that are right for a connection which starts then, in nanoseconds of CLOCK_MONOTONIC. */
  readonly allowed: (startNs: bigint) => readonly Way[];
}

/** A job under way: what it writes into the connection, which no other does. */
export interface Attempt extends Job {
  readonly token: string;
  readonly to: Endpoint;
}

/** A connection as its client saw it. Addresses as `10.0.0.1:80`. */
export interface ClientLine {
  readonly token: string;
  readonly startNs: number;
  readonly endNs: number;
  readonly ok: boolean;
  /** `server LOCAL PEER`, as the server saw its socket. */
  readonly reply?: string;
  /** The step that failed: `connect`, `read`, ... and its errno. */
  readonly step?: string;
  readonly errno?: string;
  /** What getsockname() and getpeername() say; empty when not connected. */
  readonly local: string;
  readonly peer: string;
}

/** A connection as the proxy saw it. */
export interface ProxyLine {
  readonly client: string;
  /** The original destination, as SO_ORIGINAL_DST gave it. */
  readonly destination: string;
  /** The listener's port. */
  readonly port: number;
  /** The proxy's own end of the connection to the server. */
  readonly server: string;
  /** How HAProxy ended it; `--` is well. */
  readonly state: string;
}

/** A connection as the server saw it. */
export interface ServerLine {
  readonly token: string;
  readonly local: string;
  readonly peer: string;
}
