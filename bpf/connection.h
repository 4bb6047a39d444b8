/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is kept of a redirected connection, beside cgroute.h. */
#ifndef CGROUTE_CONNECTION_H
#define CGROUTE_CONNECTION_H

#include "cgroute.h"

#pragma clang diagnostic push
#pragma clang diagnostic error "-Wpadded"

/*
 * One pod may have at most one in so many of what is still free in a map that all
 * share. However many flood it, each then has as much as the others and the room is
 * never used up; whoever has less than they finds some.
 */
enum free_part {
	FREE_CONNECTIONS = 4, /* connection_overflow_map */
	FREE_ORIGINALS = 8, /* original_dst_map */
};

/* What a pod's connections take up of maps that all pods share. */
struct pod_share {
	__u64 connections; /* in connection_overflow_map */
	__u64 originals; /* in original_dst_map */
};

/*
 * A connection to the proxy as its two ends can both tell it. netns is zero when
 * they are in two namespaces, else their namespace's cookie, so that equal
 * addresses and ports in two namespaces do not meet. The client's initial
 * sequence number stands for the rest: it keeps apart two connections from one
 * port, one after the other or to two ports of the proxy.
 */
struct tuple {
	__u64 netns;
	struct address client;
	__u16 client_port_be;
	__u16 reserved;
	__u32 isn;
};

/* The destination that the application asked for. */
struct original_dst {
	struct address address;
	__u16 port_be;
	__u16 reserved;
	__u32 slot;
	__u64 at_ns; /* CLOCK_MONOTONIC when it was filed */
	__u32 service; /* the service whose address that is, by the agent's number; 0: none */
	__u32 waypoint; /* the gateway that the connection goes to first, likewise */
};

/*
 * A redirected socket of a client, by its cookie, for as long as it is open. No
 * more than two cache lines.
 */
struct connection {
	struct original_dst original;
	struct tuple tuple; /* zero until the proxy has answered */
	struct address proxy;
	__u16 proxy_port_be;
	__u16 reserved; /* for the branch that it went, which a report tells */
	__u32 reserved2;
};

_Static_assert(sizeof(struct connection) <= 128, "two cache lines");

#pragma clang diagnostic pop

#endif
