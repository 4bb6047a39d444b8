// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The client's half without tracing, for kernels that have no BPF trampolines:
 * attached at the watched root, so every TCP connection below it pays for some
 * five calls that lead to nothing.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "handoff.bpf.h"

#define AF_INET6 10

/* Keeps the compiler from folding loads into one with a computed offset. */
#define READ(field) (*(volatile typeof(field) *)&(field))

/* sock_ops has the local port in host order and the remote one in network order. */
static __always_inline void read_ends(struct bpf_sock_ops *ctx, struct ends *ends)
{
	bool ip6 = READ(ctx->family) == AF_INET6;
	__u32 remote_port_be = READ(ctx->remote_port);

	ends->local.word_be[0] = READ(ctx->local_ip6[0]);
	ends->local.word_be[1] = READ(ctx->local_ip6[1]);
	ends->local.word_be[2] = READ(ctx->local_ip6[2]);
	ends->local.word_be[3] = READ(ctx->local_ip6[3]);
	ends->remote.word_be[0] = READ(ctx->remote_ip6[0]);
	ends->remote.word_be[1] = READ(ctx->remote_ip6[1]);
	ends->remote.word_be[2] = READ(ctx->remote_ip6[2]);
	ends->remote.word_be[3] = READ(ctx->remote_ip6[3]);
	normalise(&ends->local, ip6, READ(ctx->local_ip4));
	normalise(&ends->remote, ip6, READ(ctx->remote_ip4));
	ends->local_port_be = bpf_htons((__u16)READ(ctx->local_port));
	ends->remote_port_be = bpf_htons((__u16)bpf_ntohl(remote_port_be));
}

/* The port is chosen, and the SYN has not left yet. */
static __always_inline void on_syn(struct bpf_sock_ops *ctx)
{
	struct connection *connection;
	struct bpf_sock *sk = ctx->sk;
	struct ends ends = {};
	struct tcp_sock *tcp;

	connection = find_connection(bpf_get_socket_cookie(ctx));
	if (!connection || !sk)
		return;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return;
	read_ends(ctx, &ends);
	file_original(connection, &ends, tcp->write_seq, bpf_get_netns_cookie(ctx));
	/* The application closes an MPTCP socket, never the TCP ones below it. */
	if (bpf_skc_to_mptcp_sock(sk))
		bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
}

SEC("sockops")
int sock_ops(struct bpf_sock_ops *ctx)
{
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		on_syn(ctx);
	else if (ctx->op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == BPF_TCP_CLOSE)
		forget(bpf_get_socket_cookie(ctx), ctx->args[0] == BPF_TCP_SYN_SENT);
	return 1;
}

SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	__u32 state = ctx->state;

	/* The handshake failed, or the proxy has closed its side already. */
	forget(bpf_get_socket_cookie(ctx), state == BPF_TCP_SYN_SENT ||
						   state == BPF_TCP_CLOSE_WAIT ||
						   state == BPF_TCP_CLOSE);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
