/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose the current process is, by its cgroup. */
#ifndef CGROUTE_IDENTITY_BPF_H
#define CGROUTE_IDENTITY_BPF_H

#include "cgroute.h"
#include "lookup.bpf.h"

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

/* A copy of a cgroup's entry, which says itself whose it is; false where it has none. */
static __always_inline bool read_info(__u64 id, struct cgroup_info *info)
{
	return READ_ENTRY(&cgroup_info_map, &id, info) && info->id == id;
}

/* The nearest ancestor that is known. */
static __always_inline bool read_ancestor(__u64 id, struct cgroup_info *info)
{
	__u64 ancestor;
	int i;

	for (i = CGROUTE_MAX_DEPTH; i > 0; i--) {
		ancestor = bpf_get_current_ancestor_cgroup_id(root_level + i);
		if (!ancestor || ancestor == id)
			continue;
		if (read_info(ancestor, info))
			return true;
	}
	return false;
}

/*
 * The pod of the current process: by its cgroup, which is a container's most of
 * the time, else by the nearest ancestor that is known. A cgroup made inside a
 * pod is never known itself, whatever its name. False for nobody's.
 */
static __always_inline bool find_pod(bool at_root, struct cgroup_info *info)
{
	__u64 id = bpf_get_current_cgroup_id();

	if (read_info(id, info))
		return true;
	if (at_root && !in_pod_tree())
		return false;
	/* The one entry that there is may be passed by as it is replaced. */
	return read_ancestor(id, info) || read_info(id, info) || read_ancestor(id, info);
}

#endif
