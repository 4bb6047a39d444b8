/**
 * What this kernel can do for cgroute's programs, found out by trying.
 *
 * Programs of two or three instructions are loaded and dropped at once; nothing
 * is attached. libbpf's own probe of helpers is not used: that of libbpf 1.1 does
 * not know how later kernels word a refusal, and reports every helper as there.
 */
import { closeSync } from 'node:fs';
import { release } from 'node:os';
import { cgroupHooks } from './cgroup-query.ts';
import { libbpf } from '../boundary/libbpf.ts';
import { addressOf, errnoValue } from '../boundary/libc.ts';
import { effectiveCapabilities } from '../boundary/privilege.ts';

/** `unknown`: this process lacks the privileges that the trial takes. */
export type Support = 'yes' | 'no' | 'unknown';

export interface Feature {
  /** `cgroup/connect4`, `bpf_get_netns_cookie in sockops`, `map sk_storage`, `cgroup link`. */
  readonly name: string;
  readonly kind: 'program' | 'helper' | 'map' | 'link';
  /** The first kernel version that has it, `5.15`. */
  readonly since: string;
  /** What is lost without it; absent where cgroute does not work without it, or nothing is lost. */
  readonly without?: string;
  /** What cgroute does in its place, so that nothing is lost. */
  readonly instead?: string;
}

export interface ProbedFeature extends Feature {
  readonly support: Support;
}

/** For `status` and for the agent's first log line. */
export interface CapabilityReport {
  /** The kernel's release, `6.18.44`. */
  readonly kernel: string;
  /** False where it is missing, or where the privileges to find out are. */
  readonly features: Readonly<Record<string, boolean>>;
}

/** The version that has it; or with what is done in its place on older ones. */
type Since = string | { readonly since: string; readonly instead: string };

/** A type of program as its section names it, and what programs in it call. */
interface Section {
  readonly section: string;
  /** `enum bpf_prog_type` and `enum bpf_attach_type`, <linux/bpf.h>. */
  readonly type: number;
  readonly attach: number;
  readonly since: string;
  readonly without?: string;
  /** The tracepoint, for a program of BPF_TRACE_RAW_TP. */
  readonly tracepoint?: string;
  readonly flags?: number;
  readonly helpers: Readonly<Record<string, Since>>;
}

/** `enum bpf_func_id`, <linux/bpf.h>. */
const HELPER_IDS: Readonly<Record<string, number>> = {
  bpf_get_current_uid_gid: 15,
  bpf_get_current_comm: 16,
  bpf_get_socket_cookie: 46,
  bpf_sock_ops_cb_flags_set: 59,
  bpf_get_current_cgroup_id: 80,
  bpf_tcp_sock: 96,
  bpf_sk_storage_get: 107,
  bpf_sk_storage_delete: 108,
  bpf_probe_read_kernel: 113,
  bpf_probe_read_kernel_str: 115,
  bpf_get_netns_cookie: 122,
  bpf_get_current_ancestor_cgroup_id: 123,
  bpf_ringbuf_reserve: 131,
  bpf_ringbuf_submit: 132,
  bpf_skc_to_tcp_sock: 137,
  bpf_skc_to_mptcp_sock: 196,
};

/**
 * Helpers older than any kernel that has the rest, by id: maps' lookup, update and
 * delete, ktime_get_ns, skb_load_bytes; and ktime_get_coarse_ns (5.11), for which
 * ktime_get_ns stands where it is missing.
 */
export const alwaysThere: ReadonlySet<number> = new Set([1, 2, 3, 5, 26, 160]);

/** `enum bpf_attach_type`, <linux/bpf.h>. */
const BPF_TRACE_RAW_TP = 23;

const CONNECT = {
  bpf_get_current_uid_gid: '4.17',
  bpf_get_current_comm: '5.7',
  bpf_get_socket_cookie: '4.19',
  bpf_get_current_cgroup_id: '5.7',
  bpf_get_current_ancestor_cgroup_id: '5.7',
} as const;
const TRACE = {
  bpf_probe_read_kernel: '5.5',
  bpf_probe_read_kernel_str: '5.5',
  bpf_ringbuf_reserve: '5.8',
  bpf_ringbuf_submit: '5.8',
} as const;
const IDENTITY =
  "a pod's first connections may come before the agent knows its cgroup, some milliseconds after it is made";
/** See netns_inode() and may_be_mptcp() in bpf/origdst.bpf.c. */
const NETNS_COOKIE = {
  since: '5.15',
  instead: "the inode number of the network namespace is read from the kernel's memory in its place",
} as const;
const MPTCP_SOCK = {
  since: '5.19',
  instead: 'the end of each redirected connection is looked at, as if it were one of MPTCP',
} as const;
const LEVEL =
  "inside a cgroup namespace the agent starts only where the host's whole cgroup2 hierarchy is mounted, as in the chart's container and not on a kind node";
const PEER = { bpf_get_socket_cookie: '4.19' } as const;

/**
 * Versions: of types of programs, attach types and maps, from
 * docs/kernel-versions.md of iovisor/bcc and data/feature-versions.yaml of
 * isovalent/ebpf-docs; of helpers in a type of program, from the commits that
 * allowed them there: socket cookie d692f1138a4b and, in CGROUP_SOCK, Daniel
 * Borkmann's series of March 2020 for cgroup hooks, with cgroup ids and comm;
 * netns cookie in sockops 6cf1770d63dd and in sockopt f1248dee954c;
 * bpf_probe_read_kernel there f470378c7562;
 * cgroup ids everywhere c501bf55c88b; callback flags b13d88072172;
 * bpf_skc_to_mptcp_sock 3bc253c2e652.
 */
const SECTIONS: readonly Section[] = [
  { section: 'cgroup/connect4', type: 18, attach: cgroupHooks.connect4, since: '4.17', helpers: CONNECT },
  { section: 'cgroup/connect6', type: 18, attach: cgroupHooks.connect6, since: '4.17', helpers: CONNECT },
  { section: 'cgroup/getpeername4', type: 18, attach: cgroupHooks.getpeername4, since: '5.8', helpers: PEER },
  { section: 'cgroup/getpeername6', type: 18, attach: cgroupHooks.getpeername6, since: '5.8', helpers: PEER },
  {
    section: 'cgroup/getsockopt',
    type: 25,
    attach: cgroupHooks.getsockopt,
    since: '5.3',
    helpers: {
      bpf_sk_storage_get: '5.3',
      bpf_sk_storage_delete: '5.3',
      bpf_tcp_sock: '5.3',
      bpf_get_netns_cookie: NETNS_COOKIE,
      bpf_probe_read_kernel: '5.8',
    },
  },
  {
    section: 'cgroup/sock_release',
    type: 9,
    attach: cgroupHooks.sock_release,
    since: '5.9',
    helpers: { bpf_get_socket_cookie: '5.7' },
  },
  {
    section: 'sockops',
    type: 13,
    attach: cgroupHooks.sock_ops,
    since: '4.13',
    helpers: {
      bpf_get_socket_cookie: '4.19',
      bpf_sock_ops_cb_flags_set: '4.16',
      bpf_get_netns_cookie: NETNS_COOKIE,
      bpf_probe_read_kernel: '5.8',
      bpf_skc_to_mptcp_sock: MPTCP_SOCK,
      bpf_skc_to_tcp_sock: '5.9',
    },
  },
  {
    section: 'socket',
    type: 1,
    attach: 0,
    since: '3.19',
    without: 'every program started on this host wakes the agent, where it could be those of pods alone',
    helpers: { bpf_get_current_cgroup_id: '6.4', bpf_get_current_ancestor_cgroup_id: '6.4' },
  },
  {
    section: 'tp_btf/cgroup_mkdir',
    type: 26,
    attach: BPF_TRACE_RAW_TP,
    tracepoint: 'cgroup_mkdir',
    since: '5.5',
    without: IDENTITY,
    helpers: TRACE,
  },
  {
    section: 'tp_btf/cgroup_rmdir',
    type: 26,
    attach: BPF_TRACE_RAW_TP,
    tracepoint: 'cgroup_rmdir',
    since: '5.5',
    without: IDENTITY,
    helpers: TRACE,
  },
  // Of native/bpf/cgroup-level.ts, with BPF_F_SLEEPABLE: type 79a7f8bdb159, the helper 95b861a7935b.
  {
    section: 'syscall',
    type: 31,
    attach: 0,
    flags: 1 << 4,
    since: '5.14',
    without: LEVEL,
    helpers: { bpf_get_current_ancestor_cgroup_id: '5.15' },
  },
];

/** `enum bpf_map_type`, <linux/bpf.h>. */
const MAPS: readonly {
  readonly name: string;
  readonly type: number;
  readonly since: string;
  readonly without?: string;
}[] = [
  { name: 'hash', type: 1, since: '3.19' },
  { name: 'array', type: 2, since: '3.19' },
  { name: 'percpu_array', type: 6, since: '4.6' },
  { name: 'lpm_trie', type: 11, since: '4.11' },
  { name: 'sk_storage', type: 24, since: '5.2' },
  { name: 'ringbuf', type: 27, since: '5.8', without: IDENTITY },
];

const EPERM = errnoValue('EPERM');
const EBADF = errnoValue('EBADF');
const LOG_BYTES = 16 * 1024;
/** How the verifier refuses a helper: an id beyond its table; one that is not for this type, as older and as newer kernels say it. */
const NO_HELPER = /invalid func |unknown func |program of this type cannot use helper /;

/** `struct bpf_insn`, <linux/bpf.h>: the opcode, then the immediate from byte 4 on. */
function instruction(code: number, immediate = 0): Buffer {
  const bytes = Buffer.alloc(8);
  bytes[0] = code;
  bytes.writeInt32LE(immediate, 4);
  return bytes;
}
const RETURN_1 = instruction(0xb7, 1); // r0 = 1
const EXIT = instruction(0x95);
const call = (helper: number): Buffer => instruction(0x85, helper);

/** Loads a program and drops it: zero or a negative errno, and the verifier's log. */
function tryLoad(
  { type, attach, tracepoint, flags = 0 }: Pick<Section, 'type' | 'attach' | 'tracepoint' | 'flags'>,
  instructions: readonly Buffer[],
): { readonly result: number; readonly log: string } {
  const log = Buffer.alloc(LOG_BYTES);
  const options = Buffer.alloc(104); // struct bpf_prog_load_opts, <bpf/bpf.h> of libbpf 1.0
  options.writeBigUInt64LE(BigInt(options.length), 0);
  options.writeUInt32LE(attach, 12);
  options.writeUInt32LE(flags, 20);
  if (tracepoint !== undefined)
    options.writeUInt32LE(Math.max(0, libbpf().findVmlinuxBtfId(tracepoint, attach)), 32);
  options.writeUInt32LE(1, 88); // log_level
  options.writeUInt32LE(log.length, 92);
  options.writeBigUInt64LE(addressOf(log), 96);
  const code = Buffer.concat(instructions);
  const fd = libbpf().progLoad(type, null, 'Dual BSD/GPL', code, instructions.length, options);
  if (fd >= 0) closeSync(fd);
  return { result: Math.min(fd, 0), log: log.toString('latin1', 0, Math.max(0, log.indexOf(0))) };
}

function supportOf(section: Section): Support {
  const { result } = tryLoad(section, [RETURN_1, EXIT]);
  return result === 0 ? 'yes' : result === -EPERM ? 'unknown' : 'no';
}

/** A call without arguments is refused for them, if for nothing else; only other words mean that the helper isn't there. */
function helperSupport(section: Section, name: string): Support {
  const id = HELPER_IDS[name];
  if (id === undefined) return 'no';
  const { result, log } = tryLoad(section, [call(id), RETURN_1, EXIT]);
  if (NO_HELPER.test(log)) {
    // Without CAP_PERFMON some are refused in the same words; which ones, differs from kernel to kernel.
    return effectiveCapabilities().has('CAP_PERFMON') ? 'no' : 'unknown';
  }
  return result === -EPERM ? 'unknown' : result === 0 || log !== '' ? 'yes' : 'no';
}

/** Without a program, a kernel that has links complains of the descriptor, and one without them of the command. */
function linkSupport(): Support {
  const result = libbpf().linkCreate(-1, -1, cgroupHooks.connect4, null);
  return result === -EBADF ? 'yes' : result === -EPERM ? 'unknown' : 'no';
}

let probed: readonly ProbedFeature[] | undefined;

/**
 * Everything that cgroute asks of the kernel, tried once for each process; some
 * 30 trials, a few milliseconds.
 * @throws CgrouteError `ELIBBPF` when the host has no libbpf
 */
export function probeFeatures(): readonly ProbedFeature[] {
  if (probed !== undefined) return probed;
  const features: ProbedFeature[] = [];
  let mayLoad = false;
  for (const section of SECTIONS) {
    const optional = section.without === undefined ? {} : { without: section.without };
    const support = supportOf(section);
    mayLoad ||= support === 'yes';
    features.push({ name: section.section, kind: 'program', since: section.since, ...optional, support });
    for (const [helper, since] of Object.entries(section.helpers)) {
      features.push({
        name: `${helper} in ${section.section}`,
        kind: 'helper',
        ...(typeof since === 'string' ? { since } : since),
        ...optional,
        support: support === 'yes' ? helperSupport(section, helper) : support,
      });
    }
  }
  for (const { name, type, since, without } of MAPS) {
    const there = libbpf().probeMapType(type, null) === 1;
    features.push({
      name: `map ${name}`,
      kind: 'map',
      since,
      ...(without === undefined ? {} : { without }),
      support: there ? 'yes' : mayLoad ? 'no' : 'unknown',
    });
  }
  features.push({ name: 'cgroup link', kind: 'link', since: '5.7', support: linkSupport() });
  return (probed = features);
}

/** The helpers that are tried, by section, as their numbers: for the test that compares them with the objects. */
export function probedHelpers(): ReadonlyMap<string, readonly (number | undefined)[]> {
  return new Map(
    SECTIONS.map(({ section, helpers }) => [section, Object.keys(helpers).map((name) => HELPER_IDS[name])]),
  );
}

/** Whether the kernel lets a program of this type and attach type call a helper, all by their numbers in <linux/bpf.h>. */
export function mayCall(type: number, attach: number, helper: number): boolean {
  const { log } = tryLoad({ type, attach }, [call(helper), RETURN_1, EXIT]);
  return !NO_HELPER.test(log);
}

/** The first version that has all that cgroute cannot do without. */
export function leastKernel(): string {
  const needed = SECTIONS.filter((section) => section.without === undefined);
  const versions = [
    ...needed.flatMap((section) => [
      section.since,
      ...Object.values(section.helpers).filter((since) => typeof since === 'string'),
    ]),
    ...MAPS.filter((map) => map.without === undefined).map((map) => map.since),
  ];
  return versions.reduce((least, version) => (isOlder(least, version) ? version : least));
}

/** Compares the first two numbers of kernel releases. */
export function isOlder(version: string, than: string): boolean {
  const [major = 0, minor = 0] = numbers(version);
  const [thanMajor = 0, thanMinor = 0] = numbers(than);
  return major < thanMajor || (major === thanMajor && minor < thanMinor);
}

const numbers = (version: string): number[] => version.split('.').map((part) => Number.parseInt(part, 10));

/** The same trials in short. Never throws: without libbpf, or without privileges, nothing is true. */
export function capabilityReport(): CapabilityReport {
  let features: readonly ProbedFeature[] = [];
  try {
    features = probeFeatures();
  } catch {
    // Without libbpf there is nothing to report; doctor says so.
  }
  return {
    kernel: release(),
    features: Object.fromEntries(features.map(({ name, support }) => [name, support === 'yes'])),
  };
}
