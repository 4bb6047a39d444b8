/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A connection as its two ends can both tell it: what each reads of its own socket. */
#ifndef CGROUTE_TUPLE_BPF_H
#define CGROUTE_TUPLE_BPF_H

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "connection.h"
#include "address.bpf.h"
#include "older-kernel.bpf.h"

#define AF_INET6 10

/* Keeps the compiler from folding loads into one with a computed offset. */
#define READ(field) (*(volatile typeof(field) *)&(field))

/* Where a socket connects from and to, as its owner sees it. */
struct ends {
	struct address local, remote;
	__u16 local_port_be, remote_port_be;
};

/* IPv4 in the last four bytes, also where it is mapped into IPv6. */
static __always_inline void normalise(struct address *address, bool ip6, __u32 ip4)
{
	if (ip6 && (address->word_be[0] || address->word_be[1] ||
		    address->word_be[2] != bpf_htonl(0xffff)))
		return;
	address->word_be[0] = 0;
	address->word_be[1] = 0;
	address->word_be[2] = 0;
	address->word_be[3] = ip4;
}

/* Both ends come to the same answer, as both see the same two addresses. */
static __always_inline bool in_one_netns(const struct address *client, const struct address *proxy)
{
	return is_loopback(proxy) || same_address(client, proxy);
}

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

static __always_inline __u64 netns_of(struct bpf_sock_ops *ctx)
{
	return HAS_NETNS_COOKIE ? bpf_get_netns_cookie(ctx) : netns_inode(ctx->sk);
}

/* The client's; what came so far is counted with a FIN, and without the SYN. */
static __always_inline __u32 isn_of(struct bpf_tcp_sock *tcp)
{
	return tcp->rcv_nxt - (__u32)tcp->bytes_received - 1;
}

/* At the proxy's end, whose peer is the client; all but the client's number. */
static __always_inline void read_tuple(struct bpf_sockopt *ctx, struct bpf_sock *sk,
				       struct tuple *tuple)
{
	bool ip6 = READ(sk->family) == AF_INET6;
	struct address proxy;

	proxy.word_be[0] = READ(sk->src_ip6[0]);
	proxy.word_be[1] = READ(sk->src_ip6[1]);
	proxy.word_be[2] = READ(sk->src_ip6[2]);
	proxy.word_be[3] = READ(sk->src_ip6[3]);
	tuple->client.word_be[0] = READ(sk->dst_ip6[0]);
	tuple->client.word_be[1] = READ(sk->dst_ip6[1]);
	tuple->client.word_be[2] = READ(sk->dst_ip6[2]);
	tuple->client.word_be[3] = READ(sk->dst_ip6[3]);
	normalise(&proxy, ip6, READ(sk->src_ip4));
	normalise(&tuple->client, ip6, READ(sk->dst_ip4));
	tuple->client_port_be = READ(sk->dst_port);
	if (in_one_netns(&tuple->client, &proxy))
		tuple->netns = HAS_NETNS_COOKIE ? bpf_get_netns_cookie(ctx) : netns_inode(sk);
}

#endif
