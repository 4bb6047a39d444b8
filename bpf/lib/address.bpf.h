/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What can be asked of a struct address. */
#ifndef CGROUTE_ADDRESS_BPF_H
#define CGROUTE_ADDRESS_BPF_H

#include "cgroute.h"

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return a->word_be[3] == b->word_be[3] && a->word_be[2] == b->word_be[2] &&
	       a->word_be[1] == b->word_be[1] && a->word_be[0] == b->word_be[0];
}

/* ::1 and :: count as IPv4 here, which the two below allow for. */
static __always_inline bool is_ip4(const struct address *a)
{
	return !a->word_be[0] && !a->word_be[1] && !a->word_be[2];
}

/* ::1, as what else begins with zeros is an address like any other. */
static __always_inline bool is_loopback6(const struct address *a)
{
	return is_ip4(a) && a->word_be[3] == bpf_htonl(1);
}

static __always_inline bool is_loopback4(const struct address *a)
{
	return is_ip4(a) && (a->word_be[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
}

static __always_inline bool is_loopback(const struct address *a)
{
	return is_loopback4(a) || is_loopback6(a);
}

/* fe80::/10, which no router passes on. */
static __always_inline bool is_link_local6(const struct address *a)
{
	return (a->word_be[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* connect() to the unspecified address reaches the host itself. */
static __always_inline bool is_unspecified(const struct address *a)
{
	return is_ip4(a) && !a->word_be[3];
}

#endif
