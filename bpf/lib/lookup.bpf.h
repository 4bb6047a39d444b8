/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is found in a hash map may be another key's by the time it is read. */
#ifndef CGROUTE_LOOKUP_BPF_H
#define CGROUTE_LOOKUP_BPF_H

#include <bpf/bpf_helpers.h>

/* What stands before it is read before what stands after it. */
static __always_inline void end_reads(void)
{
#ifdef __TARGET_ARCH_arm64
	__u64 fence = 0;

	/* Of all instructions of BPF, those that return what was there keep loads in order. */
	asm volatile("" ::"r"(__sync_fetch_and_or(&fence, 1)) : "memory");
#else
	asm volatile("" ::: "memory");
#endif
}

/* `found` is read again, whatever the compiler knows of it. */
static __always_inline bool same_bytes(const void *copy, const void *found, int size)
{
	int i;

#pragma unroll
	for (i = 0; i + 4 <= size; i += 4)
		if (*(__u32 *)(copy + i) != *(volatile __u32 *)(found + i))
			return false;
#pragma unroll
	for (i = size & ~3; i < size; i++)
		if (*(__u8 *)(copy + i) != *(volatile __u8 *)(found + i))
			return false;
	return true;
}

/*
 * The kernel takes an element that was deleted or replaced for the next key at
 * once, while programs that have found it still read it; without preallocation
 * too, since Linux 6.1. Where a wrong value would decide about a connection, it is
 * copied first, and then the key must still lead to where it was found: an element
 * is unlinked before the next key's value is written into it, so a copy with
 * anything of that in it is told. A program that was interrupted in the middle may
 * find the element back with its key; so it is compared with the copy as well.
 */
#define READ_ENTRY(map, key, copy) READ_ENTRY_OR(break, map, key, copy)

/*
 * For what is always there: a look-up that runs along the elements of a bucket while
 * the one that it looks for is replaced, first by a new one ahead, may pass both.
 */
#define READ_ENTRY_THAT_IS(map, key, copy)                                                         \
	(READ_ENTRY_OR(continue, map, key, copy) || READ_ENTRY_OR(continue, map, key, copy))

#define READ_ENTRY_OR(when_missed, map, key, copy)                                                 \
	({                                                                                         \
		typeof(copy) found_;                                                               \
		bool read_ = false;                                                                \
		int look_;                                                                         \
                                                                                                   \
		for (look_ = 0; look_ < LOOKUPS && !read_; look_++) {                              \
			found_ = bpf_map_lookup_elem(map, key);                                    \
			if (!found_)                                                               \
				when_missed;                                                       \
			*(copy) = *found_;                                                         \
			end_reads();                                                               \
			read_ = bpf_map_lookup_elem(map, key) == found_ &&                         \
				same_bytes(copy, found_, sizeof(*found_));                         \
		}                                                                                  \
		read_;                                                                             \
	})

/* Each time but the last it was replaced in that very instant. */
#define LOOKUPS 8

#endif
