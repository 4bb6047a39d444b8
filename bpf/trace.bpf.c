// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The client's half by tracepoints. They are called for every TCP socket of the
 * host, and leave after one comparison: by far cheaper than sock_ops, which the
 * kernel calls some nine times for a connection, both ends counted.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "handoff.bpf.h"

#define AF_INET6 10
#define ETIMEDOUT 110

static __always_inline void read_ends(const struct sock_common *common,
				      struct ends *ends)
{
	bool ip6 = common->skc_family == AF_INET6;

	if (ip6) {
		__builtin_memcpy(&ends->local, &common->skc_v6_rcv_saddr,
				 sizeof(ends->local));
		__builtin_memcpy(&ends->remote, &common->skc_v6_daddr,
				 sizeof(ends->remote));
	}
	normalise(&ends->local, ip6, common->skc_rcv_saddr);
	normalise(&ends->remote, ip6, common->skc_daddr);
	ends->local_port_be = bpf_htons(common->skc_num);
	ends->remote_port_be = common->skc_dport;
}

/*
 * The SYN-ACK is here, and the ACK that makes the proxy's side stand has not
 * left: whoever accepts the connection finds its destination filed.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state, struct sock *sk, int old, int new)
{
	struct connection *connection;
	struct ends ends = {};
	struct tcp_sock *tcp;
	__u64 cookie;

	if (old != BPF_TCP_SYN_SENT || new != BPF_TCP_ESTABLISHED)
		return 0;
	cookie = sk->__sk_common.skc_cookie.counter;
	if (!cookie)
		return 0;
	connection = find_connection(cookie);
	if (!connection)
		return 0;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 0;
	read_ends(&sk->__sk_common, &ends);
	/* All that has been acknowledged is the SYN, and with Fast Open its data. */
	file_original(connection, &ends, tcp->snd_una - (__u32)tcp->bytes_acked,
		      sk->__sk_common.skc_net.net->net_cookie);
	return 0;
}

/*
 * With the proxy's FIN the proxy is through with the connection, and after a
 * time-out it never knew of it. A client that went away by itself may have been
 * quicker than the proxy, which is still going to ask.
 */
SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(tcp_destroy, struct sock *sk)
{
	__u64 cookie;

	cookie = sk->__sk_common.skc_cookie.counter;
	if (cookie)
		forget(cookie, sk->__sk_common.skc_flags & (1UL << SOCK_DONE) ||
				       sk->sk_err == ETIMEDOUT);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
