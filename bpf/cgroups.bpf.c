// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Knows a pod's cgroup in the same instant that it is made: the pod's UID stands
 * in the name, and pod_info_map says what the agent thinks of that pod. No process
 * can be in a cgroup before mkdir() returns, so there is no race to lose.
 *
 * Tracepoints run for the whole machine. Both fire with cgroup_mutex held, so
 * neither runs twice at a time and the kernel's guard against that skips none.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "cgroute.h"
#include "identity.bpf.h"

/* Cgroup id of the watched root. */
const volatile __u64 root_id = 0;

/* To the agent; what finds no room is lost, and found by the agent's other means. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} cgroup_event_map SEC(".maps");

/* Unread, for the agent. */
const volatile struct vocabulary {
	enum cgroup_change cgroup_change;
	struct cgroup_event event;
} vocabulary;

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
static __always_inline bool reads(const struct name *name, int at, const char *text,
				  int length)
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
#define HEAD_AT(name, at, head)                                                \
	(READS(name, (at) - (int)sizeof(head) + 1, head) &&                    \
	 ((at) == sizeof(head) - 1 ||                                          \
	  READS(name, (at) - (int)sizeof(head), "-")))

static __always_inline bool is_slice_head(const struct name *name, int at)
{
	return HEAD_AT(name, at, "kubepods-pod") ||
	       HEAD_AT(name, at, "kubepods-burstable-pod") ||
	       HEAD_AT(name, at, "kubepods-besteffort-pod");
}

/* With systemd, dashes in a name mean nesting, so the kubelet writes underscores. */
static __always_inline bool copy_uid(struct pod_key *key, const struct name *name,
				     int at, char separator)
{
	if (at < 0 || bpf_probe_read_kernel(key->text, UID_LENGTH, name->text + at))
		return false;
	if (key->text[8] != separator || key->text[13] != separator ||
	    key->text[18] != separator || key->text[23] != separator)
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
static __always_inline bool read_slice(struct pod_key *key, const struct name *name,
				       int end)
{
	if (!READS(name, end, ".slice"))
		return false;
	if (copy_uid(key, name, end - UID_LENGTH, '_'))
		return is_slice_head(name, end - UID_LENGTH);
	return copy_hash(key, name, end - HASH_LENGTH) &&
	       is_slice_head(name, end - HASH_LENGTH);
}

static __always_inline void read_name(struct cgroup *cgroup, char *buffer, struct name *name)
{
	name->text = (const char *)BPF_CORE_READ(cgroup, kn, name);
	name->length = bpf_probe_read_kernel_str(buffer, NAME_LENGTH, name->text) - 1;
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
		return name->length == 3 + UID_LENGTH ? copy_uid(key, name, 3, '-') :
							copy_hash(key, name, 3);
	}
	if (READS(name, name->length - (int)sizeof(".slice") + 1, ".slice"))
		return read_slice(key, name, name->length - (int)sizeof(".slice") + 1);
	if (!READS(name, name->length - (int)JOINED_LENGTH, JOINED))
		return false;
	return read_slice(key, name,
			  name->length - (int)JOINED_LENGTH - (int)sizeof(".slice") + 1);
}

static __always_inline __u64 id_of(struct cgroup *cgroup)
{
	return BPF_CORE_READ(cgroup, kn, id);
}

/* Where a cgroup is. */
struct place {
	bool below_root;
	/* Users name their own cgroups as they like. */
	bool of_users;
	/* Ancestors that have an entry: the pod's cgroup, its containers'. */
	int known_above;
	/* The parent's entry, if it has one. */
	struct cgroup_info *parent;
	/* The cgroup right below the watched root on the way here. */
	__u64 branch;
};

static __always_inline void find_place(struct cgroup *cgroup, struct place *place)
{
	int depth = BPF_CORE_READ(cgroup, level) - root_level;
	struct cgroup *above = cgroup;
	struct cgroup_info *info;
	__u64 id;
	int i;

	if (depth < 1 || depth > CGROUTE_MAX_DEPTH)
		return;
	for (i = 1; i <= CGROUTE_MAX_DEPTH; i++) {
		if (i == depth) {
			place->branch = id_of(above);
			place->of_users = NAMED(above, "user.slice");
		}
		above = parent_of(above);
		id = id_of(above);
		if (i == depth) {
			place->below_root = id == root_id;
			return;
		}
		info = bpf_map_lookup_elem(&cgroup_info_map, &id);
		if (i == 1)
			place->parent = info;
		if (info)
			place->known_above++;
	}
}

/* That pods live in this branch, so that root_connect looks for them there. */
static __always_inline void note_branch(__u64 branch)
{
	struct pod_trees *trees;
	__u32 zero = 0, count;
	int i;

	trees = bpf_map_lookup_elem(&pod_trees_map, &zero);
	if (!trees)
		return;
	count = trees->count;
	if (count > CGROUTE_MAX_POD_TREES)
		return;
	for (i = 0; i < CGROUTE_MAX_POD_TREES; i++) {
		if (i == count) {
			trees->id[i] = branch;
			break;
		}
		if (trees->id[i] == branch)
			return;
	}
	/* With one too many they are not listed. */
	trees->count = count + 1;
}

static __always_inline bool is_handed_over(__u64 branch)
{
	__u64 root = root_id;

	return bpf_map_lookup_elem(&handoff_map, &branch) ||
	       bpf_map_lookup_elem(&handoff_map, &root);
}

/*
 * A pod's cgroup: what the agent thinks of the pod, or that nobody knows it. Where
 * no agent was told to expect it, its connections have to wait for one.
 */
static __always_inline void fill_pod(__u64 id, const struct pod_key *key, __u64 branch)
{
	struct cgroup_info info = { .id = id };
	struct pod_info *pod;

	pod = bpf_map_lookup_elem(&pod_info_map, key);
	if (pod) {
		info.slot = pod->slot;
		info.is_in_mesh = pod->is_in_mesh;
		info.flags = pod->flags;
		info.detected_flags = pod->detected_flags;
		if (info.is_in_mesh && !is_handed_over(branch)) {
			info.flags |= INFO_NO_HANDOFF;
			info.detected_flags |= INFO_NO_HANDOFF;
		}
		__builtin_memcpy(info.cgroup_ip, pod->ip4, sizeof(info.cgroup_ip));
		__builtin_memcpy(info.cgroup_ip6, pod->ip6, sizeof(info.cgroup_ip6));
	} else {
		info.flags = INFO_UNKNOWN_POD;
		info.detected_flags = CGROUTE_DETECTED_FLAGS;
	}
	/* What the agent has written is newer. */
	bpf_map_update_elem(&cgroup_info_map, &id, &info, BPF_NOEXIST);
}

#define CONTAINER_LENGTH 64

/*
 * "cri-containerd-<id>.scope", or the id alone. The agent looks closer, and drops
 * the entry of what only looks like it.
 */
static __always_inline bool is_container(const struct name *name)
{
	int at = name->length - CONTAINER_LENGTH;

	if (READS(name, name->length - (int)sizeof(".scope") + 1, ".scope"))
		at -= (int)sizeof(".scope") - 1;
	return at == 0 || READS(name, at - 1, "-");
}

/*
 * A container's cgroup is as the pod's. CRI-O's monitor beside it is in the host's
 * network, and never redirected.
 */
static __always_inline void fill_container(__u64 id, const struct name *name,
					   const struct cgroup_info *pod)
{
	struct cgroup_info info = *pod;

	info.id = id;
	if (READS(name, 0, "crio-conmon-") || READS(name, 0, "libpod-conmon-")) {
		info.is_in_mesh = 0;
		info.flags = INFO_HOST_NETWORK;
		info.detected_flags = CGROUTE_DETECTED_FLAGS;
		__builtin_memset(info.cgroup_ip, 0, sizeof(info.cgroup_ip));
		__builtin_memset(info.cgroup_ip6, 0, sizeof(info.cgroup_ip6));
	}
	bpf_map_update_elem(&cgroup_info_map, &id, &info, BPF_NOEXIST);
}

static __always_inline struct cgroup_event *tell(struct cgroup *cgroup,
						 enum cgroup_change change)
{
	struct cgroup_event *event;

	event = bpf_ringbuf_reserve(&cgroup_event_map, sizeof(*event), 0);
	if (!event)
		return NULL;
	event->id = id_of(cgroup);
	event->parent = id_of(parent_of(cgroup));
	event->change = change;
	event->reserved = 0;
	bpf_probe_read_kernel_str(event->name, sizeof(event->name),
				  (const char *)BPF_CORE_READ(cgroup, kn, name));
	bpf_ringbuf_submit(event, 0);
	return event;
}

/* What a container makes inside itself is nobody's news, however much it is. */
static __always_inline bool is_nested(const struct place *place)
{
	return place->known_above > 1;
}

SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(cgroup_mkdir, struct cgroup *cgroup, const char *path)
{
	struct place place = {};
	char buffer[NAME_LENGTH];
	struct pod_key key = {};
	struct name name;

	find_place(cgroup, &place);
	if (!place.below_root)
		return 0;
	read_name(cgroup, buffer, &name);
	/* What is made inside a pod never passes for another pod. */
	if (place.parent && place.known_above == 1 && is_container(&name)) {
		fill_container(id_of(cgroup), &name, place.parent);
	} else if (!place.known_above && !place.of_users &&
		   read_key(cgroup, &name, &key)) {
		note_branch(place.branch);
		fill_pod(id_of(cgroup), &key, place.branch);
	}
	if (!is_nested(&place))
		tell(cgroup, CGROUP_MADE);
	return 0;
}

SEC("tp_btf/cgroup_rmdir")
int BPF_PROG(cgroup_rmdir, struct cgroup *cgroup, const char *path)
{
	struct place place = {};
	__u64 id;

	find_place(cgroup, &place);
	if (!place.below_root)
		return 0;
	id = id_of(cgroup);
	bpf_map_delete_elem(&cgroup_info_map, &id);
	if (!is_nested(&place))
		tell(cgroup, CGROUP_REMOVED);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
