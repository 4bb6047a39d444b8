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
#include "lib/address.bpf.h"
#include "lib/identity.bpf.h"
#include "lib/kubelet.bpf.h"
#include "lib/lookup.bpf.h"
#include "lib/maps.bpf.h"
#include "lib/options.bpf.h"

#define ALLOW 1
#define DENY 0

/* Where the proxy takes redirected connections. */
const volatile __u32 outbound_port = 15001;
const volatile __u32 inbound_port = 15006;

/* Entries of connection_overflow_map that one pod may have. */
const volatile __u32 connection_share = 32768;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, enum setting);
	__type(value, struct setting_value);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct address);
	__type(value, struct pod_address);
} pod_ip_map SEC(".maps");

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
	enum policy policy;
	enum option_flag option_flag;
	enum port_list port_list;
	enum range_list range_list;
	enum handoff handoff;
	struct proxy_ports proxy_ports;
	struct policies policies;
} vocabulary;

static __always_inline bool denies(bool when_proxy_down)
{
	enum setting key = SETTING_POLICIES;
	struct policies policies;

	if (!READ_ENTRY_THAT_IS(&settings, &key, &policies))
		return when_proxy_down; /* the defaults of both */
	return (when_proxy_down ? policies.when_proxy_down : policies.unknown_pods) == POLICY_DENY;
}

/* Ports of the proxy itself, by Istio's conventions. */
static __always_inline bool is_proxy_port(__u16 port)
{
	switch (port) {
	case 15001:
	case 15006:
	case 15008:
	case 15020:
	case 15021:
	case 15090: return true;
	}
	return false;
}

struct verdict {
	enum branch branch;
	__u32 slot;
	bool denied;
	bool redirected;
	struct address proxy;
	__u16 proxy_port_be;
};

static __always_inline bool find_proxy(bool ip4, struct address *proxy)
{
	enum setting key = ip4 ? SETTING_PROXY_IP4 : SETTING_PROXY_IP6;

	return READ_ENTRY_THAT_IS(&settings, &key, proxy);
}

/* Whether this is where the proxy takes redirected connections. */
static __always_inline bool is_redirect_port(__u16 port_be)
{
	return port_be == bpf_htons(outbound_port) || port_be == bpf_htons(inbound_port);
}

static __always_inline void redirect(struct verdict *verdict, const struct address *dst,
				     __u16 port_be, bool ip4, bool inbound)
{
	struct address proxy;

	if (!find_proxy(ip4, &proxy)) {
		verdict->denied = denies(true);
		verdict->branch =
			verdict->denied ? BRANCH_NO_PROXY_DENIED : BRANCH_NO_PROXY_ALLOWED;
		return;
	}
	if (same_address(dst, &proxy) && is_redirect_port(port_be)) {
		verdict->denied = true;
		verdict->branch = BRANCH_LOOP_DENIED;
		return;
	}
	verdict->redirected = true;
	verdict->branch = inbound ? BRANCH_INBOUND_REDIRECTED : BRANCH_REDIRECTED;
	verdict->proxy = proxy;
	verdict->proxy_port_be = bpf_htons(inbound ? inbound_port : outbound_port);
}

static __always_inline void decide_unknown(struct verdict *verdict)
{
	verdict->denied = denies(false);
	verdict->branch = verdict->denied ? BRANCH_UNKNOWN_DENIED : BRANCH_UNKNOWN_ALLOWED;
}

/* Whether the destination of a host process's connection would get to the proxy. */
static __always_inline bool is_handed_over(void)
{
	__u64 branch = bpf_get_current_ancestor_cgroup_id(root_level + 1);
	__u64 root = bpf_get_current_ancestor_cgroup_id(root_level);
	enum handoff handoff;

	if (bpf_map_lookup_elem(&handoff_map, &branch))
		return true;
	return READ_ENTRY(&handoff_map, &root, &handoff) && handoff == HANDOFF_ALL;
}

/* ::10.1.2.3, which is no IPv4 address, and would be taken for one in every map. */
static __always_inline bool is_ambiguous(const struct address *dst, bool ip4)
{
	return !ip4 && is_ip4(dst);
}

static __always_inline void decide_host(struct verdict *verdict, const struct address *dst,
					__u16 port_be, bool ip4)
{
	struct pod_address pod;

	verdict->branch = BRANCH_HOST_UNTOUCHED;
	if (is_ambiguous(dst, ip4) || !READ_ENTRY(&pod_ip_map, dst, &pod))
		return;
	verdict->slot = pod.slot;
	if (is_proxy_port(bpf_ntohs(port_be)) || is_kubelet() ||
	    (pod.has_options && is_excluded_inbound(pod.slot, bpf_ntohs(port_be)))) {
		verdict->branch = BRANCH_INBOUND_EXEMPT;
		return;
	}
	redirect(verdict, dst, port_be, ip4, true);
	if (!verdict->redirected || is_handed_over())
		return;
	/* Among host processes' own: the agent takes it for a call to attach there. */
	verdict->slot = 0;
	verdict->redirected = false;
	verdict->denied = true;
	verdict->branch = BRANCH_ERROR_DENIED;
}

/*
 * A proxy that has lost the original destination dials itself, for ever; by any
 * address, as it may have others than the one that is published.
 */
static __always_inline void decide_proxy(struct verdict *verdict, __u16 port_be)
{
	verdict->denied = is_redirect_port(port_be);
	verdict->branch = verdict->denied ? BRANCH_LOOP_DENIED : BRANCH_PROXY;
}

/* The proxy would be told another destination. */
static __always_inline void deny_ambiguous(struct verdict *verdict)
{
	verdict->denied = true;
	verdict->branch = BRANCH_ERROR_DENIED;
}

static __always_inline void decide_pod(struct verdict *verdict, const struct cgroup_info *info,
				       const struct address *dst, __u16 port_be, bool ip4)
{
	const struct address *own = ip4 ? (void *)info->cgroup_ip : (void *)info->cgroup_ip6;
	__u16 flags = info->flags & info->detected_flags;

	verdict->slot = info->slot;
	if (flags & INFO_UNKNOWN_POD)
		decide_unknown(verdict);
	else if (flags & INFO_PROXY)
		decide_proxy(verdict, port_be);
	else if (!info->is_in_mesh)
		verdict->branch = BRANCH_OUT;
	else if (flags & INFO_BYPASS_OUTBOUND)
		verdict->branch = BRANCH_BYPASSED;
	else if ((ip4 ? is_loopback4(dst) : is_loopback6(dst)) || is_unspecified(dst) ||
		 same_address(dst, own))
		verdict->branch = BRANCH_LOCAL;
	else if (is_ambiguous(dst, ip4))
		deny_ambiguous(verdict);
	else if (flags & INFO_OPTIONS && is_excluded(info->slot, dst, bpf_ntohs(port_be), ip4))
		verdict->branch = BRANCH_EXCLUDED;
	else
		redirect(verdict, dst, port_be, ip4, false);
	if (verdict->redirected && (flags & INFO_NO_HANDOFF)) {
		verdict->redirected = false;
		verdict->denied = true;
		verdict->branch = BRANCH_ERROR_DENIED;
	}
}

/* Keeps the original destination; what is no longer so is overwritten. */
static __always_inline bool remember(__u64 cookie, const struct verdict *verdict,
				     const struct address *dst, __u16 port_be)
{
	struct connection connection = {};

	connection.original.address = *dst;
	connection.original.port_be = port_be;
	connection.original.slot = verdict->slot;
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

/* Fills the verdict and has it counted. Returns ALLOW or DENY. */
static __always_inline int decide(struct bpf_sock_addr *ctx, bool at_root,
				  const struct address *dst, bool ip4, struct verdict *verdict)
{
	__u16 port_be = ctx->user_port;
	__u64 cookie, *handled;
	struct cgroup_info info;
	__u32 zero = 0;

	cookie = bpf_get_socket_cookie(ctx);
	handled = bpf_map_lookup_elem(&handled_map, &zero);
	if (!handled)
		return DENY;
	if (at_root && *handled == cookie) {
		*handled = 0;
		return ALLOW;
	}
	if (find_pod(at_root, &info))
		decide_pod(verdict, &info, dst, port_be, ip4);
	else if (at_root)
		decide_host(verdict, dst, port_be, ip4);
	else
		decide_unknown(verdict);
	/*
	 * Not a loop, but the same connect() once more: at the root, where the pod_
	 * program's mark has been lost; at a pod, where the program is attached twice, as
	 * the kernel frees a link that was removed only after its successor is there.
	 */
	if (verdict->branch == BRANCH_LOOP_DENIED && (at_root || *handled == cookie) &&
	    is_remembered(cookie, dst, port_be))
		return ALLOW;
	if (!at_root)
		*handled = cookie;
	if (verdict->redirected && !remember(cookie, verdict, dst, port_be)) {
		verdict->redirected = false;
		verdict->denied = true;
		verdict->branch = BRANCH_ERROR_DENIED;
	}
	count(verdict->slot, verdict->branch);
	return verdict->denied ? DENY : ALLOW;
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
