// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * cgroup/connect4 and connect6: find the pod by the current cgroup, decide, and
 * send the connection to the node's proxy or leave it alone.
 *
 * Each program exists twice. The pod_ ones are attached where the kubelet keeps
 * its pods, so that they run before whatever else is attached at the root. The
 * root_ ones are attached at the watched root, for host processes, and catch
 * what no pod_ program has seen.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "cgroute.h"
#include "connection.h"
#include "lib/address.bpf.h"
#include "lib/identity.bpf.h"
#include "lib/maps.bpf.h"
#include "lib/network.bpf.h"
#include "lib/older-kernel.bpf.h"
#include "lib/socket-owner.bpf.h"
#include "lib/verdict.bpf.h"

#define ALLOW 1
#define DENY 0
#define ECONNREFUSED 111 /* <asm-generic/errno.h> */

/* Entries of connection_overflow_map that one pod may have. */
const volatile __u32 connection_share = 32768;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct agent_info);
} agent_map SEC(".maps");

/*
 * The socket that a pod_ program has just dealt with, so that the root_ program
 * of the same connect() need not. Losing it to a preemption costs time only.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} handled_map SEC(".maps");

/* Unread: it puts into the object's BTF what the agent must know by name. */
const volatile struct vocabulary {
	enum info_flag info_flag;
	enum branch branch;
	enum proxy_mode proxy_mode;
	enum policy policy;
	enum option_flag option_flag;
	enum port_list port_list;
	enum range_list range_list;
	enum handoff handoff;
	enum free_part free_part;
	enum local_address local_address;
	struct proxy_ports proxy_ports;
	struct policies policies;
	struct proxy_network proxy_network;
} vocabulary;

/* Keeps the original destination; what is no longer so is overwritten. */
static __always_inline bool remember(__u64 cookie, const struct sock *socket,
				     const struct verdict *verdict, const struct address *dst,
				     __u16 port_be)
{
	struct connection connection = {};

	connection.original.address = *dst;
	connection.original.port_be = port_be;
	connection.original.slot = verdict->slot;
	/* As if it were filed. */
	if (is_subflow(socket))
		connection.original.at_ns = now_ns();
	connection.proxy = verdict->proxy;
	connection.proxy_port_be = verdict->proxy_port_be;
	return put_connection(cookie, connection_share, &connection);
}

/* True when a program of ours wrote this destination for this very socket. */
static __always_inline bool is_remembered(__u64 cookie, const struct address *dst, __u16 port_be)
{
	struct connection *connection = find_connection(cookie);

	return connection && same_address(&connection->proxy, dst) &&
	       connection->proxy_port_be == port_be;
}

/*
 * Clients try again on ECONNREFUSED, and give up on EPERM, which a denial is without
 * this. What a nearer program has denied keeps its error.
 */
static __always_inline void refuse_for_now(void)
{
	if (HAS_SET_RETVAL && !bpf_get_retval())
		bpf_set_retval(-ECONNREFUSED);
}

enum owner {
	OWNER_PROXY,
	OWNER_POD,
	OWNER_UNKNOWN, /* a pod that nobody knows yet */
	OWNER_HOST,
	OWNER_HOST_POD, /* a pod in the host's network */
	OWNER_FOREIGN, /* none of these: a container of nobody's, or who entered a pod's network */
};

/*
 * Whose the connection is. The proxy by its cgroup alone, as its sockets may be in any
 * network. What is in the host's network is never a pod's, whatever its cgroup.
 */
static __always_inline enum owner owner_of(const struct sock *socket, bool at_root, __u64 netns,
					   struct cgroup_info *info)
{
	if (find_pod(at_root, info) || (is_kernel_thread() && find_socket_pod(socket, info))) {
		if (is_proxy(info))
			return OWNER_PROXY;
		return is_hosts_network(netns) ? OWNER_HOST_POD : OWNER_POD;
	}
	if (is_hosts_network(netns))
		return OWNER_HOST;
	if (!at_root)
		return OWNER_UNKNOWN;
	return host_netns ? OWNER_FOREIGN : OWNER_HOST;
}

/* Fills the verdict and has it counted. Returns ALLOW or DENY. */
static __always_inline int decide(struct bpf_sock_addr *ctx, bool at_root,
				  const struct address *dst, bool ip4, struct verdict *verdict)
{
	__u16 port_be = ctx->user_port;
	__u64 cookie, *handled;
	struct cgroup_info info = {};
	const struct sock *socket;
	enum owner owner;
	__u32 zero = 0;
	__u64 netns;

	cookie = bpf_get_socket_cookie(ctx);
	handled = bpf_map_lookup_elem(&handled_map, &zero);
	if (!handled)
		return DENY;
	if (at_root && *handled == cookie) {
		*handled = 0;
		return ALLOW;
	}
	socket = kernel_socket(ctx->sk);
	netns = inode_of_netns(socket);
	owner = owner_of(socket, at_root, netns, &info);
	switch (owner) {
	case OWNER_PROXY: decide_proxy(verdict, &info, port_be); break;
	case OWNER_POD: decide_pod(verdict, &info, ctx->sk, netns, dst, port_be, ip4); break;
	case OWNER_UNKNOWN: decide_unknown(verdict, dst, ip4); break;
	case OWNER_FOREIGN: verdict->branch = BRANCH_FOREIGN_UNTOUCHED; break;
	case OWNER_HOST:
	case OWNER_HOST_POD:
		/* The program at the root runs for it, too. */
		if (!at_root)
			return ALLOW;
		decide_host(verdict, dst, port_be, ip4);
		if (owner == OWNER_HOST_POD)
			count_for_host_pod(verdict, &info);
		break;
	}
	/*
	 * Not a loop, but the same connect() once more: at the root, where the pod_
	 * program's mark has been lost; at a pod, where the program is attached twice, as
	 * the kernel frees a link that was removed only after its successor is there.
	 */
	if (verdict->branch == BRANCH_LOOP_DENIED && (at_root || *handled == cookie) &&
	    is_remembered(cookie, dst, port_be))
		return ALLOW;
	/* Nor is what joins a connection that was redirected: its peer is the proxy. */
	if (verdict->branch == BRANCH_LOOP_DENIED && owner == OWNER_POD && is_subflow(socket)) {
		verdict->denied = false;
		verdict->branch = BRANCH_REDIRECTED;
	}
	if (!at_root)
		*handled = cookie;
	if (verdict->redirected && !remember(cookie, socket, verdict, dst, port_be)) {
		verdict->redirected = false;
		verdict->denied = true;
		verdict->branch = BRANCH_ERROR_DENIED;
	}
	count(verdict->slot, verdict->branch);
	if (!verdict->denied)
		return ALLOW;
	if (verdict->for_now)
		refuse_for_now();
	return DENY;
}

/* MPTCP opens TCP connections, and falls back to plain ones. */
static __always_inline bool is_tcp(const struct bpf_sock_addr *ctx)
{
	return ctx->protocol == IPPROTO_TCP || ctx->protocol == IPPROTO_MPTCP;
}

static __always_inline int on_connect4(struct bpf_sock_addr *ctx, bool at_root)
{
	struct address dst = {};
	struct verdict verdict = {};
	int ret;

	if (!is_tcp(ctx))
		return ALLOW;
	dst.word_be[3] = ctx->user_ip4;
	ret = decide(ctx, at_root, &dst, true, &verdict);
	if (verdict.redirected) {
		ctx->user_ip4 = verdict.proxy.word_be[3];
		ctx->user_port = verdict.proxy_port_be;
	}
	return ret;
}

static __always_inline int on_connect6(struct bpf_sock_addr *ctx, bool at_root)
{
	struct address dst = {};
	struct verdict verdict = {};
	bool ip4;
	int ret;

	if (!is_tcp(ctx))
		return ALLOW;
	dst.word_be[0] = ctx->user_ip6[0];
	dst.word_be[1] = ctx->user_ip6[1];
	dst.word_be[2] = ctx->user_ip6[2];
	dst.word_be[3] = ctx->user_ip6[3];
	ip4 = !dst.word_be[0] && !dst.word_be[1] && dst.word_be[2] == bpf_htonl(0xffff);
	if (ip4)
		dst.word_be[2] = 0;
	ret = decide(ctx, at_root, &dst, ip4, &verdict);
	if (verdict.redirected) {
		ctx->user_ip6[0] = verdict.proxy.word_be[0];
		ctx->user_ip6[1] = verdict.proxy.word_be[1];
		ctx->user_ip6[2] = ip4 ? bpf_htonl(0xffff) : verdict.proxy.word_be[2];
		ctx->user_ip6[3] = verdict.proxy.word_be[3];
		ctx->user_port = verdict.proxy_port_be;
	}
	return ret;
}

SEC("cgroup/connect4")
int pod_connect4(struct bpf_sock_addr *ctx)
{
	return on_connect4(ctx, false);
}

SEC("cgroup/connect6")
int pod_connect6(struct bpf_sock_addr *ctx)
{
	return on_connect6(ctx, false);
}

SEC("cgroup/connect4")
int root_connect4(struct bpf_sock_addr *ctx)
{
	return on_connect4(ctx, true);
}

SEC("cgroup/connect6")
int root_connect6(struct bpf_sock_addr *ctx)
{
	return on_connect6(ctx, true);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
