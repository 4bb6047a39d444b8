/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What stands for what an older kernel lacks; libbpf picks one as it loads a program. */
#ifndef CGROUTE_OLDER_KERNEL_BPF_H
#define CGROUTE_OLDER_KERNEL_BPF_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* A helper that the kernel has not is never seen by its verifier: the call is dead code. */
#define HAS_HELPER(name) bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_##name)

/* Linux 5.11 */
static __always_inline __u64 now_ns(void)
{
	return HAS_HELPER(ktime_get_coarse_ns) ? bpf_ktime_get_coarse_ns() : bpf_ktime_get_ns();
}

/*
 * bpf_set_retval() is for programs at connect() from Linux 6.1 on, as is all of
 * bpf_ktime_get_tai_ns(); before that a denial is EPERM.
 */
#define HAS_SET_RETVAL HAS_HELPER(ktime_get_tai_ns)

/*
 * bpf_get_netns_cookie() is for these programs from Linux 5.15 on, as is all of
 * bpf_task_pt_regs(). Before that the number of the namespace's inode stands for
 * it, which no other has at the time. The verifier lets nobody calculate with a
 * socket's pointer, so it is read back from the stack as a number.
 */
#define HAS_NETNS_COOKIE HAS_HELPER(task_pt_regs)

static __always_inline const struct sock *kernel_socket(struct bpf_sock *sk)
{
	struct bpf_sock *volatile kept = sk;
	const struct sock *socket = NULL;

	bpf_probe_read_kernel(&socket, sizeof(socket), (const void *)&kept);
	return socket;
}

static __always_inline __u64 inode_of_netns(const struct sock *socket)
{
	return BPF_CORE_READ(socket, __sk_common.skc_net.net, ns.inum);
}

static __always_inline __u64 netns_inode(struct bpf_sock *sk)
{
	return inode_of_netns(kernel_socket(sk));
}

#endif
