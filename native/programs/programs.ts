/**
 * Every program of cgroute: where it is, where it runs, what it needs. Data, and
 * the questions that are asked of it. A new program is one row; a test compares the
 * rows with the compiled objects.
 */
import { parseLinkPin } from '../pins/link-pin.ts';
import type { Helpers } from './kernel-functions.ts';
import { cgroupHooks, hooks, type CgroupHook, type Hook, type HookName } from './hooks.ts';

/** Compiled objects, `NAME.bpf.o`, in the order in which they are loaded, with those of their `const volatile` tunables that the agent sets. */
export const objects = {
  origdst: { tunables: ['original_share'] },
  connect: { tunables: ['root_level', 'host_netns', 'outbound_port', 'inbound_port', 'connection_share'] },
  bypass: { tunables: [] },
  execs: { tunables: ['root_level'] },
  cgroups: { tunables: ['root_level', 'root_id'] },
} as const satisfies Readonly<Record<string, { readonly tunables: readonly string[] }>>;
export type ObjectName = keyof typeof objects;
export type Tunable = (typeof objects)[ObjectName]['tunables'][number];

export type Place =
  /** The watched root, for processes of the host. */
  | 'root'
  /** The watched root, before those: what looks after redirected sockets. */
  | 'sockets'
  /** Cgroups that hold pods, ahead of any program at the root. */
  | 'podTree'
  /** Cgroups whose redirected connections have to come to the proxy with their original destinations. */
  | 'handoff'
  /** The cgroup of the node's proxy. */
  | 'proxy'
  /** A tracepoint of the kernel. */
  | 'tracepoint'
  /** The agent's socket of process events, as its filter. */
  | 'execFilter'
  /** Rules in pods with a sidecar, which name it by its path. */
  | 'bypassFilter'
  /** Nowhere: the agent runs it. */
  | 'agent';

export interface OwnProgram {
  /** At most 15 characters, of which the kernel tells no more. */
  readonly name: string;
  /** Absent where the instructions are in the code. */
  readonly object?: ObjectName;
  readonly hook: HookName;
  readonly place: Place;
  /** Whether it sends connections elsewhere. */
  readonly redirects?: true;
  /** Whether it keeps the entries of connections true: such go last. */
  readonly keepsConnections?: true;
  /** Whether others may well have a program of that name. */
  readonly isCommonName?: true;
  /** What is lost where the kernel refuses it, and all others of its object with it; absent where cgroute does not work then. */
  readonly without?: string;
  readonly helpers: Helpers;
}

/** See HAS_SET_RETVAL in bpf/lib/older-kernel.bpf.h. */
const RETVAL = {
  since: '6.1',
  without:
    'connections that are denied because something is not there yet (no proxy, a pod that nobody knows) get EPERM in place of ECONNREFUSED, on which more clients try again',
} as const;
const POD_CONNECT = {
  bpf_get_current_uid_gid: '4.17',
  bpf_get_socket_cookie: '4.19',
  bpf_get_current_cgroup_id: '5.7',
  bpf_get_current_ancestor_cgroup_id: '5.7',
  bpf_get_retval: RETVAL,
  bpf_set_retval: RETVAL,
  bpf_get_current_task: '5.8',
  bpf_probe_read_kernel: '5.8',
} as const satisfies Helpers;
const ROOT_CONNECT = {
  bpf_get_current_uid_gid: '4.17',
  bpf_get_current_comm: '5.7',
  bpf_get_socket_cookie: '4.19',
  bpf_get_current_cgroup_id: '5.7',
  bpf_get_current_ancestor_cgroup_id: '5.7',
  bpf_get_retval: RETVAL,
  bpf_set_retval: RETVAL,
  bpf_get_current_task: '5.8',
  bpf_probe_read_kernel: '5.8',
} as const satisfies Helpers;
const TRACE = {
  bpf_probe_read_kernel: '5.5',
  bpf_probe_read_kernel_str: '5.5',
  bpf_ringbuf_reserve: '5.8',
  bpf_ringbuf_submit: '5.8',
} as const satisfies Helpers;
/** See netns_inode() and may_be_mptcp() in bpf/origdst.bpf.c. */
const NETNS_COOKIE = {
  since: '5.15',
  instead: "the inode number of the network namespace is read from the kernel's memory in its place",
} as const;
const MPTCP_SOCK = {
  since: '5.19',
  instead: 'the end of each redirected connection is looked at, as if it were one of MPTCP',
} as const;

const EXECS = 'every program started on this host wakes the agent, where it could be those of pods alone';
const IDENTITY =
  "a pod's first connections may come before the agent knows its cgroup, some milliseconds after it is made";
const LEVEL =
  "inside a cgroup namespace the agent starts only where the host's whole cgroup2 hierarchy is mounted, as in the chart's container and not on a kind node";

export const programs: readonly OwnProgram[] = [
  {
    name: 'root_connect4',
    object: 'connect',
    hook: 'connect4',
    place: 'root',
    redirects: true,
    helpers: ROOT_CONNECT,
  },
  {
    name: 'root_connect6',
    object: 'connect',
    hook: 'connect6',
    place: 'root',
    redirects: true,
    helpers: ROOT_CONNECT,
  },
  {
    name: 'pod_connect4',
    object: 'connect',
    hook: 'connect4',
    place: 'podTree',
    redirects: true,
    helpers: POD_CONNECT,
  },
  {
    name: 'pod_connect6',
    object: 'connect',
    hook: 'connect6',
    place: 'podTree',
    redirects: true,
    helpers: POD_CONNECT,
  },
  {
    name: 'getpeername4',
    object: 'origdst',
    hook: 'getpeername4',
    place: 'sockets',
    helpers: { bpf_get_socket_cookie: '4.19', bpf_probe_read_kernel: '5.8' },
  },
  {
    name: 'getpeername6',
    object: 'origdst',
    hook: 'getpeername6',
    place: 'sockets',
    helpers: { bpf_get_socket_cookie: '4.19', bpf_probe_read_kernel: '5.8' },
  },
  {
    name: 'original_dst',
    object: 'origdst',
    hook: 'getsockopt',
    place: 'proxy',
    helpers: {
      bpf_sk_storage_get: '5.3',
      bpf_sk_storage_delete: '5.3',
      bpf_tcp_sock: '5.3',
      bpf_get_netns_cookie: NETNS_COOKIE,
      bpf_probe_read_kernel: '5.8',
    },
  },
  {
    name: 'sock_release',
    object: 'origdst',
    hook: 'sock_release',
    place: 'sockets',
    keepsConnections: true,
    isCommonName: true,
    helpers: { bpf_get_socket_cookie: '5.7' },
  },
  {
    name: 'sock_ops',
    object: 'origdst',
    hook: 'sock_ops',
    place: 'handoff',
    isCommonName: true,
    helpers: {
      bpf_get_socket_cookie: '4.19',
      bpf_sock_ops_cb_flags_set: '4.16',
      bpf_get_netns_cookie: NETNS_COOKIE,
      bpf_probe_read_kernel: '5.8',
      bpf_skc_to_mptcp_sock: MPTCP_SOCK,
      bpf_skc_to_tcp_sock: '5.9',
    },
  },
  { name: 'cgroute_bypass', object: 'bypass', hook: 'socket', place: 'bypassFilter', helpers: {} },
  {
    name: 'exec_filter',
    object: 'execs',
    hook: 'socket',
    place: 'execFilter',
    without: EXECS,
    helpers: { bpf_get_current_cgroup_id: '6.4', bpf_get_current_ancestor_cgroup_id: '6.4' },
  },
  {
    name: 'cgroup_mkdir',
    object: 'cgroups',
    hook: 'cgroup_mkdir',
    place: 'tracepoint',
    without: IDENTITY,
    helpers: TRACE,
  },
  {
    name: 'cgroup_rmdir',
    object: 'cgroups',
    hook: 'cgroup_rmdir',
    place: 'tracepoint',
    without: IDENTITY,
    helpers: TRACE,
  },
  // Instruction by instruction in native/bpf/cgroup-level.ts.
  {
    name: 'own_cgroups',
    hook: 'syscall',
    place: 'agent',
    without: LEVEL,
    helpers: { bpf_get_current_ancestor_cgroup_id: '5.15' },
  },
];

const byName: ReadonlyMap<string, OwnProgram> = new Map(programs.map((program) => [program.name, program]));

/** Names of the programs that belong to a kind of place, in the order in which they are attached. */
export function programsOf(place: Place): readonly string[] {
  return programs.filter((program) => program.place === place).map(({ name }) => name);
}

/** The name of the one program of a place that has one. */
export const programOf = (place: Place): string => programsOf(place)[0] ?? '';

export const isProgramOf = (name: string, place: Place): boolean => byName.get(name)?.place === place;

/** Whether any program at that hook belongs to one of these places. */
export const isHookOf = (hook: CgroupHook, ...places: readonly Place[]): boolean =>
  programs.some((program) => program.hook === hook && places.includes(program.place));

const isAtCgroup = ({ hook }: OwnProgram): boolean => hook in cgroupHooks;

/** Whether it is the name of a program that a pinned link holds, at a cgroup or a tracepoint. */
export function isLinked(name: string): boolean {
  const program = byName.get(name);
  if (program === undefined) return false;
  const { tracepoint }: Hook = hooks[program.hook];
  return isAtCgroup(program) || tracepoint !== undefined;
}

/** Whether a program at a cgroup is one of cgroute's, as nobody else is likely to choose that name. */
export function isOurName(name: string): boolean {
  const program = byName.get(name);
  return program !== undefined && isAtCgroup(program) && program.isCommonName !== true;
}

/** Whether a pin's name is that of a link that redirects, and not of one that was put by. */
export function redirects(pin: string): boolean {
  const link = parseLinkPin(pin);
  return link?.suffix === '' && byName.get(link.program)?.redirects === true;
}

/** Whether a pin's name is that of a link that keeps the entries of connections true. */
export const keepsConnections = (pin: string): boolean =>
  byName.get(parseLinkPin(pin)?.program ?? '')?.keepsConnections === true;

/** What is lost without all of them; undefined where cgroute cannot do without one. */
export const lossOfAll = (losses: readonly (string | undefined)[]): string | undefined =>
  losses.includes(undefined) ? undefined : losses[0];

/** What is lost without an object that cgroute can do without; undefined for the others. */
export const lossOf = (object: ObjectName): string | undefined =>
  lossOfAll(programs.filter((program) => program.object === object).map(({ without }) => without));
