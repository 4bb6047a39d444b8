/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the agent's configuration, and where the node's proxy is, say to the programs. */
#ifndef CGROUTE_SETTINGS_BPF_H
#define CGROUTE_SETTINGS_BPF_H

#include "cgroute.h"
#include "lookup.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, enum setting);
	__type(value, struct setting_value);
} settings SEC(".maps");

static __always_inline bool denies(bool when_proxy_down)
{
	enum setting key = SETTING_POLICIES;
	struct policies policies;

	if (!READ_ENTRY_THAT_IS(&settings, &key, &policies))
		return true; /* the default of both */
	return (when_proxy_down ? policies.when_proxy_down : policies.unknown_pods) == POLICY_DENY;
}

/* Of pods' sockets that are in other networks: nested ones, or others of the pod. */
static __always_inline bool denies_network(bool nested)
{
	enum setting key = SETTING_POLICIES;
	struct policies policies;

	if (!READ_ENTRY_THAT_IS(&settings, &key, &policies))
		return false; /* the default of both */
	return (nested ? policies.nested_networks : policies.other_networks) == POLICY_DENY;
}

static __always_inline bool find_proxy(bool ip4, struct address *proxy)
{
	enum setting key = ip4 ? SETTING_PROXY_IP4 : SETTING_PROXY_IP6;

	return READ_ENTRY_THAT_IS(&settings, &key, proxy);
}

/* The inode of its network namespace; 0: not known. */
static __always_inline __u64 proxy_netns(void)
{
	enum setting key = SETTING_PROXY_NETWORK;
	struct proxy_network network;

	return READ_ENTRY(&settings, &key, &network) ? network.netns : 0;
}

#endif
