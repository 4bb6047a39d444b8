/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a cgroup's name says of the pod that it is for, in every way that kubelets write it. */
#ifndef CGROUTE_POD_NAME_BPF_H
#define CGROUTE_POD_NAME_BPF_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "cgroute.h"

#define UID_LENGTH 36
#define HASH_LENGTH 32
/* Names are 255 characters at most. */
#define NAME_LENGTH 256

/* ".slice:cri-containerd:" and a container's id, where pod and container are one. */
#define JOINED ":cri-containerd:"
#define JOINED_LENGTH (sizeof(JOINED) - 1 + 64)

/* A name in the kernel's memory, looked at in pieces. */
struct name {
	const char *text;
	int length;
};

/* Whether `length` characters from `at` on are these; `length` is a constant of 24 at most. */
static __always_inline bool reads(const struct name *name, int at, const char *text, int length)
{
	union {
		char bytes[24];
		__u64 words[3];
	} is = {}, wanted = {};
	int i;

	if (at < 0 || at + length > name->length)
		return false;
	if (bpf_probe_read_kernel(is.bytes, length, name->text + at))
		return false;
#pragma unroll
	for (i = 0; i < 24; i++)
		if (i < length)
			wanted.bytes[i] = text[i];
	return is.words[0] == wanted.words[0] && is.words[1] == wanted.words[1] &&
	       is.words[2] == wanted.words[2];
}

#define READS(name, at, text) reads(name, at, text, sizeof(text) - 1)

/* Whether what ends at `at` is the head of a pod's slice: "kubepods-burstable-pod". */
#define HEAD_AT(name, at, head)                                                                    \
	(READS(name, (at) - (int)sizeof(head) + 1, head) &&                                        \
	 ((at) == sizeof(head) - 1 || READS(name, (at) - (int)sizeof(head), "-")))

static __always_inline bool is_slice_head(const struct name *name, int at)
{
	return HEAD_AT(name, at, "kubepods-pod") || HEAD_AT(name, at, "kubepods-burstable-pod") ||
	       HEAD_AT(name, at, "kubepods-besteffort-pod");
}

/* With systemd, dashes in a name mean nesting, so the kubelet writes underscores. */
static __always_inline bool copy_uid(struct pod_key *key, const struct name *name, int at,
				     char separator)
{
	if (at < 0 || bpf_probe_read_kernel(key->text, UID_LENGTH, name->text + at))
		return false;
	if (key->text[8] != separator || key->text[13] != separator || key->text[18] != separator ||
	    key->text[23] != separator)
		return false;
	key->text[8] = '-';
	key->text[13] = '-';
	key->text[18] = '-';
	key->text[23] = '-';
	return true;
}

static __always_inline bool copy_hash(struct pod_key *key, const struct name *name, int at)
{
	__builtin_memset(key, 0, sizeof(*key));
	return at >= 0 && !bpf_probe_read_kernel(key->text, HASH_LENGTH, name->text + at);
}

/* `end` is where the UID ends and ".slice" begins. */
static __always_inline bool read_slice(struct pod_key *key, const struct name *name, int end)
{
	if (!READS(name, end, ".slice"))
		return false;
	if (copy_uid(key, name, end - UID_LENGTH, '_'))
		return is_slice_head(name, end - UID_LENGTH);
	return copy_hash(key, name, end - HASH_LENGTH) && is_slice_head(name, end - HASH_LENGTH);
}

/* For the length alone: too large for the stack. Only one program at a time reads names, see cgroups.bpf.c. */
static char name_buffer[NAME_LENGTH];

static __always_inline void read_name(struct cgroup *cgroup, struct name *name)
{
	name->text = (const char *)BPF_CORE_READ(cgroup, kn, name);
	name->length = bpf_probe_read_kernel_str(name_buffer, NAME_LENGTH, name->text) - 1;
}

static __always_inline bool is_named(struct cgroup *cgroup, const char *text, int length)
{
	struct name name = {
		.text = (const char *)BPF_CORE_READ(cgroup, kn, name),
		.length = 24,
	};

	/* With the zero at its end. */
	return reads(&name, 0, text, length);
}

#define NAMED(cgroup, text) is_named(cgroup, text, sizeof(text))

static __always_inline struct cgroup *parent_of(struct cgroup *cgroup)
{
	/* A cgroup begins with the state of its own. */
	return (struct cgroup *)BPF_CORE_READ(cgroup, self.parent);
}

/* Whether the cgroup is pod and container in one: what is made in it is nested. */
static __always_inline bool is_joined(struct cgroup *cgroup)
{
	struct name name;

	read_name(cgroup, &name);
	return READS(&name, name.length - (int)JOINED_LENGTH, JOINED);
}

/* Whether the name is a pod's; then `key` is what stands for it. */
static __always_inline bool read_key(struct cgroup *cgroup, const struct name *name,
				     struct pod_key *key)
{
	struct cgroup *parent;

	if (READS(name, 0, "pod") &&
	    (name->length == 3 + UID_LENGTH || name->length == 3 + HASH_LENGTH)) {
		parent = parent_of(cgroup);
		if (!NAMED(parent, "burstable") && !NAMED(parent, "besteffort") &&
		    !NAMED(parent, "kubepods"))
			return false;
		return name->length == 3 + UID_LENGTH ? copy_uid(key, name, 3, '-')
						      : copy_hash(key, name, 3);
	}
	if (READS(name, name->length - (int)sizeof(".slice") + 1, ".slice"))
		return read_slice(key, name, name->length - (int)sizeof(".slice") + 1);
	if (!READS(name, name->length - (int)JOINED_LENGTH, JOINED))
		return false;
	return read_slice(key, name, name->length - (int)JOINED_LENGTH - (int)sizeof(".slice") + 1);
}

#endif
