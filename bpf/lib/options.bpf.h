/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A pod's traffic options: what of its connections stays outside the mesh. */
#ifndef CGROUTE_OPTIONS_BPF_H
#define CGROUTE_OPTIONS_BPF_H

#include "cgroute.h"

/* By slot. A pod without options has a zero here, and no flag that leads here. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct pod_options);
} pod_options_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct range_key);
	__type(value, __u32);
} pod_range_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_key);
	__type(value, __u32);
} pod_port_map SEC(".maps");

static __always_inline bool is_port_listed(__u32 slot, enum port_list list, __u16 port)
{
	struct port_key key = { .slot = slot, .list = list, .port = port };

	return bpf_map_lookup_elem(&pod_port_map, &key);
}

static __always_inline bool is_range_listed(__u32 slot, enum range_list list,
					    const struct address *address)
{
	struct range_key key = {
		.prefix_length = 8 * (sizeof(key) - sizeof(key.prefix_length)),
		.slot = slot,
		.list = list,
		.address = *address,
	};

	return bpf_map_lookup_elem(&pod_range_map, &key);
}

/* In the order of Istio's rules; of the two lists, the excluding one wins. */
static __always_inline bool is_excluded(__u32 slot, const struct address *dst, __u16 port, bool ip4)
{
	struct pod_options *options;
	__u32 flags;

	options = bpf_map_lookup_elem(&pod_options_map, &slot);
	if (!options)
		return false;
	flags = options->flags;
	if (flags & OPTION_NOTHING_OUTBOUND)
		return true;
	if (flags & OPTION_EXEMPT_USER && (__u32)bpf_get_current_uid_gid() == options->exempt_user)
		return true;
	if (flags & OPTION_EXCLUDED_PORTS && is_port_listed(slot, PORT_EXCLUDED_OUTBOUND, port))
		return true;
	if (flags & OPTION_EXCLUDED_RANGES &&
	    is_range_listed(slot, ip4 ? RANGE_EXCLUDED_IP4 : RANGE_EXCLUDED_IP6, dst))
		return true;
	if (flags & OPTION_INCLUDED_PORTS && is_port_listed(slot, PORT_INCLUDED_OUTBOUND, port))
		return false;
	return flags & OPTION_INCLUDED_RANGES &&
	       !is_range_listed(slot, ip4 ? RANGE_INCLUDED_IP4 : RANGE_INCLUDED_IP6, dst);
}

static __always_inline bool is_excluded_inbound(__u32 slot, __u16 port)
{
	struct pod_options *options;
	__u32 flags;

	options = bpf_map_lookup_elem(&pod_options_map, &slot);
	if (!options)
		return false;
	flags = options->flags;
	if (flags & OPTION_NOTHING_INBOUND)
		return true;
	if (flags & OPTION_INCLUDED_INBOUND)
		return !is_port_listed(slot, PORT_INCLUDED_INBOUND, port);
	return flags & OPTION_EXCLUDED_INBOUND && is_port_listed(slot, PORT_EXCLUDED_INBOUND, port);
}

#endif
