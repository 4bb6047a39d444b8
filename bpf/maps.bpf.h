/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps that more than one object uses. Each is pinned by its name, and
 * reused from there, so that every object and every agent sees the same one.
 * The sizes are defaults; the agent sets them from its configuration.
 */
#ifndef CGROUTE_MAPS_BPF_H
#define CGROUTE_MAPS_BPF_H

/* Client sockets that were redirected, by socket cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, __u64);
	__type(value, struct connection);
} connection_map SEC(".maps");

/* From the SYN's leaving until the proxy's side is established. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct tuple);
	__type(value, struct original_dst);
} original_dst_map SEC(".maps");

#endif
