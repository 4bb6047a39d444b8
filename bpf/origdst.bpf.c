// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Hands the original destination from the client's socket to the proxy's.
 *
 * When the client's SYN is about to leave, its destination is filed under the
 * connection's tuple. When the proxy's side is established it moves into that
 * socket's own storage, where SO_ORIGINAL_DST finds it for as long as the
 * socket lives: nothing to evict, nothing left behind.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "address.bpf.h"
#include "cgroute.h"
#include "maps.bpf.h"

#define AF_INET 2
#define AF_INET6 10
#define SOL_IP 0
#define SOL_IPV6 41
#define SO_ORIGINAL_DST 80 /* and IP6T_SO_ORIGINAL_DST */

/* A tuple that nobody fetched for so long belongs to a handshake that failed. */
#define STALE_NS (60 * 1000000000ULL)

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct original_dst);
} accepted_map SEC(".maps");

/* A socket's own end of a connection, and the other. */
struct ends {
	struct address local, remote;
	__u16 local_port_be, remote_port_be;
};

/* Keeps the compiler from folding loads into one with a computed offset. */
#define READ(field) (*(volatile typeof(field) *)&(field))

static __always_inline void normalise(struct address *address, __u32 family,
				      __u32 ip4)
{
	if (family == AF_INET6 &&
	    (address->word_be[0] || address->word_be[1] ||
	     address->word_be[2] != bpf_htonl(0xffff)))
		return;
	address->word_be[0] = 0;
	address->word_be[1] = 0;
	address->word_be[2] = 0;
	address->word_be[3] = ip4;
}

/* sock_ops has the local port in host order and the remote one in network order. */
static __always_inline void read_ends(struct bpf_sock_ops *ctx, struct ends *ends)
{
	__u32 family = READ(ctx->family);
	__u32 remote_port_be = READ(ctx->remote_port);

	ends->local.word_be[0] = READ(ctx->local_ip6[0]);
	ends->local.word_be[1] = READ(ctx->local_ip6[1]);
	ends->local.word_be[2] = READ(ctx->local_ip6[2]);
	ends->local.word_be[3] = READ(ctx->local_ip6[3]);
	ends->remote.word_be[0] = READ(ctx->remote_ip6[0]);
	ends->remote.word_be[1] = READ(ctx->remote_ip6[1]);
	ends->remote.word_be[2] = READ(ctx->remote_ip6[2]);
	ends->remote.word_be[3] = READ(ctx->remote_ip6[3]);
	normalise(&ends->local, family, READ(ctx->local_ip4));
	normalise(&ends->remote, family, READ(ctx->remote_ip4));
	ends->local_port_be = bpf_htons((__u16)READ(ctx->local_port));
	ends->remote_port_be = bpf_htons((__u16)bpf_ntohl(remote_port_be));
}

/* Both ends come to the same answer, as both see the same two addresses. */
static __always_inline __u64 shared_netns(struct bpf_sock_ops *ctx,
					  const struct tuple *tuple)
{
	if (is_loopback(&tuple->proxy) || same_address(&tuple->client, &tuple->proxy))
		return bpf_get_netns_cookie(ctx);
	return 0;
}

/* The client's SYN is about to leave: its port is known now. */
static __always_inline void file_original(struct bpf_sock_ops *ctx,
					  const struct ends *ends,
					  struct connection *connection)
{
	struct tuple *tuple = &connection->tuple;
	struct bpf_sock *sk = ctx->sk;

	/* A socket that was redirected once may dial elsewhere later. */
	if (!same_address(&ends->remote, &tuple->proxy) ||
	    ends->remote_port_be != tuple->proxy_port_be)
		return;
	tuple->client = ends->local;
	tuple->client_port_be = ends->local_port_be;
	tuple->netns = shared_netns(ctx, tuple);
	connection->original.at_ns = bpf_ktime_get_ns();
	bpf_map_update_elem(&original_dst_map, tuple, &connection->original, BPF_ANY);
	/* The application closes an MPTCP socket, never the TCP ones below it. */
	if (sk && bpf_skc_to_mptcp_sock(sk))
		bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* The proxy's side of a connection stands. */
static __always_inline void fetch_original(struct bpf_sock_ops *ctx,
					   const struct ends *ends)
{
	struct bpf_sock *sk = ctx->sk;
	struct original_dst *original;
	struct tuple tuple = {};

	tuple.proxy = ends->local;
	tuple.proxy_port_be = ends->local_port_be;
	tuple.client = ends->remote;
	tuple.client_port_be = ends->remote_port_be;
	tuple.netns = shared_netns(ctx, &tuple);
	original = bpf_map_lookup_elem(&original_dst_map, &tuple);
	if (!original)
		return;
	if (sk)
		bpf_sk_storage_get(&accepted_map, sk, original,
				   BPF_SK_STORAGE_GET_F_CREATE);
	bpf_map_delete_elem(&original_dst_map, &tuple);
}

/*
 * A client's socket is closed. A tuple that is still filed is one whose
 * handshake failed, unless the client was quicker than the proxy: that one is
 * left for it.
 */
static __always_inline void forget(__u64 cookie, bool failed)
{
	struct connection *connection;

	connection = bpf_map_lookup_elem(&connection_map, &cookie);
	if (!connection)
		return;
	if (failed || bpf_ktime_get_ns() - connection->original.at_ns > STALE_NS)
		bpf_map_delete_elem(&original_dst_map, &connection->tuple);
	bpf_map_delete_elem(&connection_map, &cookie);
}

SEC("sockops")
int sock_ops(struct bpf_sock_ops *ctx)
{
	struct connection *connection = NULL;
	struct ends ends;
	__u64 cookie;

	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		cookie = bpf_get_socket_cookie(ctx);
		connection = bpf_map_lookup_elem(&connection_map, &cookie);
		if (!connection)
			return 1;
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] == BPF_TCP_CLOSE)
			forget(bpf_get_socket_cookie(ctx),
			       ctx->args[0] == BPF_TCP_SYN_SENT);
		return 1;
	default:
		return 1;
	}
	read_ends(ctx, &ends);
	if (connection)
		file_original(ctx, &ends, connection);
	else
		fetch_original(ctx, &ends);
	return 1;
}

SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	forget(bpf_get_socket_cookie(ctx),
	       ctx->state == BPF_TCP_SYN_SENT || ctx->state == BPF_TCP_CLOSE);
	return 1;
}

SEC("cgroup/getsockopt")
int original_dst(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct original_dst *original;
	struct sockaddr_in6 *in6;
	struct sockaddr_in *in;
	bool ip4;

	/* The kernel hands over a page at most; zero leaves the rest as it is. */
	if (ctx->optlen > 4096) {
		ctx->optlen = 0;
		return 1;
	}
	if (ctx->optname != SO_ORIGINAL_DST ||
	    (ctx->level != SOL_IP && ctx->level != SOL_IPV6) || !sk)
		return 1;
	original = bpf_sk_storage_get(&accepted_map, sk, 0, 0);
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

static __always_inline struct connection *redirected(struct bpf_sock_addr *ctx)
{
	struct connection *connection;
	__u64 cookie;

	cookie = bpf_get_socket_cookie(ctx);
	connection = bpf_map_lookup_elem(&connection_map, &cookie);
	/* As above: only while it is the proxy that this socket is connected to. */
	if (!connection || (__u16)ctx->user_port != connection->tuple.proxy_port_be)
		return NULL;
	return connection;
}

/* The application sees the peer that it asked for. */
SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	struct connection *connection = redirected(ctx);

	if (!connection || ctx->user_ip4 != connection->tuple.proxy.word_be[3])
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

	if (!connection || ctx->user_ip6[3] != connection->tuple.proxy.word_be[3])
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
