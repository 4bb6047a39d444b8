/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The client's half of handing over an original destination: it is filed under
 * the connection's tuple before the proxy's side can be established, and
 * forgotten with the socket. Two ways lead here: trace.bpf.c, and where the
 * kernel or the agent's privileges don't allow for it, sockops.bpf.c.
 */
#ifndef CGROUTE_HANDOFF_BPF_H
#define CGROUTE_HANDOFF_BPF_H

#include "address.bpf.h"
#include "cgroute.h"
#include "maps.bpf.h"

/* A destination that nobody fetched for so long was meant for no proxy of ours. */
#define STALE_NS (60 * 1000000000ULL)

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
static __always_inline bool in_one_netns(const struct address *client,
					 const struct address *proxy)
{
	return is_loopback(proxy) || same_address(client, proxy);
}

static __always_inline struct connection *find_connection(__u64 cookie)
{
	return bpf_map_lookup_elem(&connection_map, &cookie);
}

static __always_inline void file_original(struct connection *connection,
					  const struct ends *ends, __u32 isn,
					  __u64 netns)
{
	struct tuple *tuple = &connection->tuple;

	/* A socket that was redirected once may dial elsewhere later. */
	if (!same_address(&ends->remote, &tuple->proxy) ||
	    ends->remote_port_be != connection->proxy_port_be)
		return;
	tuple->client = ends->local;
	tuple->client_port_be = ends->local_port_be;
	tuple->isn = isn;
	tuple->netns = in_one_netns(&tuple->client, &tuple->proxy) ? netns : 0;
	connection->original.at_ns = bpf_ktime_get_ns();
	bpf_map_update_elem(&original_dst_map, tuple, &connection->original, BPF_ANY);
}

/*
 * The client's socket is gone. What it had filed goes with it, if nobody will
 * ask for that any more; else the proxy's question or the agent's sweep ends it.
 */
static __always_inline void forget(__u64 cookie, bool over)
{
	struct connection *connection = find_connection(cookie);

	if (!connection)
		return;
	if (over || bpf_ktime_get_ns() - connection->original.at_ns > STALE_NS)
		bpf_map_delete_elem(&original_dst_map, &connection->tuple);
	bpf_map_delete_elem(&connection_map, &cookie);
}

#endif
