// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Programs that begin: in cgroups that were made for them, or very many of them. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "sock.h"

#define SELF "/proc/self/exe"

/*
 * Makes the cgroup and a process that is born there, as moving one there can take
 * milliseconds; that begins `sock arrived`.
 */
static void arrive(const char *directory, const char *ms)
{
	struct clone_args args = { .flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD };
	char mkdir_ns[32], exec_ns[32];
	long pid;

	snprintf(mkdir_ns, sizeof(mkdir_ns), "%" PRIu64, now_ns());
	if (mkdir(directory, 0755))
		die(directory);
	args.cgroup = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if ((int)args.cgroup < 0)
		die(directory);
	fflush(stdout);
	pid = syscall(SYS_clone3, &args, sizeof(args));
	if (pid < 0)
		die("clone3");
	if (pid == 0) {
		snprintf(exec_ns, sizeof(exec_ns), "%" PRIu64, now_ns());
		execl(SELF, "sock", "arrived", directory, mkdir_ns, exec_ns, ms, NULL);
		die("exec");
	}
	close(args.cgroup);
}

/*
 * For each line on stdin, the directory of a cgroup that is to be: a process
 * that makes it, begins a program there, tells when, and stays for MS.
 */
int cmd_arrive(int argc, char **argv)
{
	char directory[4096];

	if (argc != 2)
		misuse("arrive needs MS");
	number(argv[1], "MS", 3600000);
	signal(SIGCHLD, SIG_IGN); /* no zombies */
	printf("{\"waiting\":true}\n");
	while (fgets(directory, sizeof(directory), stdin)) {
		directory[strcspn(directory, "\n")] = 0;
		arrive(directory, argv[1]);
	}
	return 0;
}

/* CLOCK_MONOTONIC just before mkdir() and just before execve(). */
int cmd_arrived(int argc, char **argv)
{
	if (argc != 5)
		misuse("arrived is what arrive begins");
	printf("{\"cgroup\":\"%s\",\"mkdirNs\":\"%s\",\"execNs\":\"%s\"}\n", argv[1], argv[2],
	       argv[3]);
	usleep(number(argv[4], "MS", 3600000) * 1000);
	return 0;
}

int cmd_nothing(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	return 0;
}

static void begin_nothing(void)
{
	pid_t pid = vfork();

	if (pid < 0)
		die("vfork");
	if (pid == 0) {
		execl(SELF, "sock", "nothing", NULL);
		_exit(1);
	}
	waitpid(pid, NULL, 0);
}

/* Programs that begin and end at once, one after the other, as many a second as asked for. */
int cmd_storm(int argc, char **argv)
{
	uint64_t started = now_ns(), interval, until;
	long rate, ms, done = 0;

	if (argc != 3)
		misuse("storm needs PER_SECOND MS");
	rate = number(argv[1], "PER_SECOND", 100000);
	ms = number(argv[2], "MS", 3600000);
	interval = 1000000000ull / (rate ? rate : 1);
	until = started + ms * 1000000ull;
	while (now_ns() < until) {
		uint64_t due = started + done * interval;
		struct timespec at = { .tv_sec = due / 1000000000, .tv_nsec = due % 1000000000 };

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
		begin_nothing();
		done++;
	}
	printf("{\"execs\":%ld,\"ms\":%" PRIu64 "}\n", done, (now_ns() - started) / 1000000);
	return 0;
}
