// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What somebody asks of the running proxy: an order a line on standard input, answered by one; and signals. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include "inpod.h"

#define MOST_MS 3600000

static bool parse_ms(const char *text, unsigned int *ms)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	*ms = value;
	return *text && !*end && value <= MOST_MS;
}

static bool order_late(const char *argument)
{
	unsigned int ms;
	bool ok = parse_ms(argument, &ms);

	if (ok)
		delay_acks(ms);
	return ok;
}

static bool order_hang(const char *argument)
{
	hold_acks(true);
	return !*argument;
}

static bool order_resume(const char *argument)
{
	hold_acks(false);
	return !*argument;
}

static bool order_nack(const char *argument)
{
	refuse_next(argument);
	return *argument;
}

static bool order_rubbish(const char *argument)
{
	say_rubbish();
	return !*argument;
}

static bool order_hang_up(const char *argument)
{
	hang_up();
	return !*argument;
}

static bool order_stop_listening(const char *argument)
{
	return set_listening(argument, false);
}

static bool order_listen(const char *argument)
{
	return set_listening(argument, true);
}

static bool order_crash(const char *argument)
{
	(void)argument;
	abort();
}

static bool order_drain(const char *argument)
{
	unsigned int ms = policy.drain_ms;
	bool ok = !*argument || parse_ms(argument, &ms);

	if (ok)
		drain_process(ms);
	return ok;
}

static bool order_mesh(const char *argument)
{
	return set_hosts("mesh", argument);
}

static bool order_deny(const char *argument)
{
	return set_hosts("deny", argument);
}

static bool order_totals(const char *argument)
{
	print_totals();
	return !*argument;
}

static const struct {
	const char *name;
	bool (*run)(const char *argument);
} orders[] = {
	{ "late", order_late },
	{ "hang", order_hang },
	{ "resume", order_resume },
	{ "nack", order_nack },
	{ "rubbish", order_rubbish },
	{ "hang-up", order_hang_up },
	{ "stop-listening", order_stop_listening },
	{ "listen", order_listen },
	{ "crash", order_crash },
	{ "drain", order_drain },
	{ "mesh", order_mesh },
	{ "deny", order_deny },
	{ "strict", set_strict_ports },
	{ "totals", order_totals },
};

static void obey(char *line)
{
	char *argument = line + strcspn(line, " ");
	bool ok = false;

	if (*argument)
		*argument++ = 0;
	for (size_t i = 0; i < sizeof(orders) / sizeof(orders[0]); i++) {
		if (strcmp(orders[i].name, line) == 0)
			ok = orders[i].run(argument);
	}
	printf("{\"event\":\"order\",\"order\":");
	print_text(line);
	printf(",\"ok\":%s}\n", ok ? "true" : "false");
}

static void on_input(struct watched *watched, uint32_t events)
{
	static char text[16384];
	static size_t len;
	ssize_t n = read(watched->fd, text + len, sizeof(text) - len);
	char *end;

	(void)events;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
		return watch(watched, 0); /* nobody will ask for anything any more */
	len += n;
	while ((end = memchr(text, '\n', len))) {
		*end = 0;
		obey(text);
		len -= end + 1 - text;
		memmove(text, end + 1, len);
	}
	if (len == sizeof(text))
		misuse("an order has more than %zu bytes", sizeof(text));
}

static void on_signal(struct watched *watched, uint32_t events)
{
	struct signalfd_siginfo info;

	(void)events;
	if (read(watched->fd, &info, sizeof(info)) != sizeof(info))
		return;
	switch (info.ssi_signo) {
	case SIGUSR1: return print_totals();
	case SIGHUP:
		if (!read_mesh_file())
			misuse("%s is no file of addresses", policy.mesh_file);
		return report_stream("mesh", policy.mesh_file);
	default: drain_process(policy.drain_ms);
	}
}

static sigset_t handled_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	return set;
}

/* Before there is a second thread, so that no thread is interrupted by one. */
void block_signals(void)
{
	sigset_t set = handled_signals();

	sigprocmask(SIG_BLOCK, &set, NULL);
}

void take_orders(void)
{
	static struct watched input = { .fd = STDIN_FILENO, .on_event = on_input };
	static struct watched signals = { .on_event = on_signal };
	sigset_t set = handled_signals();

	signals.fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (signals.fd < 0)
		die("signalfd");
	watch(&signals, EPOLLIN);
	fcntl(STDIN_FILENO, F_SETFL, fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
	watch(&input, EPOLLIN);
}
