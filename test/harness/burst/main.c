// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Processes that are born in cgroups made that moment, and whose first act is to
 * connect; and the server that they want to reach. Both tell of every connection.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include "burst.h"

#define USAGE                                                                                      \
	"usage: burst run PARALLEL\n"                                                              \
	"         jobs on stdin, a line each: TOKEN FLAGS DIRECTORY ADDR PORT COMM\n"              \
	"         FLAGS: m makes the cgroup and its parents, e execs a program in it that "        \
	"connects,\n"                                                                              \
	"         6 takes an IPv6 socket to the mapped address; - is none of them\n"               \
	"         COMM: the name that the process goes by; - is none\n"                            \
	"       burst serve LOGFILE PORT[,PORT]\n"                                                 \
	"         answers on any IPv4 address, and writes a line for each token\n"

void die(const char *what)
{
	fprintf(stderr, "burst: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* An IPv4 address, mapped or not, as 10.0.0.1:80. */
static void address_text(const struct sockaddr_in6 *address, char *text)
{
	const struct sockaddr_in *v4 = (const void *)address;
	const void *bytes = address->sin6_family == AF_INET
				    ? (const void *)&v4->sin_addr
				    : (const void *)&address->sin6_addr.s6_addr[12];
	char host[INET_ADDRSTRLEN] = "?";

	inet_ntop(AF_INET, bytes, host, sizeof(host));
	snprintf(text, ADDRESS_TEXT, "%s:%u", host, ntohs(address->sin6_port));
}

void local_text(int fd, char *text)
{
	struct sockaddr_in6 address = {};
	socklen_t len = sizeof(address);

	getsockname(fd, (struct sockaddr *)&address, &len);
	address_text(&address, text);
}

void peer_text(int fd, char *text)
{
	struct sockaddr_in6 address = {};
	socklen_t len = sizeof(address);

	getpeername(fd, (struct sockaddr *)&address, &len);
	address_text(&address, text);
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc == 3 && strcmp(argv[1], "run") == 0)
		return cmd_run(atoi(argv[2]));
	if (argc == 4 && strcmp(argv[1], "serve") == 0)
		return cmd_serve(argv[2], argv[3]);
	if (argc == 7 && strcmp(argv[1], "began") == 0)
		return cmd_began(argv);
	fputs(USAGE, stderr);
	return 1;
}
