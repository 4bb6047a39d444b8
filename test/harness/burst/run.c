// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Begins the processes that are asked for, some at a time. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "burst.h"

static struct slot *slots;

/* With its parents, as a kubelet's cgroup manager does. */
static int make_cgroup(char *directory)
{
	char *end;
	int error;

	if (mkdir(directory, 0755) == 0 || errno == EEXIST)
		return 0;
	end = strrchr(directory, '/');
	if (errno != ENOENT || !end || end == directory)
		return errno;
	*end = 0;
	error = make_cgroup(directory);
	*end = '/';
	if (error)
		return error;
	return mkdir(directory, 0755) && errno != EEXIST ? errno : 0;
}

static void print_slot(const struct slot *slot)
{
	printf("{\"token\":\"%s\",\"startNs\":%" PRIu64 ",\"endNs\":%" PRIu64, slot->token,
	       slot->started_ns, slot->ended_ns);
	if (slot->error)
		printf(",\"ok\":false,\"step\":\"%s\",\"errno\":\"%s\"", slot->step,
		       strerrorname_np(slot->error));
	else
		printf(",\"ok\":true,\"reply\":\"%s\"", slot->reply);
	printf(",\"local\":\"%s\",\"peer\":\"%s\"}\n", slot->local, slot->peer);
	fflush(stdout);
}

static void free_slot(struct slot *slot)
{
	if (!slot->told && !slot->error)
		fail(slot, "life", ESRCH);
	print_slot(slot);
	memset(slot, 0, sizeof(*slot));
}

/* Whether a process was begun; if none could be, that has been told. */
static bool start_job(struct job *job, int index)
{
	struct clone_args args = { .flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD };
	struct slot *slot = &slots[index];
	long pid;
	int error = 0;

	snprintf(slot->token, sizeof(slot->token), "%s", job->token);
	if (strchr(job->flags, 'm'))
		error = make_cgroup(job->directory);
	if (error) {
		fail(slot, "mkdir", error);
		free_slot(slot);
		return false;
	}
	args.cgroup = open(job->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	pid = (int)args.cgroup < 0 ? -1 : syscall(SYS_clone3, &args, sizeof(args));
	if (pid == 0) {
		if (job->comm[0] != '-')
			prctl(PR_SET_NAME, job->comm);
		if (strchr(job->flags, 'e'))
			exec_job(job, slot, index);
		else
			begin(job, slot);
		_exit(0);
	}
	if (pid < 0)
		fail(slot, "clone3", errno);
	if ((int)args.cgroup >= 0)
		close(args.cgroup);
	if (pid < 0) {
		free_slot(slot);
		return false;
	}
	slot->pid = pid;
	return true;
}

static int reap(void)
{
	int count = 0;
	pid_t pid;

	while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) {
		for (int i = 0; i < MAX_PARALLEL; i++) {
			if (slots[i].pid != pid)
				continue;
			free_slot(&slots[i]);
			count++;
		}
	}
	return count;
}

static int free_index(void)
{
	for (int i = 0; i < MAX_PARALLEL; i++)
		if (!slots[i].pid)
			return i;
	return -1;
}

/* The next whole line of what has been read; NULL when there is none. */
static char *next_line(char *buffer, size_t *used, size_t *taken)
{
	char *line = buffer + *taken;
	char *end = memchr(line, '\n', *used - *taken);

	if (!end) {
		memmove(buffer, line, *used - *taken);
		*used -= *taken;
		*taken = 0;
		return NULL;
	}
	*end = 0;
	*taken = end + 1 - buffer;
	return line;
}

static int child_signals(void)
{
	sigset_t child;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	return signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
}

static void parse_job(const char *line, struct job *job)
{
	if (sscanf(line, "%31s %7s %4095s %63s %u %15s", job->token, job->flags, job->directory,
		   job->address, &job->port, job->comm) == 6)
		return;
	fprintf(stderr, "burst: no job: %s\n", line);
	exit(1);
}

int cmd_run(int parallel)
{
	static char buffer[1 << 20];
	size_t used = 0, taken = 0;
	int running = 0, signals = child_signals();
	bool open = true;

	if (parallel < 1 || parallel > MAX_PARALLEL) {
		fprintf(stderr, "burst: PARALLEL is from 1 to %d\n", MAX_PARALLEL);
		return 1;
	}
	slots = share_slots();
	printf("{\"ready\":true}\n");
	fflush(stdout);
	for (;;) {
		struct pollfd polls[] = { { .fd = signals, .events = POLLIN },
					  { .fd = open && used < sizeof(buffer) ? STDIN_FILENO : -1,
					    .events = POLLIN } };
		struct signalfd_siginfo info;
		struct job job;
		char *line = NULL;
		ssize_t n;

		while (running < parallel && (line = next_line(buffer, &used, &taken))) {
			parse_job(line, &job);
			running += start_job(&job, free_index());
		}
		if (!open && running == 0 && !line)
			return 0;
		poll(polls, 2, -1);
		if (polls[0].revents && read(signals, &info, sizeof(info)) > 0)
			running -= reap();
		if (!polls[1].revents)
			continue;
		n = read(STDIN_FILENO, buffer + used, sizeof(buffer) - used);
		open = n > 0;
		used += n > 0 ? n : 0;
	}
}
