// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A program that does nothing: what the kernel's own statistics cost on a machine. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

SEC("cgroup/connect4")
int empty_connect4(struct bpf_sock_addr *ctx)
{
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
