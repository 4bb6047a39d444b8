// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What a pod would do that wants all of something. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "sock.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

/*
 * A socket whose connect() fails after all programs have seen it, without a port
 * or a packet: bound to loopback, it cannot go anywhere else.
 */
static int grab(const union address *to)
{
	struct sockaddr_in loopback = { .sin_family = AF_INET,
					.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	if (fd < 0)
		die("socket");
	if (setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on)) ||
	    bind(fd, (struct sockaddr *)&loopback, sizeof(loopback)))
		die("bind");
	if (connect(fd, &to->any, address_len(to)) == 0)
		misuse("connected, though bound to loopback");
	return errno;
}

/* COUNT such sockets, kept until stdin ends. */
int cmd_grab(int argc, char **argv)
{
	long count, denied = 0, other = 0;
	union address to;

	if (argc != 4 || !parse_address(argv[2], argv[3], &to) || !is_v4(&to))
		misuse("grab needs COUNT ADDR PORT, and an IPv4 address");
	count = number(argv[1], "COUNT", 1000000);
	if (raise_file_limit(count + 64) < (unsigned long)count + 64)
		misuse("not so many files may be open here");
	for (long i = 0; i < count; i++) {
		if (grab(&to) == EPERM)
			denied++;
		else
			other++;
	}
	printf("{\"held\":%ld,\"denied\":%ld}\n", other, denied);
	ended(STDIN_FILENO, -1);
	return 0;
}

/*
 * A socket in repair mode, as CRIU restores them, which is established without any
 * peer. It takes CAP_NET_ADMIN in the user namespace that owns the network namespace.
 */
static bool repaired(const union address *from, const union address *to)
{
	int fd = socket(from->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
	bool ok;

	if (fd < 0)
		die("socket");
	if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on)))
		die("TCP_REPAIR");
	if (bind(fd, &from->any, address_len(from)))
		die("bind");
	ok = connect(fd, &to->any, address_len(to)) == 0;
	close(fd);
	return ok;
}

/* COUNT such sockets from FROM, each with a port of its own, one after the other. */
int cmd_repair(int argc, char **argv)
{
	union address from, to;
	long count, done = 0;

	if (argc != 5 || !parse_address(argv[2], "0", &from) ||
	    !parse_address(argv[3], argv[4], &to))
		misuse("repair needs COUNT FROM ADDR PORT");
	count = number(argv[1], "COUNT", 60000);
	for (long i = 0; i < count; i++) {
		in_port_t port = htons(1024 + i);

		if (is_v4(&from))
			from.v4.sin_port = port;
		else
			from.v6.sin6_port = port;
		done += repaired(&from, &to);
	}
	printf("{\"established\":%ld}\n", done);
	return 0;
}

static void *rest(void *unused)
{
	(void)unused;
	for (;;)
		pause();
	return NULL;
}

/* COUNT threads, as many as the system lets it have, until stdin ends. */
int cmd_threads(int argc, char **argv)
{
	const size_t stack = 16384;
	pthread_attr_t attributes;
	long count, made = 0;
	char *stacks;

	if (argc != 2)
		misuse("threads needs COUNT");
	count = number(argv[1], "COUNT", 1000000);
	/* In one piece: each stack by itself is one mapping of the few that a process may have. */
	stacks = aligned_alloc(stack, stack * count);
	if (!stacks || pthread_attr_init(&attributes))
		die("stacks");
	while (made < count) {
		pthread_t thread;

		if (pthread_attr_setstack(&attributes, stacks + stack * made, stack) ||
		    pthread_create(&thread, &attributes, rest, NULL))
			break;
		made++;
	}
	printf("{\"threads\":%ld}\n", made);
	ended(STDIN_FILENO, -1);
	_exit(0);
}
