// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The server: it answers who asked, and writes down who that was. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include "burst.h"

static void answer(int fd, int log)
{
	char line[64], local[ADDRESS_TEXT], peer[ADDRESS_TEXT], reply[LINE_TEXT];
	ssize_t n = recv(fd, line, sizeof(line) - 1, 0);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n > 0) {
		line[n] = 0;
		line[strcspn(line, "\n")] = 0;
		local_text(fd, local);
		peer_text(fd, peer);
		/* In the log before the client can know. */
		dprintf(log, "{\"token\":\"%s\",\"local\":\"%s\",\"peer\":\"%s\"}\n", line, local,
			peer);
		snprintf(reply, sizeof(reply), "server %s %s\n", local, peer);
		send(fd, reply, strlen(reply), MSG_NOSIGNAL);
		return;
	}
	close(fd);
}

static int listen_on(const char *port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 4096))
		die(port);
	return fd;
}

static void watch(int epoll, int fd, bool listens)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = (uint64_t)listens << 32 | fd };

	epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

int cmd_serve(const char *file, char *ports)
{
	struct rlimit files = { 65536, 65536 };
	int epoll = epoll_create1(0);
	int log = open(file, O_WRONLY | O_CREAT | O_APPEND, 0644);

	setrlimit(RLIMIT_NOFILE, &files);
	if (log < 0)
		die(file);
	for (char *port = strtok(ports, ","); port; port = strtok(NULL, ","))
		watch(epoll, listen_on(port), true);
	printf("{\"ready\":true}\n");
	fflush(stdout);
	for (;;) {
		struct epoll_event events[64];
		int n = epoll_wait(epoll, events, 64, -1);

		for (int i = 0; i < n; i++) {
			int fd = (int)events[i].data.u64, accepted;

			if (!(events[i].data.u64 >> 32)) {
				answer(fd, log);
				continue;
			}
			while ((accepted = accept4(fd, NULL, NULL, SOCK_NONBLOCK)) >= 0)
				watch(epoll, accepted, false);
		}
	}
}
