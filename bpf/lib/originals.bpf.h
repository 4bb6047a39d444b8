/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* original_dst_map with what is counted of it: for each pod, and for all together. */
#ifndef CGROUTE_ORIGINALS_BPF_H
#define CGROUTE_ORIGINALS_BPF_H

#include <bpf/bpf_helpers.h>
#include "connection.h"
#include "maps.bpf.h"

#define EEXIST 17

/* Entries of original_dst_map that one pod may have. */
const volatile __u32 original_share = 4096;

/* Filed already, by another version's program; what is another pod's stays that pod's. */
static __always_inline long replace_original(const struct tuple *tuple,
					     const struct original_dst *original)
{
	struct original_dst *before = bpf_map_lookup_elem(&original_dst_map, tuple);

	if (!before || before->slot != original->slot)
		return -EEXIST;
	return bpf_map_update_elem(&original_dst_map, tuple, original, BPF_EXIST);
}

/* False when there is no room, or the pod has its share of it. */
static __always_inline bool put_original(const struct tuple *tuple,
					 const struct original_dst *original)
{
	struct pod_share *share = find_share(original->slot);
	__s64 *all = original_count();
	long error;

	if (!share || !all ||
	    !may_have_more(share->originals, original_share, *all, ROOM_OF(original_dst_map),
			   FREE_ORIGINALS))
		return false;
	error = bpf_map_update_elem(&original_dst_map, tuple, original, BPF_NOEXIST);
	if (!error)
		add_originals(original->slot, 1);
	else if (error == -EEXIST)
		error = replace_original(tuple, original);
	return !error;
}

/* False when it was gone already. */
static __always_inline bool delete_original(const struct tuple *tuple, __u32 slot)
{
	if (bpf_map_delete_elem(&original_dst_map, tuple))
		return false;
	add_originals(slot, -1);
	return true;
}

#endif
