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
#include "lib/identity.bpf.h"
#include "lib/lookup.bpf.h"
#include "lib/pod-name.bpf.h"

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
	/* Of the parent, if it has an entry. */
	__u64 known_parent;
	/* The cgroup right below the watched root on the way here. */
	__u64 branch;
};

static __always_inline void find_place(struct cgroup *cgroup, struct place *place)
{
	int depth = BPF_CORE_READ(cgroup, level) - root_level;
	struct cgroup *above = cgroup;
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
		if (!bpf_map_lookup_elem(&cgroup_info_map, &id))
			continue;
		place->known_above++;
		if (i == 1)
			place->known_parent = id;
	}
}

/* Where kubelets put pods, so that it is one's whose UID has another form, as a static pod's may. */
static __always_inline bool is_in_pod_place(struct cgroup *cgroup, const struct name *name)
{
	struct cgroup *parent = parent_of(cgroup);
	struct name above;
	int at;

	if (READS(name, 0, "pod"))
		return NAMED(parent, "burstable") || NAMED(parent, "besteffort") ||
		       NAMED(parent, "kubepods");
	/* Pod and container in one, right below the root as a rule. */
	if (READS(name, name->length - (int)JOINED_LENGTH, JOINED))
		return true;
	/* "...kubepods-burstable.slice/...kubepods-burstable-pod<UID>.slice" */
	read_name(parent, &above);
	at = above.length - (int)sizeof(".slice") + 1;
	return READS(name, at, "-pod") && READS(&above, at, ".slice") &&
	       (READS(&above, at - 8, "kubepods") || READS(&above, at - 18, "kubepods-burstable") ||
		READS(&above, at - 19, "kubepods-besteffort"));
}

static __always_inline bool has_pod_name(struct cgroup *cgroup)
{
	struct pod_key key = {};
	struct name name;

	read_name(cgroup, &name);
	return is_in_pod_place(cgroup, &name) || read_key(cgroup, &name, &key);
}

/*
 * Whether a pod's cgroup lies above: one may have no entry, as the map was full or
 * the agent has not come to it yet.
 */
static __always_inline bool is_below_pod(struct cgroup *cgroup)
{
	int depth = BPF_CORE_READ(cgroup, level) - root_level;
	struct cgroup *above = cgroup;
	int i;

	for (i = 1; i < CGROUTE_MAX_DEPTH; i++) {
		if (i >= depth)
			break;
		above = parent_of(above);
		if (has_pod_name(above))
			return true;
	}
	return false;
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

/* The part of a struct pod_info that programs use. */
struct pod_head {
	__u64 words[__builtin_offsetof(struct pod_info, uid) / sizeof(__u64)];
};

/* What the agent thinks of a pod; false where it is not among those that it has told of. */
static __always_inline bool read_pod(const struct pod_key *key, struct cgroup_info *info)
{
	struct pod_head head;
	const struct pod_info *pod = (const void *)&head;

	if (!READ_ENTRY_THAT_IS(&pod_info_map, key, &head))
		return false;
	info->slot = pod->slot;
	info->is_in_mesh = pod->is_in_mesh;
	info->flags = pod->flags;
	info->detected_flags = pod->detected_flags;
	info->proxy_mode = pod->proxy_mode;
	/* Its network is not known yet: a pod's cgroup is made before that, also when it is made again. */
	info->netns = 0;
	__builtin_memcpy(info->cgroup_ip, pod->ip4, sizeof(info->cgroup_ip));
	__builtin_memcpy(info->cgroup_ip6, pod->ip6, sizeof(info->cgroup_ip6));
	return true;
}

/*
 * A pod's cgroup: what the agent thinks of the pod, or that nobody knows it. Where
 * no agent was told to expect it, its connections have to wait for one.
 */
static __always_inline void fill_pod(__u64 id, const struct pod_key *key, __u64 branch)
{
	struct cgroup_info info = { .id = id };

	if (!read_pod(key, &info)) {
		info.flags = INFO_UNKNOWN_POD;
		info.detected_flags = CGROUTE_DETECTED_FLAGS;
	} else if (info.is_in_mesh && !is_handed_over(branch)) {
		info.flags |= INFO_NO_HANDOFF;
		info.detected_flags |= INFO_NO_HANDOFF;
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
 * The first container of a pod, also when its runtime makes them all anew, is in a
 * network that nobody has seen. In place: another entry that the element has become
 * this moment is without its network for as long as the agent does not look.
 */
static __always_inline void forget_network(__u64 pod)
{
	struct cgroup_info *info = bpf_map_lookup_elem(&cgroup_info_map, &pod);

	if (info && info->id == pod)
		info->netns = 0;
}

/*
 * A container's cgroup is as the pod's. CRI-O's monitor beside it is in the host's
 * network, and never redirected.
 */
static __always_inline void fill_container(struct cgroup *cgroup, const struct name *name,
					   __u64 pod)
{
	__u64 id = id_of(cgroup);
	struct cgroup_info info;

	if (BPF_CORE_READ(parent_of(cgroup), nr_descendants) == 1)
		forget_network(pod);
	if (!read_info(pod, &info))
		return;
	info.id = id;
	if (READS(name, 0, "crio-conmon-") || READS(name, 0, "libpod-conmon-")) {
		info.is_in_mesh = 0;
		info.flags = INFO_HOST_NETWORK;
		info.detected_flags = CGROUTE_DETECTED_FLAGS;
		info.proxy_mode = PROXY_NODE;
		info.netns = 0;
		__builtin_memset(info.cgroup_ip, 0, sizeof(info.cgroup_ip));
		__builtin_memset(info.cgroup_ip6, 0, sizeof(info.cgroup_ip6));
	}
	bpf_map_update_elem(&cgroup_info_map, &id, &info, BPF_NOEXIST);
}

static __always_inline struct cgroup_event *tell(struct cgroup *cgroup, enum cgroup_change change)
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
	struct pod_key key = {};
	struct name name;

	find_place(cgroup, &place);
	if (!place.below_root)
		return 0;
	read_name(cgroup, &name);
	/* What is made inside a pod never passes for another pod. */
	if (place.known_parent && place.known_above == 1 && is_container(&name)) {
		if (!is_joined(parent_of(cgroup)))
			fill_container(cgroup, &name, place.known_parent);
	} else if (!place.known_above && !place.of_users && read_key(cgroup, &name, &key) &&
		   !is_below_pod(cgroup)) {
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
