// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Connections in a closed loop, each from a new socket, and who answered them. */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>
#include "sock.h"

struct totals {
	long total, proxy, server, other, errors;
	long in_time; /* of the total: before its end was asked for */
	struct {
		int error;
		long count;
	} by_errno[16];
};

static volatile sig_atomic_t asked_for_totals;

static void on_usr1(int signal)
{
	(void)signal;
	asked_for_totals = 1;
}

static void print_totals(const struct totals *totals)
{
	printf("{\"total\":%ld,\"inTime\":%ld,\"proxy\":%ld,\"server\":%ld,\"other\":%ld,"
	       "\"failed\":%ld,"
	       "\"errors\":{",
	       totals->total, totals->in_time, totals->proxy, totals->server, totals->other,
	       totals->errors);
	for (int i = 0; i < 16 && totals->by_errno[i].count; i++)
		printf("%s\"%s\":%ld", i ? "," : "", errno_name(totals->by_errno[i].error),
		       totals->by_errno[i].count);
	printf("}}\n");
}

static void count_error(struct totals *totals, int error)
{
	totals->errors++;
	for (int i = 0; i < 16; i++) {
		if (totals->by_errno[i].count && totals->by_errno[i].error != error)
			continue;
		totals->by_errno[i].error = error;
		totals->by_errno[i].count++;
		return;
	}
}

static int ask(const union address *to, char *line, size_t size)
{
	struct timeval timeout = { .tv_sec = PATIENCE_MS / 1000 };
	int fd = socket(to->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), error = 0;

	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
	if (connect(fd, &to->any, address_len(to)))
		error = errno;
	else
		error = read_line(fd, line, size);
	close_reset(fd);
	return error;
}

/* Connects again and again, until stdin ends or MS (0: no limit) have passed, and at least so often. */
int cmd_loop(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_usr1, .sa_flags = SA_RESTART };
	struct load_options options = {};
	struct totals totals = {};
	char line[LINE_MAX_LEN];
	union address to;
	uint64_t until;
	bool is_on = true;
	int error;

	argv += parse_load_options(argc, argv, &options);
	if (argc - optind != 3 || !parse_address(argv[0], argv[1], &to))
		misuse("loop needs ADDR PORT MS");
	until = now_ns() + number(argv[2], "MS", 3600000) * 1000000ull;
	if (strcmp(argv[2], "0") == 0)
		until = UINT64_MAX;
	if (options.mapped)
		map_to_v6(&to);
	sigaction(SIGUSR1, &action, NULL);
	while ((is_on = is_on && now_ns() < until && !ended(STDIN_FILENO, 0)) ||
	       totals.total < options.least) {
		error = ask(&to, line, sizeof(line));
		totals.total++;
		totals.in_time += is_on;
		if (error)
			count_error(&totals, error);
		else if (strncmp(line, "proxy ", 6) == 0)
			totals.proxy++;
		else if (strncmp(line, "server ", 7) == 0)
			totals.server++;
		else
			totals.other++;
		if (asked_for_totals) {
			asked_for_totals = 0;
			print_totals(&totals);
		}
		if (options.every_us)
			usleep(options.every_us);
	}
	print_totals(&totals);
	return 0;
}
