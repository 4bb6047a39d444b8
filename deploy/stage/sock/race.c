// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Two that meet: connect() as fast as it goes, and entries of a map written as fast as it goes. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "sock.h"

#define MOST_ERRNOS 256

/* One socket that connects for MS milliseconds: how often, and what came of it. */
int cmd_knock(int argc, char **argv)
{
	struct sockaddr nothing = { .sa_family = AF_UNSPEC };
	static unsigned long counts[MOST_ERRNOS];
	unsigned long total = 0;
	const char *comma = "";
	union address to;
	uint64_t until;
	int fd;

	if (argc != 4 || !parse_address(argv[2], argv[3], &to))
		misuse("knock needs MS ADDR PORT");
	until = now_ns() + number(argv[1], "MS", 3600000) * 1000000ull;
	fd = socket(to.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket");
	for (; total % 64 || now_ns() < until; total++) {
		int error = connect(fd, &to.any, address_len(&to)) ? errno : 0;

		counts[error < MOST_ERRNOS ? error : MOST_ERRNOS - 1]++;
		if (error == 0 || error == EINPROGRESS)
			connect(fd, &nothing, sizeof(nothing));
	}
	printf("{\"total\":%lu,\"errors\":{", total);
	for (int error = 0; error < MOST_ERRNOS; error++) {
		if (!counts[error])
			continue;
		printf("%s\"%s\":%lu", comma, error ? errno_name(error) : "none", counts[error]);
		comma = ",";
	}
	puts("}}");
	return 0;
}

/* Pairs of hexadecimal digits into bytes; how many those are. */
static size_t from_hex(const char *text, unsigned char *bytes, size_t most)
{
	size_t count = 0;
	unsigned int byte;

	for (; count < most && sscanf(text + 2 * count, "%2x", &byte) == 1; count++)
		bytes[count] = byte;
	return count;
}

/* Writes all KEY=VALUE of a pinned map, in hexadecimal, again and again until stdin ends. */
int cmd_rewrite(int argc, char **argv)
{
	static unsigned char keys[16][64], values[16][256];
	union bpf_attr attr = {};
	unsigned long rounds = 0;
	int map, count = argc - 2;

	if (count < 1 || count > 16)
		misuse("rewrite needs PIN and 1 to 16 KEY=VALUE");
	attr.pathname = (uint64_t)(uintptr_t)argv[1];
	map = syscall(SYS_bpf, BPF_OBJ_GET, &attr, sizeof(attr));
	if (map < 0)
		die(argv[1]);
	for (int i = 0; i < count; i++) {
		char *value = strchr(argv[2 + i], '=');

		if (!value)
			misuse("%s is no KEY=VALUE", argv[2 + i]);
		*value++ = '\0';
		from_hex(argv[2 + i], keys[i], sizeof(keys[i]));
		from_hex(value, values[i], sizeof(values[i]));
	}
	puts("{}");
	for (; rounds % 256 || !ended(STDIN_FILENO, 0); rounds++) {
		for (int i = 0; i < count; i++) {
			memset(&attr, 0, sizeof(attr));
			attr.map_fd = map;
			attr.key = (uint64_t)(uintptr_t)keys[i];
			attr.value = (uint64_t)(uintptr_t)values[i];
			if (syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &attr, sizeof(attr)))
				die("BPF_MAP_UPDATE_ELEM");
		}
	}
	printf("{\"rounds\":%lu}\n", rounds);
	return 0;
}
