/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose the current process is, by its cgroup. */
#ifndef CGROUTE_IDENTITY_BPF_H
#define CGROUTE_IDENTITY_BPF_H

#include "cgroute.h"

/* Level of the watched root in the cgroup hierarchy; the real root is 0. */
const volatile __u32 root_level = 0;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, struct cgroup_info);
} cgroup_info_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct pod_key);
	__type(value, struct pod_info);
} pod_info_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pod_trees);
} pod_trees_map SEC(".maps");

/*
 * The cgroups where sock_ops is attached for more than one pod: branches of host
 * processes right below the watched root or, where it runs for all, the root itself.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 128);
	__type(key, __u64);
	__type(value, enum handoff);
} handoff_map SEC(".maps");

/* True also when that cannot be told. */
static __always_inline bool in_pod_tree(void)
{
	struct pod_trees *trees;
	__u32 zero = 0;
	__u64 id;
	int i;

	trees = bpf_map_lookup_elem(&pod_trees_map, &zero);
	if (!trees)
		return true;
	if (trees->count > CGROUTE_MAX_POD_TREES)
		return true;
	id = bpf_get_current_ancestor_cgroup_id(root_level + 1);
	for (i = 0; i < CGROUTE_MAX_POD_TREES; i++) {
		if (i >= trees->count)
			break;
		if (trees->id[i] == id)
			return true;
	}
	return false;
}

/*
 * The pod of the current process: by its cgroup, which is a container's most of
 * the time, else by the nearest ancestor that is known. A cgroup made inside a
 * pod is never known itself, whatever its name.
 */
static __always_inline struct cgroup_info *find_pod(bool at_root)
{
	struct cgroup_info *info;
	__u64 id, ancestor;
	int i;

	id = bpf_get_current_cgroup_id();
	info = bpf_map_lookup_elem(&cgroup_info_map, &id);
	if (info)
		return info;
	if (at_root && !in_pod_tree())
		return NULL;
	for (i = CGROUTE_MAX_DEPTH; i > 0; i--) {
		ancestor = bpf_get_current_ancestor_cgroup_id(root_level + i);
		if (!ancestor || ancestor == id)
			continue;
		info = bpf_map_lookup_elem(&cgroup_info_map, &ancestor);
		if (info)
			return info;
	}
	return NULL;
}

#endif
