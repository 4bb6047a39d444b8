/**
 * The kernel's hooks that cgroute's programs run at, and what the kernel calls
 * them. Data only. A program at a hook that is not here takes a row here too.
 *
 * Versions of types of programs and of attach types are from
 * docs/kernel-versions.md of iovisor/bcc and data/feature-versions.yaml of
 * isovalent/ebpf-docs.
 */
export interface Hook {
  /** A program's section in its object: one type of program and one of attachment. */
  readonly section: string;
  /** `enum bpf_prog_type`, <linux/bpf.h>. */
  readonly type: number;
  /** `enum bpf_attach_type`, <linux/bpf.h>. */
  readonly attach: number;
  /** The first kernel version that has it, `5.15`. */
  readonly since: string;
  /** What bpftool-cgroup(8) calls it, where that is another name than here. */
  readonly bpftool?: string;
  /** The kernel's name of the tracepoint, of a program of BPF_TRACE_RAW_TP. */
  readonly tracepoint?: string;
  /** `prog_flags` of a load. */
  readonly flags?: number;
}

const BPF_TRACE_RAW_TP = 23;
const BPF_F_SLEEPABLE = 1 << 4;

/** Those of cgroups, which cgroute's programs share with others'. */
export const cgroupHooks = {
  connect4: { section: 'cgroup/connect4', type: 18, attach: 10, since: '4.17' },
  connect6: { section: 'cgroup/connect6', type: 18, attach: 11, since: '4.17' },
  sock_ops: { section: 'sockops', type: 13, attach: 3, since: '4.13' },
  getsockopt: { section: 'cgroup/getsockopt', type: 25, attach: 21, since: '5.3' },
  getpeername4: { section: 'cgroup/getpeername4', type: 18, attach: 29, since: '5.8' },
  getpeername6: { section: 'cgroup/getpeername6', type: 18, attach: 30, since: '5.8' },
  sock_release: {
    section: 'cgroup/sock_release',
    type: 9,
    attach: 34,
    since: '5.9',
    bpftool: 'cgroup_inet_sock_release',
  },
} as const satisfies Readonly<Record<string, Hook>>;
export type CgroupHook = keyof typeof cgroupHooks;

export const hooks = {
  ...cgroupHooks,
  socket: { section: 'socket', type: 1, attach: 0, since: '3.19' },
  cgroup_mkdir: {
    section: 'tp_btf/cgroup_mkdir',
    type: 26,
    attach: BPF_TRACE_RAW_TP,
    tracepoint: 'cgroup_mkdir',
    since: '5.5',
  },
  cgroup_rmdir: {
    section: 'tp_btf/cgroup_rmdir',
    type: 26,
    attach: BPF_TRACE_RAW_TP,
    tracepoint: 'cgroup_rmdir',
    since: '5.5',
  },
  /** No hook of the kernel's own: run by who loads it. Since commit 79a7f8bdb159. */
  syscall: { section: 'syscall', type: 31, attach: 0, flags: BPF_F_SLEEPABLE, since: '5.14' },
} as const satisfies Readonly<Record<string, Hook>>;
export type HookName = keyof typeof hooks;
