/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the programs and the agent share: structs and constants, nothing else.
 * The agent's side (native/layout/layouts.ts) is generated from the BTF of these.
 *
 * An address is 16 bytes in network order. An IPv4 address stands in the last
 * four, the rest is zero; so do IPv4-mapped IPv6 addresses, once normalised.
 *
 * Some fields are there before the features that will use them, so that a map keeps
 * its layout when these come: proxy_mode, service_account, service and waypoint. Zero
 * means "none", or what has always been so. What is reserved is zero, too; but for
 * that of settings, it takes a new version of the pins to be given a name.
 */
#ifndef CGROUTE_H
#define CGROUTE_H

/* Padding is a field like any other, as the kernel compares keys byte for byte. */
#pragma clang diagnostic push
#pragma clang diagnostic error "-Wpadded"

#define CGROUTE_MAX_POD_TREES 8
/* A container's cgroup lies at most this deep below the watched root. */
#define CGROUTE_MAX_DEPTH 10

/* Keys of the settings map; every value is 16 bytes. */
enum setting {
	SETTING_PROXY_IP4 = 1, /* ZTUNNEL_KEY: an address */
	SETTING_PROXY_IP6 = 2, /* an address */
	SETTING_PORTS = 3, /* struct proxy_ports; to be read, the programs have them as tunables */
	SETTING_POLICIES = 4, /* struct policies */
	SETTING_PROXY_NETWORK = 5, /* struct proxy_network */
};

/* A bit of cgroup_info.flags counts only with the same bit of detected_flags. */
enum info_flag {
	INFO_AMBIENT = 1 << 0,
	INFO_DNS_CAPTURE = 1 << 1,
	INFO_PROXY = 1 << 2,
	INFO_BYPASS_OUTBOUND = 1 << 3,
	INFO_BYPASS_INBOUND = 1 << 4,
	INFO_SIDECAR = 1 << 5,
	INFO_HOST_NETWORK = 1 << 6,
	INFO_UNKNOWN_POD = 1 << 7,
	INFO_OPTIONS = 1 << 8, /* the pod has traffic options */
	INFO_NO_HANDOFF = 1 << 9, /* made while sock_ops was attached nowhere around it */
	INFO_ADDRESSES = 1 << 10, /* the pod has more addresses, in pod_local_map */
};

/* The bits that cgroute decides; what it does not look at stays undetected. */
#define CGROUTE_DETECTED_FLAGS                                                                     \
	(INFO_AMBIENT | INFO_PROXY | INFO_BYPASS_OUTBOUND | INFO_BYPASS_INBOUND | INFO_SIDECAR |   \
	 INFO_HOST_NETWORK | INFO_UNKNOWN_POD | INFO_OPTIONS | INFO_NO_HANDOFF | INFO_ADDRESSES)

/* Value of handoff_map. */
enum handoff {
	HANDOFF_ALL = 1,
	HANDOFF_PODS = 2, /* for pods that have no cgroup yet */
};

/* Room in pod_counters.count. */
#define CGROUTE_MAX_BRANCHES 32

/*
 * What became of a connect(); indexes pod_counters.count. A new one comes last, as
 * the counters of another version are taken over by their places.
 */
enum branch {
	BRANCH_INBOUND_REDIRECTED, /* host process to an enrolled pod */
	BRANCH_INBOUND_EXEMPT, /* the same, but the kubelet, a port of the proxy's or an excluded one */
	BRANCH_HOST_UNTOUCHED,
	BRANCH_OUT,
	BRANCH_BYPASSED,
	BRANCH_PROXY,
	BRANCH_UNKNOWN_ALLOWED,
	BRANCH_UNKNOWN_DENIED,
	BRANCH_LOCAL, /* loopback, link-local, or an address of the pod's own network */
	BRANCH_EXCLUDED,
	BRANCH_NO_PROXY_ALLOWED,
	BRANCH_NO_PROXY_DENIED,
	BRANCH_REDIRECTED,
	BRANCH_LOOP_DENIED, /* to the proxy's own port, which would send it to itself */
	BRANCH_ERROR_DENIED, /* no way to hand over the original destination */
	BRANCH_HANDOFF_LOST, /* beside the redirected: its destination was not filed */
	BRANCH_FOREIGN_UNTOUCHED, /* process of no pod, in a network that is not the host's */
	BRANCH_NESTED_UNTOUCHED, /* in another network than its pod's own */
	BRANCH_NESTED_DENIED,
	BRANCH_OTHER_NETWORK_UNTOUCHED, /* bound to a device or address that leads to no proxy */
	BRANCH_OTHER_NETWORK_DENIED,
	BRANCH_COUNT,
};

_Static_assert(BRANCH_COUNT <= CGROUTE_MAX_BRANCHES, "each branch has a counter");

enum policy {
	POLICY_ALLOW = 0,
	POLICY_DENY = 1,
};

/* Where the proxy of a pod's connections listens. */
enum proxy_mode {
	PROXY_NODE = 0, /* at an address of its own, for all pods of the node */
	PROXY_IN_POD = 1, /* in the pod's network namespace */
};

/*
 * Value of cgroup_info_map, read at each connect(): one cache line. The first 32
 * bytes are Merbridge's.
 */
struct cgroup_info {
	__u64 id;
	__u32 is_in_mesh;
	__u8 cgroup_ip[16];
	__u16 flags;
	__u16 detected_flags;
	__u32 slot; /* the pod's index in pod_counters_map */
	__u16 proxy_mode; /* enum proxy_mode */
	__u16 reserved; /* for more flags than those sixteen */
	__u8 cgroup_ip6[16];
	__u64 netns; /* inode of the pod's network namespace; 0: not known */
};

_Static_assert(sizeof(struct cgroup_info) == 64, "one cache line");
_Static_assert(__builtin_offsetof(struct cgroup_info, cgroup_ip) == 12 &&
		       __builtin_offsetof(struct cgroup_info, flags) == 28 &&
		       __builtin_offsetof(struct cgroup_info, slot) == 32,
	       "the first 32 bytes are Merbridge's");

/* Stands for the structs below, which its map has no name for. */
struct setting_value {
	__u8 bytes[16];
};

struct proxy_ports {
	__u16 outbound; /* host order */
	__u16 inbound;
	__u32 reserved[3]; /* for its ports of DNS and HBONE */
};

struct policies {
	__u32 unknown_pods; /* enum policy */
	__u32 when_proxy_down; /* enum policy */
	__u16 proxy_mode; /* enum proxy_mode, as the agent is configured */
	__u16 reserved; /* for how many seconds a connection is held */
	__u16 nested_networks; /* enum policy: containers in a network of their own within a pod's */
	__u16 other_networks; /* enum policy: sockets that are bound to where no proxy is */
};

/* Where the node's proxy is. */
struct proxy_network {
	__u64 netns; /* inode of its network namespace; 0: not known */
	__u64 reserved;
};

_Static_assert(sizeof(struct proxy_ports) == sizeof(struct setting_value) &&
		       sizeof(struct policies) == sizeof(struct setting_value) &&
		       sizeof(struct proxy_network) == sizeof(struct setting_value),
	       "values of one map");

/* Key of pod_ip_map. */
struct address {
	__u32 word_be[4];
};

/* Value of pod_ip_map: an enrolled pod of this node whose inbound side counts. */
struct pod_address {
	__u32 slot;
	__u32 has_options; /* of the inbound side */
};

/* pod_options.flags. A list that is absent has no flag. */
enum option_flag {
	OPTION_NOTHING_OUTBOUND = 1 << 0,
	OPTION_EXEMPT_USER = 1 << 1,
	OPTION_EXCLUDED_PORTS = 1 << 2,
	OPTION_EXCLUDED_RANGES = 1 << 3,
	OPTION_INCLUDED_PORTS = 1 << 4,
	OPTION_INCLUDED_RANGES = 1 << 5, /* no others but these */
	OPTION_NOTHING_INBOUND = 1 << 6,
	OPTION_EXCLUDED_INBOUND = 1 << 7,
	OPTION_INCLUDED_INBOUND = 1 << 8, /* no others but these */
};

/* Value of pod_options_map. */
struct pod_options {
	__u32 flags;
	__u32 exempt_user; /* user id as the initial user namespace has it */
};

/* Value of the bypass_filter maps: which of a pod's directions go around its sidecar. */
enum bypass_direction {
	BYPASS_OUTBOUND = 1 << 0,
	BYPASS_INBOUND = 1 << 1,
};

enum port_list {
	PORT_EXCLUDED_OUTBOUND,
	PORT_INCLUDED_OUTBOUND,
	PORT_EXCLUDED_INBOUND,
	PORT_INCLUDED_INBOUND,
};

/* Key of pod_port_map. */
struct port_key {
	__u32 slot;
	__u16 list; /* enum port_list */
	__u16 port; /* host order */
};

enum range_list {
	RANGE_EXCLUDED_IP4,
	RANGE_EXCLUDED_IP6,
	RANGE_INCLUDED_IP4,
	RANGE_INCLUDED_IP6,
};

/* Key of pod_range_map, a trie: prefix_length counts the bits after itself. */
struct range_key {
	__u32 prefix_length;
	__u32 slot;
	__u32 list; /* enum range_list */
	struct address address;
};

/* Key of pod_local_map: an address of a pod's own network namespace. */
struct local_key {
	__u32 slot;
	struct address address;
};

enum local_address {
	LOCAL_ELSEWHERE = 1, /* on another interface than that by which the proxy is reached */
	LOCAL_LEADS = 2, /* not so, as far as is known */
};

/* Value of pod_device_map: the pod's interfaces that lead to the proxy; 0: not known. */
struct pod_devices {
	__u32 ip4, ip6;
};

struct pod_counters {
	__u64 count[CGROUTE_MAX_BRANCHES]; /* by enum branch */
};

/* The cgroups right below the watched root under which pods live. */
struct pod_trees {
	__u32 count; /* more than CGROUTE_MAX_POD_TREES: they are not listed */
	__u32 reserved;
	__u64 id[CGROUTE_MAX_POD_TREES];
};

/*
 * Key of pod_info_map: what stands for the pod in its cgroup's name, the UID
 * with dashes or, for a static pod, 32 hex digits. Padded with zeros.
 */
struct pod_key {
	char text[40];
};

enum cgroup_change {
	CGROUP_MADE,
	CGROUP_REMOVED,
};

/* In cgroup_event_map: a cgroup below the watched root was made or removed. */
struct cgroup_event {
	__u64 id;
	__u64 parent;
	__u32 change; /* enum cgroup_change */
	__u32 reserved;
	char name[128]; /* ends with a zero; cut off if longer */
};

/*
 * Value of pod_info_map: what the agent knows of a pod, so that it is there to
 * be read when the agent is not. What programs use stands before the uid.
 */
struct pod_info {
	__u32 slot;
	__u16 flags;
	__u16 detected_flags;
	__u32 is_in_mesh;
	__u32 namespace_mode; /* what the pod has of its namespace's label, see mapper/inventory/enrolment.ts */
	__u8 ip4[16];
	__u8 ip6[16];
	__u64 netns; /* as in cgroup_info, like the next */
	__u16 proxy_mode;
	__u16 reserved; /* for more flags */
	__u32 reserved2;
	char uid[40]; /* of the API object; a static pod's is not its key */
	char verdict[8];
	char reason[32];
	char pod_namespace[64];
	char pod_name[256];
	/* Its proxy is told that, by an agent too that sees no API server; empty: not known */
	char service_account[256];
};

_Static_assert(__builtin_offsetof(struct pod_info, uid) % sizeof(__u64) == 0, "struct pod_head");

/* Single value of agent_map: who writes the maps. */
struct agent_info {
	__u64 started_ms; /* Unix time */
	__u64 beat_ms; /* Unix time of the last sign of life */
	__u32 pid; /* as the agent's own pid namespace counts it */
	__u32 root_level; /* level of the watched root in the cgroup hierarchy */
	__u64 root_id; /* cgroup id of the watched root */
	__u64 netns; /* inode of the agent's network namespace */
	char version[32];
	char node[256];
	char http[64]; /* ADDR:PORT */
};

#pragma clang diagnostic pop

#endif
