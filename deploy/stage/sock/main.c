// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
#include "sock.h"

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *usage;
} commands[] = {
	{ "serve", cmd_serve,
	  "[-6] [--dual] [--udp] [--tfo] [--mptcp] [--quiet] ADDR PORT[,PORT]" },
	{ "proxy", cmd_proxy,
	  "[-6] [--dual] [--level auto|ip|ipv6|both] [--again] [--lengths] [--tfo] [--mptcp] "
	  "[--quiet] ADDR PORT[,PORT]" },
	{ "connect", cmd_connect,
	  "[-6|--mapped] [--bind ADDR[:PORT]] [--device NAME] [--nonblock] [--tfo] "
	  "[--tfo-connect]\n"
	  "                     [--io-uring] [--mptcp] [--unconnected-first] [--reconnect] "
	  "[--hold] [--comm "
	  "NAME] [--uid UID]\n"
	  "                     [--timeout MS] [--say] [--no-read] [--then ADDR:PORT | --or "
	  "ADDR:PORT]... "
	  "ADDR PORT" },
	{ "udp", cmd_udp, "[--timeout MS] ADDR PORT" },
	{ "first", cmd_first, "[--mkdir] CGROUP_DIR ADDR PORT" },
	{ "many", cmd_many, "[--mapped] [--bind ADDR] COUNT BASE_ADDR PORT" },
	{ "loop", cmd_loop, "[--mapped] [--every US] [--least COUNT] ADDR PORT MS" },
	{ "bench", cmd_bench, "[--mapped] [--answer] COUNT ADDR PORT" },
	{ "arrive", cmd_arrive, "MS (directories of cgroups on stdin)" },
	{ "arrived", cmd_arrived, "(begun by arrive)" },
	{ "storm", cmd_storm, "PER_SECOND MS" },
	{ "grab", cmd_grab, "COUNT ADDR PORT" },
	{ "repair", cmd_repair, "COUNT FROM ADDR PORT" },
	{ "threads", cmd_threads, "COUNT" },
	{ "knock", cmd_knock, "MS ADDR PORT" },
	{ "rewrite", cmd_rewrite, "PIN KEY=VALUE..." },
	{ "nothing", cmd_nothing, "(begun by storm)" },
};

static void usage(void)
{
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		fprintf(stderr, "usage: sock %s %s\n", commands[i].name, commands[i].usage);
	exit(1);
}

/* A child that does not outlive its parent. Returns 0 in the child. */
pid_t fork_worker(void)
{
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return pid;
}

/* Waits for a line or the end of a stream; false when the time was up first. */
bool ended(int fd, int timeout_ms)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

	return poll(&poll_fd, 1, timeout_ms) > 0;
}

int main(int argc, char **argv)
{
	/* --comm NAME of any command: the thread's name, as the kernel sees it. */
	for (int i = 1; i < argc - 1; i++) {
		if (strcmp(argv[i], "--comm") == 0)
			prctl(PR_SET_NAME, argv[i + 1]);
	}
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (size_t i = 0; argc > 1 && i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (strcmp(argv[1], commands[i].name) == 0)
			return commands[i].run(argc - 1, argv + 1);
	}
	usage();
}
