/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whose a socket is by its own cgroup, where the current process is the kernel's: it
 * opens subflows of MPTCP, and connections of NFS, CIFS and SMC, from threads of its
 * own. Before Linux 5.12 those of io_uring are such, too.
 */
#ifndef CGROUTE_SOCKET_OWNER_BPF_H
#define CGROUTE_SOCKET_OWNER_BPF_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "cgroute.h"
#include "identity.bpf.h"

#define PF_KTHREAD 0x00200000 /* <linux/sched.h> */

/* Deeper ones are not looked at, as a program has an end. */
#define MAX_NESTING 32

static __always_inline bool is_kernel_thread(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, flags) & PF_KTHREAD;
}

/* Whether the kernel has it join a connection of MPTCP that stands: nobody asks it for a destination. */
static __always_inline bool is_subflow(const struct sock *socket)
{
	const struct tcp_sock *tcp = (const void *)socket;

	return bpf_core_field_exists(tcp->is_mptcp) &&
	       BPF_CORE_READ_BITFIELD_PROBED(tcp, is_mptcp) && is_kernel_thread();
}

/* Before Linux 5.15: the pointer, with marks in its last bits, or what net_cls and net_prio have of the socket. */
struct sock_cgroup_data___marked {
	__u64 val;
} __attribute__((preserve_access_index));
#define IS_DATA 1
#define MARKS 3

static __always_inline struct cgroup *cgroup_of(const struct sock *socket)
{
	struct sock_cgroup_data___marked *marked;
	__u64 val;

	if (bpf_core_field_exists(socket->sk_cgrp_data.cgroup))
		return BPF_CORE_READ(socket, sk_cgrp_data.cgroup);
	marked = (void *)__builtin_preserve_access_index(&socket->sk_cgrp_data);
	val = BPF_CORE_READ(marked, val);
	return val & IS_DATA ? NULL : (struct cgroup *)(val & ~(__u64)MARKS);
}

/* As find_pod(), by the socket. */
static __always_inline bool find_socket_pod(const struct sock *socket, struct cgroup_info *info)
{
	struct cgroup *cgroup = cgroup_of(socket);
	__u64 id, known = 0;
	int i, level;

	for (i = 0; i < MAX_NESTING; i++) {
		level = cgroup ? BPF_CORE_READ(cgroup, level) : 0;
		if (level <= (int)root_level)
			break;
		id = BPF_CORE_READ(cgroup, kn, id);
		if (level <= (int)root_level + CGROUTE_MAX_DEPTH &&
		    bpf_map_lookup_elem(&cgroup_info_map, &id)) {
			known = id;
			break;
		}
		/* A cgroup begins with the state of its own. */
		cgroup = (struct cgroup *)BPF_CORE_READ(cgroup, self.parent);
	}
	return known && read_info(known, info);
}

#endif
