// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Many connections: at once, or one after another by the clock. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "sock.h"

/* SYNs on the way at once; more would only overflow the listener's queue. */
#define MAX_CONNECTING 1024

/* The destination of the i-th connection: 200 ports, then the next address. */
static union address destination(const union address *base, int i)
{
	union address to = *base;
	uint32_t *word_be = is_v4(&to) ? &to.v4.sin_addr.s_addr : &to.v6.sin6_addr.s6_addr32[3];
	uint16_t *port_be = is_v4(&to) ? &to.v4.sin_port : &to.v6.sin6_port;

	*word_be = htonl(ntohl(*word_be) + i / 200);
	*port_be = htons(ntohs(*port_be) + i % 200);
	return to;
}

struct many_result {
	int ok, wrong, failed, last_error;
	char asked[ADDRESS_TEXT], got[ADDRESS_TEXT];
};

struct many {
	union address base;
	struct load_options options;
	int next, end, left, connecting, epoll, *fds;
	struct many_result result;
};

static void settle(struct many *many, int i, int error)
{
	char line[LINE_MAX_LEN], asked[ADDRESS_TEXT], *got;
	union address to = destination(&many->base, i);

	many->left--;
	many->connecting--;
	if (!error)
		error = read_line(many->fds[i], line, sizeof(line));
	epoll_ctl(many->epoll, EPOLL_CTL_DEL, many->fds[i], NULL);
	if (error) {
		many->result.failed++;
		many->result.last_error = error;
		return;
	}
	got = strchr(line, ' ');
	got = got ? got + 1 : line;
	got[strcspn(got, " ")] = 0;
	address_text(&to, asked);
	if (strcmp(got, asked) == 0) {
		many->result.ok++;
	} else if (many->result.wrong++ == 0) {
		strcpy(many->result.asked, asked);
		snprintf(many->result.got, sizeof(many->result.got), "%.60s", got);
	}
}

static void open_one(struct many *many, int i)
{
	union address to = destination(&many->base, i);
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = i };
	int fd;

	if (many->options.mapped)
		map_to_v6(&to);
	fd = socket(to.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket");
	many->fds[i] = fd;
	many->connecting++;
	if (many->options.bind.any.sa_family &&
	    bind(fd, &many->options.bind.any, address_len(&many->options.bind)))
		die("bind");
	if (connect(fd, &to.any, address_len(&to)) && errno != EINPROGRESS) {
		settle(many, i, errno);
		return;
	}
	epoll_ctl(many->epoll, EPOLL_CTL_ADD, fd, &event);
}

/* Opens those from next to end; they stay open. */
static void open_range(struct many *many)
{
	struct epoll_event events[256];

	many->epoll = epoll_create1(EPOLL_CLOEXEC);
	many->left = many->end - many->next;
	while (many->left > 0) {
		int n;

		while (many->next < many->end && many->connecting < MAX_CONNECTING)
			open_one(many, many->next++);
		n = epoll_wait(many->epoll, events, 256, many->connecting ? PATIENCE_MS : 0);
		if (n == 0 && many->connecting) {
			many->result.failed += many->left;
			many->result.last_error = ETIMEDOUT;
			return;
		}
		for (int i = 0; i < n; i++)
			settle(many, events[i].data.u32, 0);
	}
}

static void add_result(struct many_result *sum, const struct many_result *part)
{
	if (part->wrong && !sum->wrong) {
		strcpy(sum->asked, part->asked);
		strcpy(sum->got, part->got);
	}
	if (part->failed)
		sum->last_error = part->last_error;
	sum->ok += part->ok;
	sum->wrong += part->wrong;
	sum->failed += part->failed;
}

/* COUNT connections open at once, each with a destination of its own. */
int cmd_many(int argc, char **argv)
{
	struct many_result sum = {}, part;
	struct many many = {};
	uint64_t started = now_ns();
	int count, workers, results[2];

	argv += parse_load_options(argc, argv, &many.options);
	if (argc - optind != 3 || !parse_address(argv[1], argv[2], &many.base))
		misuse("many needs COUNT BASE_ADDR PORT");
	count = number(argv[0], "COUNT", 60000);
	many.fds = calloc(count, sizeof(int));
	/* Several processes, where one may not open as many files. */
	workers = count / (raise_file_limit(count + 64) - 63) + 1;
	if (!many.fds || pipe(results))
		die("pipe");
	for (int i = 0; i < workers; i++) {
		if (fork_worker() > 0)
			continue;
		many.next = (long)count * i / workers;
		many.end = (long)count * (i + 1) / workers;
		open_range(&many);
		if (write(results[1], &many.result, sizeof(many.result)) < 0)
			die("write");
		for (;;)
			pause();
	}
	close(results[1]);
	for (int i = 0; i < workers; i++) {
		memset(&part, 0, sizeof(part));
		if (read(results[0], &part, sizeof(part)) <= 0)
			misuse("a worker has died");
		add_result(&sum, &part);
	}
	printf("{\"ok\":%d,\"wrong\":%d,\"failed\":%d,\"ms\":%llu", sum.ok, sum.wrong, sum.failed,
	       (unsigned long long)(now_ns() - started) / 1000000);
	if (sum.wrong)
		printf(",\"asked\":\"%s\",\"got\":\"%s\"", sum.asked, sum.got);
	if (sum.failed)
		printf(",\"errno\":\"%s\"", errno_name(sum.last_error));
	printf("}\n");
	ended(STDIN_FILENO, -1);
	return 0;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* How long connect() itself takes, or with --answer until the server's line is there; socket() and close() are not counted. */
int cmd_bench(int argc, char **argv)
{
	struct load_options options = {};
	long count, warm_up, done = 0, errors = 0;
	char line[LINE_MAX_LEN];
	union address to;
	uint64_t *ns;

	argv += parse_load_options(argc, argv, &options);
	if (argc - optind != 3 || !parse_address(argv[1], argv[2], &to))
		misuse("bench needs COUNT ADDR PORT");
	count = number(argv[0], "COUNT", 10000000);
	warm_up = count / 10;
	if (options.mapped)
		map_to_v6(&to);
	ns = calloc(count + 1, sizeof(*ns));
	for (long i = -warm_up; i < count; i++) {
		int fd = socket(to.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), failed;
		uint64_t started = now_ns();

		failed = connect(fd, &to.any, address_len(&to));
		if (!failed && options.answer)
			failed = read_line(fd, line, sizeof(line));
		if (i >= 0 && !failed)
			ns[done++] = now_ns() - started;
		else if (i >= 0)
			errors++;
		close_reset(fd);
	}
	qsort(ns, done, sizeof(*ns), by_value);
	printf("{\"count\":%ld,\"errors\":%ld,\"p50\":%llu,\"p90\":%llu,\"p99\":%llu,\"min\":%llu}"
	       "\n",
	       done, errors, (unsigned long long)ns[done / 2],
	       (unsigned long long)ns[done * 9 / 10], (unsigned long long)ns[done * 99 / 100],
	       (unsigned long long)ns[0]);
	return 0;
}
