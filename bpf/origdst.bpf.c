// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Hands the original destination from the client's socket to the proxy's.
 *
 * When the proxy's SYN-ACK is here, and the ACK that makes the proxy's side stand
 * has not left, the destination is filed under the connection's tuple. When the
 * proxy asks for it, it moves into the proxy's socket and stays as long as that
 * lives. A handshake that fails has filed nothing.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "cgroute.h"
#include "connection.h"
#include "lib/address.bpf.h"
#include "lib/maps.bpf.h"
#include "lib/mptcp.bpf.h"
#include "lib/older-kernel.bpf.h"
#include "lib/originals.bpf.h"
#include "lib/reach.bpf.h"
#include "lib/tuple.bpf.h"

#define AF_INET 2
#define SOL_IP 0
#define SOL_IPV6 41
#define SO_ORIGINAL_DST 80 /* and IP6T_SO_ORIGINAL_DST */

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct original_dst);
} accepted_map SEC(".maps");

/* A destination that nobody fetched for so long was meant for no proxy of ours. */
#define STALE_NS (60 * 1000000000ULL)

static __always_inline void file_original(struct bpf_sock_ops *ctx, const struct tcp_sock *tcp,
					  struct connection *connection, const struct ends *ends,
					  __u32 isn)
{
	struct tuple *tuple = &connection->tuple;

	/* A socket that was redirected once may dial elsewhere later. */
	if (!same_address(&ends->remote, &connection->proxy) ||
	    ends->remote_port_be != connection->proxy_port_be)
		return;
	if (!may_reach_proxy(ctx, tcp, ends)) {
		count(connection->original.slot, BRANCH_HANDOFF_LOST);
		return;
	}
	tuple->client = ends->local;
	tuple->client_port_be = ends->local_port_be;
	tuple->isn = isn;
	tuple->netns = in_one_netns(&ends->local, &ends->remote) ? netns_of(ctx) : 0;
	connection->original.at_ns = now_ns();
	if (!put_original(tuple, &connection->original))
		count(connection->original.slot, BRANCH_HANDOFF_LOST);
}

/*
 * The client's socket is gone. What it had filed goes with it, if nobody will
 * ask for that any more; else the proxy's question or the agent's sweep ends it.
 */
static __always_inline void forget(__u64 cookie, bool over)
{
	struct connection *connection = find_connection(cookie);
	__u32 slot;

	if (!connection)
		return;
	slot = connection->original.slot;
	if (over || now_ns() - connection->original.at_ns > STALE_NS)
		delete_original(&connection->tuple, slot);
	delete_connection(cookie, slot);
}

static __always_inline void on_established(struct bpf_sock_ops *ctx)
{
	struct connection *connection;
	struct bpf_sock *sk = ctx->sk;
	struct ends ends = {};
	struct tcp_sock *tcp;

	connection = find_connection(bpf_get_socket_cookie(ctx));
	if (!connection || connection->original.at_ns)
		return; /* filed with its SYN */
	tcp = sk ? bpf_skc_to_tcp_sock(sk) : NULL;
	if (!tcp)
		return;
	read_ends(ctx, &ends);
	/* All that has been acknowledged is the SYN, and with Fast Open its data. */
	file_original(ctx, tcp, connection, &ends, ctx->snd_una - (__u32)ctx->bytes_acked);
}

/*
 * With Fast Open the proxy may have accepted, and asked, before the client has its
 * SYN-ACK. So what it asks for is there before the SYN leaves.
 */
static __always_inline void file_early(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct connection *connection;
	struct ends ends = {};
	struct tcp_sock *tcp;

	tcp = sk ? bpf_skc_to_tcp_sock(sk) : NULL;
	if (!tcp || !tcp->fastopen_req)
		return;
	connection = find_connection(bpf_get_socket_cookie(ctx));
	if (!connection)
		return;
	read_ends(ctx, &ends);
	file_original(ctx, tcp, connection, &ends, tcp->write_seq);
}

/* Before Linux 5.19 nobody can tell: each redirected one may be. */
static __always_inline bool may_be_mptcp(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (!HAS_HELPER(skc_to_mptcp_sock))
		return find_connection(bpf_get_socket_cookie(ctx));
	return sk && bpf_skc_to_mptcp_sock(sk);
}

/*
 * The application closes an MPTCP socket, never the TCP ones below it: those are
 * to tell by themselves. Asked now, as one that falls back is plain TCP later.
 */
static __always_inline void on_connect(struct bpf_sock_ops *ctx)
{
	if (may_be_mptcp(ctx))
		bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
	file_early(ctx);
}

/* Called some five times for a connection at each end, so it leaves early. */
SEC("sockops")
int sock_ops(struct bpf_sock_ops *ctx)
{
	if (ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		on_established(ctx);
	else if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		on_connect(ctx);
	else if (ctx->op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == BPF_TCP_CLOSE)
		forget(bpf_get_socket_cookie(ctx), ctx->args[0] == BPF_TCP_SYN_SENT);
	return 1;
}

/*
 * With the proxy's FIN the proxy is through with the connection, and with a SYN
 * that nobody answered nobody will ask. A client that
 * goes away first may be quicker than the proxy, which is still going to ask.
 */
SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	__u32 state = ctx->state;

	forget(bpf_get_socket_cookie(ctx),
	       state == BPF_TCP_CLOSE_WAIT || state == BPF_TCP_CLOSE || state == BPF_TCP_SYN_SENT);
	return 1;
}

/*
 * Where a proxy listens with MPTCP and the client speaks it too, what the proxy has
 * accepted is an MPTCP socket. What is torn by a packet that comes in just then is
 * under no key, so it is read again.
 */
static __always_inline struct original_dst *find_original(struct bpf_sock *sk, struct tuple *tuple)
{
	struct bpf_tcp_sock *tcp = bpf_tcp_sock(sk);
	struct original_dst *original = NULL;
	const struct sock *subflow;
	int look;

	if (tcp) {
		tuple->isn = isn_of(tcp);
		return bpf_map_lookup_elem(&original_dst_map, tuple);
	}
	subflow = is_mptcp(sk) ? first_subflow(sk) : NULL;
	for (look = 0; subflow && look < LOOKUPS && !original; look++) {
		tuple->isn = subflow_isn(subflow);
		original = bpf_map_lookup_elem(&original_dst_map, tuple);
	}
	return original;
}

/* NULL when the connection was not redirected. */
static __always_inline struct original_dst *fetch_original(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct original_dst *original, *moved;
	struct tuple tuple = {};

	if (!sk)
		return NULL;
	original = bpf_sk_storage_get(&accepted_map, sk, 0, 0);
	if (original)
		return original;
	read_tuple(ctx, sk, &tuple);
	original = find_original(sk, &tuple);
	if (!original)
		return NULL;
	moved = bpf_sk_storage_get(&accepted_map, sk, original, BPF_SK_STORAGE_GET_F_CREATE);
	/* No memory for that: it stays in the map while the client's socket lives. */
	if (!moved)
		return original;
	if (delete_original(&tuple, moved->slot))
		return moved;
	/*
	 * The client has gone meanwhile, and what was copied may be another's already,
	 * see lookup.bpf.h. Nobody else asks: the kernel holds the socket's lock.
	 */
	bpf_sk_storage_delete(&accepted_map, sk);
	return NULL;
}

SEC("cgroup/getsockopt")
int original_dst(struct bpf_sockopt *ctx)
{
	struct original_dst *original;
	struct sockaddr_in6 *in6;
	struct sockaddr_in *in;
	bool ip4;

	/* The kernel hands over a page at most; zero leaves the rest as it is. */
	if (ctx->optlen > 4096) {
		ctx->optlen = 0;
		return 1;
	}
	if (ctx->optname != SO_ORIGINAL_DST || (ctx->level != SOL_IP && ctx->level != SOL_IPV6))
		return 1;
	original = fetch_original(ctx);
	if (!original)
		return 1;
	ip4 = is_ip4(&original->address);

	if (ctx->level == SOL_IP) {
		in = ctx->optval;
		if (!ip4 || (void *)(in + 1) > ctx->optval_end)
			return 1;
		__builtin_memset(in, 0, sizeof(*in));
		in->sin_family = AF_INET;
		in->sin_port = original->port_be;
		in->sin_addr.s_addr = original->address.word_be[3];
		ctx->optlen = sizeof(*in);
	} else {
		in6 = ctx->optval;
		if ((void *)(in6 + 1) > ctx->optval_end)
			return 1;
		__builtin_memset(in6, 0, sizeof(*in6));
		in6->sin6_family = AF_INET6;
		in6->sin6_port = original->port_be;
		in6->sin6_addr.in6_u.u6_addr32[0] = original->address.word_be[0];
		in6->sin6_addr.in6_u.u6_addr32[1] = original->address.word_be[1];
		in6->sin6_addr.in6_u.u6_addr32[2] =
			ip4 ? bpf_htonl(0xffff) : original->address.word_be[2];
		in6->sin6_addr.in6_u.u6_addr32[3] = original->address.word_be[3];
		ctx->optlen = sizeof(*in6);
	}
	ctx->retval = 0;
	return 1;
}

/* That of the socket which the connect programs have seen. */
static __always_inline __u64 connected_cookie(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	const struct sock *subflow;

	if (!sk || !is_mptcp(sk))
		return bpf_get_socket_cookie(ctx);
	subflow = first_subflow(sk);
	return subflow ? subflow_cookie(subflow) : 0;
}

static __always_inline struct connection *redirected(struct bpf_sock_addr *ctx)
{
	struct connection *connection = find_connection(connected_cookie(ctx));

	/* As above: only while it is the proxy that this socket is connected to. */
	if (!connection || (__u16)ctx->user_port != connection->proxy_port_be)
		return NULL;
	return connection;
}

/* The application sees the peer that it asked for. */
SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	struct connection *connection = redirected(ctx);

	if (!connection || ctx->user_ip4 != connection->proxy.word_be[3])
		return 1;
	ctx->user_ip4 = connection->original.address.word_be[3];
	ctx->user_port = connection->original.port_be;
	return 1;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	struct connection *connection = redirected(ctx);
	struct address *address;
	bool ip4;

	if (!connection || ctx->user_ip6[3] != connection->proxy.word_be[3])
		return 1;
	address = &connection->original.address;
	ip4 = is_ip4(address);
	ctx->user_ip6[0] = address->word_be[0];
	ctx->user_ip6[1] = address->word_be[1];
	ctx->user_ip6[2] = ip4 ? bpf_htonl(0xffff) : address->word_be[2];
	ctx->user_ip6[3] = address->word_be[3];
	ctx->user_port = connection->original.port_be;
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
