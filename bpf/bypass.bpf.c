// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Whether a packet's pod is bypassed. Two rules ask it, first in the nat table of
 * a pod with a sidecar: iptables -m bpf --object-pinned .../bypass -j RETURN.
 *
 * In PREROUTING the packet has come in by an interface and the pod is its
 * destination; in OUTPUT it has not and the pod is its source.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "cgroute.h"
#include "lib/lookup.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); /* IPv4 address, network order */
	__type(value, __u8); /* enum bypass_direction */
} bypass_filter_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u8);
} bypass_filter6_map SEC(".maps");

/* Puts the enum into the object's BTF, which the agent's layouts come from. */
const volatile struct vocabulary {
	enum bypass_direction bypass_direction;
} vocabulary;

#define NO_MATCH 0
#define MATCH 1

/* xt_bpf hands over the packet from its network header on. */
SEC("socket")
int cgroute_bypass(struct __sk_buff *skb)
{
	bool arriving = skb->ingress_ifindex;
	__u8 version, directions = 0;
	struct address address;
	bool found = false;

	if (bpf_skb_load_bytes(skb, 0, &version, sizeof(version)))
		return NO_MATCH;
	version >>= 4;
	if (version == 4) {
		if (bpf_skb_load_bytes(skb, arriving ? 16 : 12, &address.word_be[0], 4))
			return NO_MATCH;
		found = READ_ENTRY(&bypass_filter_map, &address.word_be[0], &directions);
	} else if (version == 6) {
		if (bpf_skb_load_bytes(skb, arriving ? 24 : 8, &address, sizeof(address)))
			return NO_MATCH;
		found = READ_ENTRY(&bypass_filter6_map, &address, &directions);
	}
	if (!found)
		return NO_MATCH;
	return directions & (arriving ? BYPASS_INBOUND : BYPASS_OUTBOUND) ? MATCH : NO_MATCH;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
