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

/* From the proxy's SYN-ACK until the proxy asks. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct tuple);
	__type(value, struct original_dst);
} original_dst_map SEC(".maps");

/* Slot 0 belongs to host processes and to pods that are not known. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct pod_counters);
} pod_counters_map SEC(".maps");

static __always_inline void count(__u32 slot, enum branch branch)
{
	struct pod_counters *counters;

	counters = bpf_map_lookup_elem(&pod_counters_map, &slot);
	if (counters)
		__sync_fetch_and_add(&counters->count[branch], 1);
}

#endif
