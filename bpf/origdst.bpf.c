// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The two who ask. The proxy asks for the original destination: the first time
 * it moves from where the client filed it into the proxy's socket, and stays
 * there as long as that lives. The application asks for its peer, and sees the
 * one that it has connected to.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "handoff.bpf.h"

#define AF_INET 2
#define AF_INET6 10
#define SOL_IP 0
#define SOL_IPV6 41
#define SO_ORIGINAL_DST 80 /* and IP6T_SO_ORIGINAL_DST */

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct original_dst);
} accepted_map SEC(".maps");

/* Keeps the compiler from folding loads into one with a computed offset. */
#define READ(field) (*(volatile typeof(field) *)&(field))

static __always_inline void read_tuple(struct bpf_sockopt *ctx, struct bpf_sock *sk,
				       struct bpf_tcp_sock *tcp, struct tuple *tuple)
{
	bool ip6 = READ(sk->family) == AF_INET6;

	tuple->proxy.word_be[0] = READ(sk->src_ip6[0]);
	tuple->proxy.word_be[1] = READ(sk->src_ip6[1]);
	tuple->proxy.word_be[2] = READ(sk->src_ip6[2]);
	tuple->proxy.word_be[3] = READ(sk->src_ip6[3]);
	tuple->client.word_be[0] = READ(sk->dst_ip6[0]);
	tuple->client.word_be[1] = READ(sk->dst_ip6[1]);
	tuple->client.word_be[2] = READ(sk->dst_ip6[2]);
	tuple->client.word_be[3] = READ(sk->dst_ip6[3]);
	normalise(&tuple->proxy, ip6, READ(sk->src_ip4));
	normalise(&tuple->client, ip6, READ(sk->dst_ip4));
	tuple->client_port_be = READ(sk->dst_port);
	/* What came so far is counted with a FIN, and without the SYN. */
	tuple->isn = tcp->rcv_nxt - (__u32)tcp->bytes_received - 1;
	if (in_one_netns(&tuple->client, &tuple->proxy))
		tuple->netns = bpf_get_netns_cookie(ctx);
}

/*
 * A Fast Open connection can be accepted before the client has its SYN-ACK, some
 * microseconds before its destination is filed. It is still in SYN_RECV then.
 */
#define FAST_OPEN_LOOKS 2048

/* NULL when the connection was not redirected. */
static __always_inline struct original_dst *fetch_original(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct original_dst *original;
	struct bpf_tcp_sock *tcp;
	struct tuple tuple = {};
	int i;

	if (!sk)
		return NULL;
	original = bpf_sk_storage_get(&accepted_map, sk, 0, 0);
	if (original)
		return original;
	tcp = bpf_tcp_sock(sk);
	if (!tcp)
		return NULL;
	read_tuple(ctx, sk, tcp, &tuple);
	original = bpf_map_lookup_elem(&original_dst_map, &tuple);
	for (i = 0; !original && sk->state == BPF_TCP_SYN_RECV && i < FAST_OPEN_LOOKS; i++)
		original = bpf_map_lookup_elem(&original_dst_map, &tuple);
	if (!original)
		return NULL;
	original = bpf_sk_storage_get(&accepted_map, sk, original,
				      BPF_SK_STORAGE_GET_F_CREATE);
	if (original)
		bpf_map_delete_elem(&original_dst_map, &tuple);
	return original;
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
	if (ctx->optname != SO_ORIGINAL_DST ||
	    (ctx->level != SOL_IP && ctx->level != SOL_IPV6))
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

static __always_inline struct connection *redirected(struct bpf_sock_addr *ctx)
{
	struct connection *connection;
	__u64 cookie;

	cookie = bpf_get_socket_cookie(ctx);
	connection = bpf_map_lookup_elem(&connection_map, &cookie);
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
