// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The command line, and the life of the proxy's process. */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include "inpod.h"

#define FILES 200000

static void on_drain_timer(struct timer *timer);

static const char *socket_path;
static struct timer drain = { .on_due = on_drain_timer };
static uint64_t drain_until_ns;

static void usage(void)
{
	fputs("usage: inpod-proxy run --socket PATH [--mesh ADDR,...] [--mesh-file PATH] [--deny "
	      "ADDR,...]\n"
	      "                       [--strict PORT,...] [--no-spoof] [--ipv4-only] [--dns ADDR] "
	      "[--drain MS] [--quiet]\n"
	      "usage: inpod-proxy zds-serve PATH\n",
	      stderr);
	exit(1);
}

static void on_drain_timer(struct timer *timer)
{
	if (count_of_open() && now_ns() < drain_until_ns)
		return set_timer(timer, 10);
	leave_loop();
}

/* Listens no more, and ends when nothing is open any more, or its time is up. */
void drain_process(unsigned int ms)
{
	set_listening("", false);
	drain_until_ns = now_ns() + ms * 1000000ull;
	set_timer(&drain, 0);
}

static void set_dns(const char *text)
{
	static union address answer;

	if (!parse_address(text, "0", &answer) || !is_v4(&answer))
		misuse("--dns must be an IPv4 address, not \"%s\"", text);
	policy.dns_answer = &answer.v4;
}

static void parse_options(int argc, char **argv)
{
	static const struct option options[] = {
		{ "deny", required_argument, NULL, 'd' },
		{ "dns", required_argument, NULL, 'n' },
		{ "drain", required_argument, NULL, 'r' },
		{ "ipv4-only", no_argument, NULL, '4' },
		{ "mesh", required_argument, NULL, 'm' },
		{ "mesh-file", required_argument, NULL, 'f' },
		{ "no-spoof", no_argument, NULL, 'N' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "socket", required_argument, NULL, 's' },
		{ "strict", required_argument, NULL, 'S' },
		{},
	};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'd':
			if (!set_hosts("deny", optarg))
				misuse("--deny must be addresses, not \"%s\"", optarg);
			break;
		case 'n': set_dns(optarg); break;
		case 'r': policy.drain_ms = number(optarg, "--drain", 3600000); break;
		case '4': policy.is_ipv4_only = true; break;
		case 'm':
			if (!set_hosts("mesh", optarg))
				misuse("--mesh must be addresses, not \"%s\"", optarg);
			break;
		case 'f': policy.mesh_file = optarg; break;
		case 'N': policy.spoofs = false; break;
		case 'q': is_quiet = true; break;
		case 's': socket_path = optarg; break;
		case 'S':
			if (!set_strict_ports(optarg))
				misuse("--strict must be ports, not \"%s\"", optarg);
			break;
		default: usage();
		}
	}
	if (!socket_path || optind != argc)
		usage();
	if (!read_mesh_file())
		misuse("--mesh-file %s is no file of addresses", policy.mesh_file);
}

/*
 * Not the first thread: what /proc says of the process is where that one is, and
 * this one steps into pods' namespaces.
 */
static void *work(void *argument)
{
	(void)argument;
	remember_own_netns();
	open_loop();
	take_orders();
	dial_agent(socket_path);
	run_loop();
	return NULL;
}

static int run(int argc, char **argv)
{
	const struct rlimit no_core = {}; /* it crashes when asked to */
	pthread_t thread;
	int error;

	parse_options(argc, argv);
	raise_file_limit(FILES);
	setrlimit(RLIMIT_CORE, &no_core);
	block_signals();
	error = pthread_create(&thread, NULL, work, NULL);
	if (error)
		misuse("no thread: %s", errno_name(error));
	pthread_join(thread, NULL);
	print_totals();
	return 0;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 1 && strcmp(argv[1], "run") == 0)
		return run(argc - 1, argv + 1);
	if (argc > 1 && strcmp(argv[1], "zds-serve") == 0)
		return cmd_zds_serve(argc - 1, argv + 1);
	usage();
}
