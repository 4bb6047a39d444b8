// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Other people's programs on the connect hooks: a load balancer that resolves
 * service addresses, and a firewall. Each writes down what it was shown.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

/* IPv4 in the last word; network order. */
struct destination {
	__u32 word_be[4];
	__u32 port_be;
};

/* Service to backend. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, struct destination);
	__type(value, struct destination);
} services SEC(".maps");

/* Destinations that the firewall denies. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, struct destination);
	__type(value, __u32);
} denied SEC(".maps");

/* How often a program was shown a destination; by either of them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct destination);
	__type(value, __u32);
} shown SEC(".maps");

static __always_inline void write_down(const struct destination *destination)
{
	__u32 *times = bpf_map_lookup_elem(&shown, destination), once = 1;

	if (times)
		__sync_fetch_and_add(times, 1);
	else
		bpf_map_update_elem(&shown, destination, &once, BPF_ANY);
}

static __always_inline void read4(struct bpf_sock_addr *ctx, struct destination *to)
{
	to->word_be[3] = ctx->user_ip4;
	to->port_be = ctx->user_port;
}

static __always_inline void read6(struct bpf_sock_addr *ctx, struct destination *to)
{
	to->word_be[0] = ctx->user_ip6[0];
	to->word_be[1] = ctx->user_ip6[1];
	to->word_be[2] = ctx->user_ip6[2];
	to->word_be[3] = ctx->user_ip6[3];
	to->port_be = ctx->user_port;
}

SEC("cgroup/connect4")
int balance4(struct bpf_sock_addr *ctx)
{
	struct destination to = {}, *backend;

	read4(ctx, &to);
	write_down(&to);
	backend = bpf_map_lookup_elem(&services, &to);
	if (backend) {
		ctx->user_ip4 = backend->word_be[3];
		ctx->user_port = backend->port_be;
	}
	return 1;
}

SEC("cgroup/connect6")
int balance6(struct bpf_sock_addr *ctx)
{
	struct destination to = {}, *backend;

	read6(ctx, &to);
	write_down(&to);
	backend = bpf_map_lookup_elem(&services, &to);
	if (backend) {
		ctx->user_ip6[0] = backend->word_be[0];
		ctx->user_ip6[1] = backend->word_be[1];
		ctx->user_ip6[2] = backend->word_be[2];
		ctx->user_ip6[3] = backend->word_be[3];
		ctx->user_port = backend->port_be;
	}
	return 1;
}

SEC("cgroup/connect4")
int deny4(struct bpf_sock_addr *ctx)
{
	struct destination to = {};

	read4(ctx, &to);
	write_down(&to);
	return !bpf_map_lookup_elem(&denied, &to);
}

SEC("cgroup/connect6")
int deny6(struct bpf_sock_addr *ctx)
{
	struct destination to = {};

	read6(ctx, &to);
	write_down(&to);
	return !bpf_map_lookup_elem(&denied, &to);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
