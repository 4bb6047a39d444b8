/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The TCP connection below an MPTCP socket: what accept() gave and what an
 * application asks by, while connect() and sock_ops see the TCP socket.
 */
#ifndef CGROUTE_MPTCP_BPF_H
#define CGROUTE_MPTCP_BPF_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "lookup.bpf.h"

/* Not in every kernel, and so in no vmlinux.h for sure; libbpf finds the true one. */
struct mptcp_sock___first {
	struct sock *first;
} __attribute__((preserve_access_index));

static __always_inline bool is_mptcp(struct bpf_sock *sk)
{
	return sk->protocol == IPPROTO_MPTCP;
}

/*
 * The first one, which is the one that was redirected. NULL when it is gone, and
 * where the kernel is built without MPTCP. No helper tells it in the programs of a
 * socket's owner, so it is read from the kernel's memory; see netns_inode().
 */
static __always_inline const struct sock *first_subflow(struct bpf_sock *sk)
{
	struct bpf_sock *volatile kept = sk;
	const struct mptcp_sock___first *socket = NULL;

	if (!bpf_core_field_exists(socket->first))
		return NULL;
	bpf_probe_read_kernel(&socket, sizeof(socket), (const void *)&kept);
	return BPF_CORE_READ(socket, first);
}

static __always_inline __u64 subflow_cookie(const struct sock *subflow)
{
	return BPF_CORE_READ(subflow, __sk_common.skc_cookie.counter);
}

/*
 * The lock that the kernel holds for whoever asks is that of the MPTCP socket: what
 * is read here may change meanwhile. See isn_of().
 */
static __always_inline __u32 subflow_isn(const struct sock *subflow)
{
	const struct tcp_sock *tcp = (const void *)subflow;
	__u64 received = BPF_CORE_READ(tcp, bytes_received);

	return BPF_CORE_READ(tcp, rcv_nxt) - (__u32)received - 1;
}

#endif
