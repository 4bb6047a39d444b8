/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which network a socket is in: that of the host, of a pod, or another. */
#ifndef CGROUTE_NETWORK_BPF_H
#define CGROUTE_NETWORK_BPF_H

#include "older-kernel.bpf.h"

/*
 * Inode of the host's network namespace, which stays as long as the host runs; 0 where
 * the agent could not tell.
 */
const volatile __u32 host_netns = 0;

static __always_inline bool is_hosts_network(__u32 netns)
{
	return host_netns && netns == host_netns;
}

#endif
