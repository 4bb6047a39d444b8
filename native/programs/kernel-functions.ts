/** The kernel's helpers that cgroute's programs call. Data only. */

/** By their numbers: `enum bpf_func_id`, <linux/bpf.h>. */
export const helperIds = {
  bpf_get_current_uid_gid: 15,
  bpf_get_current_comm: 16,
  bpf_get_current_task: 35,
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
  bpf_get_retval: 186,
  bpf_set_retval: 187,
  bpf_skc_to_mptcp_sock: 196,
} as const;
export type Helper = keyof typeof helperIds;

/**
 * Helpers older than any kernel that has the rest, by number: maps' lookup, update
 * and delete, ktime_get_ns, skb_load_bytes; and ktime_get_coarse_ns (5.11), for
 * which ktime_get_ns stands where it is missing. No program's row names them.
 */
export const alwaysThere: ReadonlySet<number> = new Set([1, 2, 3, 5, 26, 160]);

/** The kernel version that lets a type of program call it; or with what older ones lack, or with what is done in its place there, so that nothing is lost. */
export type Since =
  | string
  | { readonly since: string; readonly without: string }
  | { readonly since: string; readonly instead: string };

/**
 * What a program calls, with the versions. They are from the commits that allowed
 * a helper in a type of program: socket cookie d692f1138a4b and, in CGROUP_SOCK,
 * Daniel Borkmann's series of March 2020 for cgroup hooks, with cgroup ids and
 * comm; netns cookie in sockops 6cf1770d63dd and in sockopt f1248dee954c;
 * bpf_probe_read_kernel and the current task there
 * f470378c7562; cgroup ids everywhere c501bf55c88b and
 * in SYSCALL 95b861a7935b; callback flags b13d88072172; bpf_skc_to_mptcp_sock
 * 3bc253c2e652; return values at sock_addr hooks bed89185af0d.
 */
export type Helpers = Readonly<Partial<Record<Helper, Since>>>;
