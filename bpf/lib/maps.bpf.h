/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps that more than one object uses. Each is pinned by its name, and
 * reused from there, so that every object and every agent sees the same one.
 * The sizes are defaults; the agent sets them from its configuration.
 */
#ifndef CGROUTE_MAPS_BPF_H
#define CGROUTE_MAPS_BPF_H

#include "connection.h"

/*
 * Client sockets that were redirected, by socket cookie. The first map is small:
 * with a large one each connection meets a bucket that no cache holds, which took
 * longer than all else that a redirected connect() does. What finds no room in it
 * goes into the second.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct connection);
} connection_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct connection);
} connection_overflow_map SEC(".maps");

/* How many there are in the second, which is not looked into while it is empty. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __s64);
} overflow_count_map SEC(".maps");

/* From the proxy's SYN-ACK until the proxy asks. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, struct tuple);
	__type(value, struct original_dst);
} original_dst_map SEC(".maps");

/* How many there are in that. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __s64);
} original_count_map SEC(".maps");

/* Slot 0 belongs to host processes and to pods that are not known. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct pod_counters);
} pod_counters_map SEC(".maps");

/*
 * By slot, so that no pod takes all the room. The first connections of the node
 * are not counted: what costs nothing needs no quota.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct pod_share);
} pod_share_map SEC(".maps");

static __always_inline struct pod_share *find_share(__u32 slot)
{
	return bpf_map_lookup_elem(&pod_share_map, &slot);
}

static __always_inline void add_connections(__u32 slot, __s64 more)
{
	struct pod_share *share = find_share(slot);

	if (share)
		__sync_fetch_and_add(&share->connections, more);
}

static __always_inline __s64 *original_count(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&original_count_map, &zero);
}

static __always_inline void add_originals(__u32 slot, __s64 more)
{
	struct pod_share *share = find_share(slot);
	__s64 *all = original_count();

	if (share)
		__sync_fetch_and_add(&share->originals, more);
	if (all)
		__sync_fetch_and_add(all, more);
}

/* How large a map was made. */
#define ROOM_OF(map) (((struct bpf_map *)&(map))->max_entries)

/*
 * Whether a pod that has so many may have one more, where all together have `all` of
 * them. That is more than there can be while a handover counts; then the limit alone
 * says it.
 */
static __always_inline bool may_have_more(__s64 has, __s64 limit, __s64 all, __s64 room,
					  enum free_part part)
{
	return has < limit && (all > room || has * part < room - all);
}

static __always_inline __s64 *overflow_count(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&overflow_count_map, &zero);
}

static __always_inline struct connection *find_overflow(__u64 cookie)
{
	__s64 *overflow = overflow_count();

	if (!overflow || !*overflow)
		return NULL;
	return bpf_map_lookup_elem(&connection_overflow_map, &cookie);
}

static __always_inline struct connection *find_connection(__u64 cookie)
{
	struct connection *connection;

	connection = bpf_map_lookup_elem(&connection_map, &cookie);
	return connection ? connection : find_overflow(cookie);
}

/* A socket that was redirected before; its pod may be another one now. */
static __always_inline bool replace_overflow(__u64 cookie, __u32 slot_before,
					     const struct connection *connection)
{
	if (bpf_map_update_elem(&connection_overflow_map, &cookie, connection, BPF_ANY))
		return false;
	if (slot_before != connection->original.slot) {
		add_connections(slot_before, -1);
		add_connections(connection->original.slot, 1);
	}
	return true;
}

/*
 * False when there is no room, or the pod has its share of it. What the socket
 * had before is replaced.
 */
static __always_inline bool put_connection(__u64 cookie, __u32 share_limit,
					   const struct connection *connection)
{
	struct connection *before = find_overflow(cookie);
	struct pod_share *share;
	__s64 *overflow;

	if (before)
		return replace_overflow(cookie, before->original.slot, connection);
	if (!bpf_map_update_elem(&connection_map, &cookie, connection, BPF_ANY))
		return true;
	overflow = overflow_count();
	share = find_share(connection->original.slot);
	if (!overflow || !share ||
	    !may_have_more(share->connections, share_limit, *overflow,
			   ROOM_OF(connection_overflow_map), FREE_CONNECTIONS))
		return false;
	if (bpf_map_update_elem(&connection_overflow_map, &cookie, connection, BPF_NOEXIST))
		return false;
	__sync_fetch_and_add(overflow, 1);
	__sync_fetch_and_add(&share->connections, 1);
	return true;
}

static __always_inline void delete_connection(__u64 cookie, __u32 slot)
{
	__s64 *overflow = overflow_count();

	if (!bpf_map_delete_elem(&connection_map, &cookie))
		return;
	if (!overflow || bpf_map_delete_elem(&connection_overflow_map, &cookie))
		return;
	__sync_fetch_and_add(overflow, -1);
	add_connections(slot, -1);
}

static __always_inline void count(__u32 slot, enum branch branch)
{
	struct pod_counters *counters;

	counters = bpf_map_lookup_elem(&pod_counters_map, &slot);
	if (counters)
		__sync_fetch_and_add(&counters->count[branch], 1);
}

#endif
