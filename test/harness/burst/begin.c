// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What a process does that has just been born: nothing but socket() before connect(). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include "burst.h"

/* Its number in a process that was exec'd. */
#define SLOTS_FD 9
#define SIZE (sizeof(struct slot) * MAX_PARALLEL)

static struct slot *map_slots(int fd)
{
	struct slot *slots = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (slots == MAP_FAILED)
		die("mmap");
	return slots;
}

/* Memory that a process keeps through an exec(). */
struct slot *share_slots(void)
{
	int memory = memfd_create("slots", 0);

	if (memory < 0 || ftruncate(memory, SIZE) || dup2(memory, SLOTS_FD) < 0)
		die("memfd");
	return map_slots(SLOTS_FD);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static socklen_t destination(const struct job *job, bool mapped, struct sockaddr_in6 *to)
{
	struct sockaddr_in *v4 = (void *)to;

	memset(to, 0, sizeof(*to));
	if (!mapped) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(job->port);
		inet_pton(AF_INET, job->address, &v4->sin_addr);
		return sizeof(*v4);
	}
	to->sin6_family = AF_INET6;
	to->sin6_port = htons(job->port);
	memset(&to->sin6_addr.s6_addr[10], 0xff, 2);
	inet_pton(AF_INET, job->address, &to->sin6_addr.s6_addr[12]);
	return sizeof(*to);
}

void fail(struct slot *slot, const char *step, int error)
{
	snprintf(slot->step, sizeof(slot->step), "%s", step);
	slot->error = error;
}

static void exchange(int fd, const struct job *job, struct slot *slot)
{
	struct timeval timeout = { .tv_sec = 10 };
	size_t len = 0;

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	if (dprintf(fd, "%s\n", job->token) < 0)
		return fail(slot, "send", errno);
	while (len < sizeof(slot->reply) - 1) {
		ssize_t n = recv(fd, slot->reply + len, sizeof(slot->reply) - 1 - len, 0);

		if (n <= 0)
			return fail(slot, "read", n < 0 ? errno : ENODATA);
		len += n;
		slot->reply[len] = 0;
		if (slot->reply[len - 1] == '\n') {
			slot->reply[len - 1] = 0;
			return;
		}
	}
	fail(slot, "read", EMSGSIZE);
}

void begin(const struct job *job, struct slot *slot)
{
	bool mapped = strchr(job->flags, '6');
	struct sockaddr_in6 to;
	socklen_t len = destination(job, mapped, &to);
	int fd = socket(mapped ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
	int failed;

	slot->started_ns = now_ns();
	failed = connect(fd, (struct sockaddr *)&to, len) ? errno : 0;
	slot->ended_ns = now_ns();
	if (failed) {
		fail(slot, "connect", failed);
	} else {
		local_text(fd, slot->local);
		peer_text(fd, slot->peer);
		exchange(fd, job, slot);
	}
	slot->told = true;
}

/* The same in a program that has just been exec'd: burst began SLOT TOKEN FLAGS ADDR PORT */
int cmd_began(char **argv)
{
	struct slot *slots = map_slots(SLOTS_FD);
	struct job job = { .port = atoi(argv[6]) };

	snprintf(job.token, sizeof(job.token), "%s", argv[3]);
	snprintf(job.flags, sizeof(job.flags), "%s", argv[4]);
	snprintf(job.address, sizeof(job.address), "%s", argv[5]);
	begin(&job, &slots[atoi(argv[2])]);
	return 0;
}

void exec_job(const struct job *job, struct slot *slot, int index)
{
	char number[8], port[8];

	snprintf(number, sizeof(number), "%d", index);
	snprintf(port, sizeof(port), "%u", job->port);
	execl("/proc/self/exe", "burst", "began", number, job->token, job->flags, job->address,
	      port, NULL);
	fail(slot, "exec", errno);
}
