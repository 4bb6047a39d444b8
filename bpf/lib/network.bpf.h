/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which network a socket is in: that of the host, of a pod, or another. */
#ifndef CGROUTE_NETWORK_BPF_H
#define CGROUTE_NETWORK_BPF_H

#include "cgroute.h"
#include "address.bpf.h"
#include "lookup.bpf.h"

/*
 * Inode of the host's network namespace, which stays as long as the host runs; 0 where
 * the agent could not tell.
 */
const volatile __u32 host_netns = 0;

/* Addresses of pods' network namespaces beside their own, of pods that have any. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct local_key);
	__type(value, enum local_address);
} pod_local_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct pod_devices);
} pod_device_map SEC(".maps");

static __always_inline bool is_hosts_network(__u64 netns)
{
	return host_netns && netns == host_netns;
}

/* A container's own within the pod's, for instance. */
static __always_inline bool is_nested_network(const struct cgroup_info *info, __u64 netns)
{
	return info->netns && info->netns != netns;
}

/* What stays on the host or on the link is nobody's business, whoever sends it. */
static __always_inline bool is_near(const struct address *dst, bool ip4)
{
	if (is_unspecified(dst))
		return true;
	return ip4 ? is_loopback4(dst) : is_loopback6(dst) || is_link_local6(dst);
}

static __always_inline enum local_address find_local(const struct cgroup_info *info,
						     const struct address *address)
{
	struct local_key key = { .slot = info->slot, .address = *address };
	enum local_address local;

	/* What is kept of a network that the pod has no longer does not count. */
	if (!info->netns || !(info->flags & info->detected_flags & INFO_ADDRESSES))
		return 0;
	return READ_ENTRY(&pod_local_map, &key, &local) ? local : 0;
}

/* The pod's own address comes first, as most have no other. */
static __always_inline bool is_own_address(const struct cgroup_info *info,
					   const struct address *address, bool ip4)
{
	const struct address *own = ip4 ? (void *)info->cgroup_ip : (void *)info->cgroup_ip6;

	return same_address(address, own);
}

static __always_inline bool is_other_device(__u32 device, __u32 slot, bool ip4)
{
	struct pod_devices *devices = bpf_map_lookup_elem(&pod_device_map, &slot);
	__u32 known = !devices ? 0 : ip4 ? devices->ip4 : devices->ip6;

	return known && device != known;
}

/*
 * Whether the socket is bound to a device or an address from where the proxy is not
 * reached: what it sends would come to nobody, or to a stranger with the proxy's number.
 * False where that is not known, as of a network that nobody has seen yet.
 */
static __always_inline bool is_bound_elsewhere(struct bpf_sock *sk, const struct cgroup_info *info,
					       bool ip4)
{
	struct address from;
	__u32 device = sk->bound_dev_if, src_ip4 = sk->src_ip4;

	if (!info->netns)
		return false;
	if (device && is_other_device(device, info->slot, ip4))
		return true;
	/* All of them, without a branch: for one the compiler would calculate with the pointer, which the kernel refuses. */
	from.word_be[0] = sk->src_ip6[0];
	from.word_be[1] = sk->src_ip6[1];
	from.word_be[2] = sk->src_ip6[2];
	from.word_be[3] = sk->src_ip6[3];
	barrier();
	if (ip4)
		from = (struct address){ .word_be[3] = src_ip4 };
	return find_local(info, &from) == LOCAL_ELSEWHERE;
}

#endif
