/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whether it can be the proxy that a client's socket has shaken hands with. */
#ifndef CGROUTE_REACH_BPF_H
#define CGROUTE_REACH_BPF_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "settings.bpf.h"
#include "tuple.bpf.h"

#define IFF_LOOPBACK 0x8

/* What it sends comes back by lo, so the other end is in its own network namespace. */
static __always_inline bool stays_in_netns(const struct tcp_sock *tcp)
{
	const struct dst_entry *route = tcp->inet_conn.icsk_inet.sk.sk_dst_cache;
	const struct net_device *device = route ? route->dev : NULL;

	return device && (device->flags & IFF_LOOPBACK);
}

/*
 * Whether the proxy can be at the other end. A pod may make network namespaces in
 * which it is root, and give the proxy's address to a listener of its own there; and
 * a socket in repair mode is established without anybody. What such ones would file
 * nobody comes for.
 */
static __always_inline bool may_reach_proxy(struct bpf_sock_ops *ctx, const struct tcp_sock *tcp,
					    const struct ends *ends)
{
	__u64 netns;

	if (BPF_CORE_READ_BITFIELD(tcp, repair))
		return false;
	if (!in_one_netns(&ends->local, &ends->remote) && !stays_in_netns(tcp))
		return true;
	netns = proxy_netns();
	return !netns || netns == netns_inode(ctx->sk);
}

#endif
