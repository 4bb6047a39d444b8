// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Filter on the agent's socket of the proc connector: what it lets through wakes
 * the agent, so that is little. An event is sent by the process that it is
 * about, hence the current cgroup is that process's.
 *
 * Passed are the exec events of processes that can be a pod's and whose cgroup
 * is new, or whose pod's network or address is not known yet; the first in each branch that holds
 * no pods, as it may be one that the agent has not seen; and the kernel's answers.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "cgroute.h"
#include "lib/address.bpf.h"
#include "lib/identity.bpf.h"

/* In a message: struct nlmsghdr (16), struct cn_msg (20), struct proc_event. */
#define EVENT_WHAT 36

#define DROP 0
#define PASS 0xffffffff

/* Branches without pods that have had their first exec. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u8);
} seen_branch_map SEC(".maps");

static __always_inline bool is_seen_branch(void)
{
	__u64 id = bpf_get_current_ancestor_cgroup_id(root_level + 1);
	__u8 yes = 1;

	/* An update takes an element of the LRU list before it looks, so it looks first. */
	if (bpf_map_lookup_elem(&seen_branch_map, &id))
		return true;
	return bpf_map_update_elem(&seen_branch_map, &id, &yes, BPF_NOEXIST);
}

SEC("socket")
int exec_filter(struct __sk_buff *skb)
{
	struct cgroup_info *info;
	__u32 what;
	__u64 id;

	if (bpf_skb_load_bytes(skb, EVENT_WHAT, &what, sizeof(what)))
		return PASS;
	if (what == PROC_EVENT_NONE)
		return PASS; /* the answer to a request */
	if (what != PROC_EVENT_EXEC)
		return DROP;
	if (!in_pod_tree())
		return is_seen_branch() ? DROP : PASS;
	id = bpf_get_current_cgroup_id();
	info = bpf_map_lookup_elem(&cgroup_info_map, &id);
	if (!info)
		return PASS;
	if (info->flags & INFO_HOST_NETWORK)
		return DROP; /* its addresses are the host's */
	if (!info->netns)
		return PASS;
	return is_unspecified((void *)info->cgroup_ip) && is_unspecified((void *)info->cgroup_ip6)
		       ? PASS
		       : DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
