/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What should become of a connect(), by whose it is and where it goes. */
#ifndef CGROUTE_VERDICT_BPF_H
#define CGROUTE_VERDICT_BPF_H

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "cgroute.h"
#include "address.bpf.h"
#include "identity.bpf.h"
#include "kubelet.bpf.h"
#include "lookup.bpf.h"
#include "network.bpf.h"
#include "options.bpf.h"
#include "settings.bpf.h"

/* Where the proxy takes redirected connections. */
const volatile __u32 outbound_port = 15001;
const volatile __u32 inbound_port = 15006;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct address);
	__type(value, struct pod_address);
} pod_ip_map SEC(".maps");

struct verdict {
	enum branch branch;
	__u32 slot;
	bool denied;
	/* Because something is not there yet: whoever tries again may be lucky. */
	bool for_now;
	bool redirected;
	struct address proxy;
	__u16 proxy_port_be;
};

/* Ports of the proxy itself, by Istio's conventions. */
static __always_inline bool is_proxy_port(__u16 port)
{
	switch (port) {
	case 15001:
	case 15006:
	case 15008:
	case 15020:
	case 15021:
	case 15090: return true;
	}
	return false;
}

/* Whether this is where the proxy takes redirected connections. */
static __always_inline bool is_redirect_port(__u16 port_be)
{
	return port_be == bpf_htons(outbound_port) || port_be == bpf_htons(inbound_port);
}

static __always_inline void redirect(struct verdict *verdict, const struct address *dst,
				     __u16 port_be, bool ip4, bool inbound)
{
	struct address proxy;

	if (!find_proxy(ip4, &proxy)) {
		verdict->denied = denies(true);
		verdict->for_now = true;
		verdict->branch =
			verdict->denied ? BRANCH_NO_PROXY_DENIED : BRANCH_NO_PROXY_ALLOWED;
		return;
	}
	if (same_address(dst, &proxy) && is_redirect_port(port_be)) {
		verdict->denied = true;
		verdict->branch = BRANCH_LOOP_DENIED;
		return;
	}
	verdict->redirected = true;
	verdict->branch = inbound ? BRANCH_INBOUND_REDIRECTED : BRANCH_REDIRECTED;
	verdict->proxy = proxy;
	verdict->proxy_port_be = bpf_htons(inbound ? inbound_port : outbound_port);
}

static __always_inline void decide_unknown(struct verdict *verdict, const struct address *dst,
					   bool ip4)
{
	if (is_near(dst, ip4)) {
		verdict->branch = BRANCH_LOCAL;
		return;
	}
	verdict->denied = denies(false);
	verdict->for_now = true;
	verdict->branch = verdict->denied ? BRANCH_UNKNOWN_DENIED : BRANCH_UNKNOWN_ALLOWED;
}

/* The proxy could not be told the destination until the agent has attached what does so. */
static __always_inline void deny_without_handoff(struct verdict *verdict)
{
	verdict->redirected = false;
	verdict->denied = true;
	verdict->for_now = true;
	verdict->branch = BRANCH_ERROR_DENIED;
}

/*
 * Whether the destination of a host process's connection would get to the proxy: its
 * branch is served or, where it is a pod's in the host's network, a cgroup on the way.
 */
static __always_inline bool is_handed_over(void)
{
	__u64 root = bpf_get_current_ancestor_cgroup_id(root_level), id;
	enum handoff handoff;
	int i;

	for (i = 1; i <= CGROUTE_MAX_DEPTH; i++) {
		id = bpf_get_current_ancestor_cgroup_id(root_level + i);
		if (!id)
			break;
		if (bpf_map_lookup_elem(&handoff_map, &id))
			return true;
	}
	return READ_ENTRY(&handoff_map, &root, &handoff) && handoff == HANDOFF_ALL;
}

/* ::10.1.2.3, which is no IPv4 address, and would be taken for one in every map. */
static __always_inline bool is_ambiguous(const struct address *dst, bool ip4)
{
	return !ip4 && is_ip4(dst);
}

static __always_inline void decide_host(struct verdict *verdict, const struct address *dst,
					__u16 port_be, bool ip4)
{
	struct pod_address pod;

	verdict->branch = BRANCH_HOST_UNTOUCHED;
	if (is_ambiguous(dst, ip4) || !READ_ENTRY(&pod_ip_map, dst, &pod))
		return;
	verdict->slot = pod.slot;
	if (is_proxy_port(bpf_ntohs(port_be)) || is_kubelet() ||
	    (pod.has_options && is_excluded_inbound(pod.slot, bpf_ntohs(port_be)))) {
		verdict->branch = BRANCH_INBOUND_EXEMPT;
		return;
	}
	redirect(verdict, dst, port_be, ip4, true);
	if (!verdict->redirected || is_handed_over())
		return;
	/* Among host processes' own: the agent takes it for a call to attach there. */
	verdict->slot = 0;
	deny_without_handoff(verdict);
}

static __always_inline __u16 flags_of(const struct cgroup_info *info)
{
	return info->flags & info->detected_flags;
}

static __always_inline bool is_proxy(const struct cgroup_info *info)
{
	return (flags_of(info) & (INFO_PROXY | INFO_UNKNOWN_POD)) == INFO_PROXY;
}

/*
 * A proxy that has lost the original destination dials itself, for ever; by any
 * address, as it may have others than the one that is published.
 */
static __always_inline void decide_proxy(struct verdict *verdict, const struct cgroup_info *info,
					 __u16 port_be)
{
	verdict->slot = info->slot;
	verdict->denied = is_redirect_port(port_be);
	verdict->branch = verdict->denied ? BRANCH_LOOP_DENIED : BRANCH_PROXY;
}

/* The proxy would be told another destination. */
static __always_inline void deny_ambiguous(struct verdict *verdict)
{
	verdict->denied = true;
	verdict->branch = BRANCH_ERROR_DENIED;
}

/* What it does is its pod's business, and none of the mesh's: its network leads to no proxy as such. */
static __always_inline void decide_nested(struct verdict *verdict, const struct address *dst,
					  bool ip4)
{
	if (is_near(dst, ip4)) {
		verdict->branch = BRANCH_LOCAL;
		return;
	}
	verdict->denied = denies_network(true);
	verdict->branch = verdict->denied ? BRANCH_NESTED_DENIED : BRANCH_NESTED_UNTOUCHED;
}

static __always_inline void decide_elsewhere(struct verdict *verdict)
{
	verdict->denied = denies_network(false);
	verdict->branch =
		verdict->denied ? BRANCH_OTHER_NETWORK_DENIED : BRANCH_OTHER_NETWORK_UNTOUCHED;
}

/* What a pod in the host's network opens to no pod of the mesh is its own, for who asks about it. */
static __always_inline void count_for_host_pod(struct verdict *verdict,
					       const struct cgroup_info *info)
{
	if (verdict->branch != BRANCH_HOST_UNTOUCHED || flags_of(info) & INFO_UNKNOWN_POD)
		return;
	verdict->slot = info->slot;
	verdict->branch = BRANCH_OUT;
}

static __always_inline void decide_pod(struct verdict *verdict, const struct cgroup_info *info,
				       struct bpf_sock *sk, __u64 netns, const struct address *dst,
				       __u16 port_be, bool ip4)
{
	__u16 flags = flags_of(info);

	verdict->slot = info->slot;
	if (flags & INFO_UNKNOWN_POD)
		decide_unknown(verdict, dst, ip4);
	else if (!info->is_in_mesh)
		verdict->branch = BRANCH_OUT;
	else if (flags & INFO_BYPASS_OUTBOUND)
		verdict->branch = BRANCH_BYPASSED;
	else if (is_nested_network(info, netns))
		decide_nested(verdict, dst, ip4);
	else if (is_near(dst, ip4) || is_own_address(info, dst, ip4))
		verdict->branch = BRANCH_LOCAL;
	else if (is_ambiguous(dst, ip4))
		deny_ambiguous(verdict);
	else if (find_local(info, dst))
		verdict->branch = BRANCH_LOCAL;
	else if (flags & INFO_OPTIONS && is_excluded(info->slot, dst, bpf_ntohs(port_be), ip4))
		verdict->branch = BRANCH_EXCLUDED;
	else if (is_bound_elsewhere(sk, info, ip4))
		decide_elsewhere(verdict);
	else
		redirect(verdict, dst, port_be, ip4, false);
	if (verdict->redirected && (flags & INFO_NO_HANDOFF))
		deny_without_handoff(verdict);
}

#endif
