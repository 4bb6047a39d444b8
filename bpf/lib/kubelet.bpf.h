/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whether the current process is the kubelet, by its name. */
#ifndef CGROUTE_KUBELET_BPF_H
#define CGROUTE_KUBELET_BPF_H

/* The first eight characters of a name as one number. */
#define NAME(a, b, c, d, e, f, g, h)                                                               \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 |   \
	 (__u64)(f) << 40 | (__u64)(g) << 48 | (__u64)(h) << 56)

/* The kubelet's probes must reach the pod itself. */
static __always_inline bool is_kubelet(void)
{
	union {
		char text[16];
		__u64 head;
	} comm = {};

	if (bpf_get_current_comm(comm.text, sizeof(comm.text)))
		return false;
	if (comm.head == NAME('k', 'u', 'b', 'e', 'l', 'e', 't', 0))
		return true;
	if (comm.head == NAME('k', 'u', 'b', 'e', 'l', 'i', 't', 'e'))
		return !comm.text[8];
	/* k3s calls itself "k3s-server" or "k3s-agent". */
	return comm.text[0] == 'k' && comm.text[1] == '3' && comm.text[2] == 's' &&
	       (!comm.text[3] || comm.text[3] == '-');
}

#endif
