// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* One connection, made in one of the many ways in which programs make them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/sched.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include "sock.h"

/* Reads the first line, without its end. Returns 0 or an errno; ENODATA: closed. */
int read_line(int fd, char *line, size_t size)
{
	size_t len = 0;

	while (len < size - 1) {
		ssize_t n = recv(fd, line + len, size - 1 - len, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? errno : ENODATA;
		len += n;
		line[len] = 0;
		if (strchr(line, '\n')) {
			*strchr(line, '\n') = 0;
			return 0;
		}
	}
	return EMSGSIZE;
}

static int wait_connected(int fd, int timeout_ms)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLOUT };
	socklen_t len = sizeof(int);
	int error = 0;

	if (poll(&poll_fd, 1, timeout_ms) == 0)
		return ETIMEDOUT;
	getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len);
	return error;
}

/* Returns 0 or an errno. */
static int connect_once(int fd, const struct client *client)
{
	const union address *to = &client->destination;
	int error;

	if (client->io_uring)
		return uring_connect(fd, to);
	if (client->tfo) {
		/* The SYN may carry this byte; the server echoes or ignores it. */
		if (sendto(fd, "\n", 1, MSG_FASTOPEN, &to->any, address_len(to)) == 1)
			return 0;
		return errno;
	}
	if (connect(fd, &to->any, address_len(to)) == 0)
		error = 0;
	else
		error = errno;
	if (client->nonblock && error == EINPROGRESS)
		error = wait_connected(fd, client->timeout_ms);
	if (client->tfo_connect && !error && send(fd, "\n", 1, 0) != 1)
		error = errno;
	return error;
}

static int disconnect(int fd)
{
	struct sockaddr unspecified = { .sa_family = AF_UNSPEC };

	return connect(fd, &unspecified, sizeof(unspecified)) ? errno : 0;
}

static int prepare(int fd, const struct client *client)
{
	struct timeval timeout = { .tv_sec = client->timeout_ms / 1000,
				   .tv_usec = client->timeout_ms % 1000 * 1000 };
	int one = 1;

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (client->device &&
	    setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, client->device, strlen(client->device)))
		return errno;
	if (client->bind.any.sa_family && bind(fd, &client->bind.any, address_len(&client->bind)))
		return errno;
	if (client->tfo_connect &&
	    setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &one, sizeof(one)))
		return errno;
	return 0;
}

static int set_nonblock(int fd, bool on)
{
	int flags = fcntl(fd, F_GETFL);

	return fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

static bool print_failure(const char *step, int error, uint64_t ns)
{
	if (error == EAGAIN || error == EINPROGRESS)
		error = ETIMEDOUT;
	printf("{\"ok\":false,\"step\":\"%s\",\"errno\":\"%s\",\"ns\":%llu}\n", step,
	       errno_name(error), (unsigned long long)ns);
	fflush(stdout);
	return false;
}

/* Connects, reads the first line of the reply, prints. Returns whether it worked. */
static bool connect_fd(int fd, const struct client *client)
{
	char peer[ADDRESS_TEXT], local[ADDRESS_TEXT], reply[LINE_MAX_LEN] = "";
	uint64_t started, ns;
	int error;

	if (client->nonblock)
		set_nonblock(fd, true);
	started = now_ns();
	error = connect_once(fd, client);
	ns = now_ns() - started;
	if (error)
		return print_failure("connect", error, ns);
	if (client->nonblock)
		set_nonblock(fd, false);
	if (client->say && send(fd, "hello\n", 6, 0) != 6)
		return print_failure("send", errno, ns);
	if (!client->no_read)
		error = read_line(fd, reply, sizeof(reply));
	if (error)
		return print_failure("read", error, ns);
	printf("{\"ok\":true,\"reply\":\"%s\",\"peer\":\"%s\",\"local\":\"%s\",\"ns\":%llu}\n",
	       reply, peer_text(fd, peer), local_text(fd, local), (unsigned long long)ns);
	fflush(stdout);
	return true;
}

/* The same socket, elsewhere; what it was connected to is given up first. */
static bool connect_again(int fd, const struct client *client, const struct next *next)
{
	struct client again = *client;
	int error = next->disconnect ? disconnect(fd) : 0;

	if (error)
		return print_failure("disconnect", error, 0);
	again.destination = next->destination;
	return connect_fd(fd, &again);
}

/* The connection as it is by now; alive: the other end has not closed it. */
static void print_held(int fd)
{
	char peer[ADDRESS_TEXT], local[ADDRESS_TEXT], byte;
	ssize_t n = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

	printf("{\"alive\":%s,\"peer\":\"%s\",\"local\":\"%s\"}\n",
	       n > 0 || (n < 0 && errno == EAGAIN) ? "true" : "false", peer_text(fd, peer),
	       local_text(fd, local));
	fflush(stdout);
}

/* All that is asked for on one socket; a line for each connection. */
bool connect_and_print(const struct client *client)
{
	int protocol = client->mptcp ? IPPROTO_MPTCP : IPPROTO_TCP;
	const char *step = "socket";
	int fd, error;
	bool ok;

	fd = socket(client->destination.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, protocol);
	if (fd < 0) {
		error = errno;
		goto failed;
	}
	step = "prepare";
	error = prepare(fd, client);
	if (error)
		goto failed;
	if (client->unconnected_first) {
		step = "disconnect";
		error = disconnect(fd);
		if (error)
			goto failed;
	}
	if (client->reconnect) {
		step = "first connect";
		error = connect_once(fd, client);
		if (!error)
			error = disconnect(fd);
		if (error)
			goto failed;
	}
	ok = connect_fd(fd, client);
	for (int i = 0; i < client->next_count; i++)
		ok = connect_again(fd, client, &client->next[i]);
	if (client->hold && ok) {
		ended(STDIN_FILENO, -1);
		print_held(fd);
	}
	close(fd);
	return ok;
failed:
	print_failure(step, error, 0);
	if (fd >= 0)
		close(fd);
	return false;
}

static void add_next(struct client *client, const char *text, bool disconnect)
{
	struct next *next = &client->next[client->next_count];

	if (client->next_count == MAX_NEXT || !parse_host_port(text, &next->destination))
		misuse("--then and --or must be ADDR:PORT, at most %d, not \"%s\"", MAX_NEXT, text);
	next->disconnect = disconnect;
	client->next_count++;
}

int cmd_connect(int argc, char **argv)
{
	static const struct option options[] = {
		{ "bind", required_argument, NULL, 'b' },
		{ "comm", required_argument, NULL, 'c' },
		{ "device", required_argument, NULL, 'd' },
		{ "hold", no_argument, NULL, 'h' },
		{ "io-uring", no_argument, NULL, 'i' },
		{ "mapped", no_argument, NULL, '6' },
		{ "mptcp", no_argument, NULL, 'm' },
		{ "no-read", no_argument, NULL, 'R' },
		{ "nonblock", no_argument, NULL, 'n' },
		{ "or", required_argument, NULL, 'O' },
		{ "reconnect", no_argument, NULL, 'r' },
		{ "say", no_argument, NULL, 's' },
		{ "tfo", no_argument, NULL, 'f' },
		{ "then", required_argument, NULL, 'T' },
		{ "tfo-connect", no_argument, NULL, 'F' },
		{ "timeout", required_argument, NULL, 't' },
		{ "uid", required_argument, NULL, 'u' },
		{ "unconnected-first", no_argument, NULL, 'U' },
		{},
	};
	struct client client = { .timeout_ms = PATIENCE_MS };
	bool v6 = false;
	int option;

	while ((option = getopt_long(argc, argv, "6", options, NULL)) != -1) {
		switch (option) {
		case '6': v6 = true; break;
		case 'b':
			if (!parse_host_port(optarg, &client.bind))
				misuse("--bind must be ADDR or ADDR:PORT, not \"%s\"", optarg);
			break;
		case 'c': break; /* main() has dealt with it */
		case 'd': client.device = optarg; break;
		case 'h': client.hold = true; break;
		case 'i': client.io_uring = true; break;
		case 'm': client.mptcp = true; break;
		case 'n': client.nonblock = true; break;
		case 'O': add_next(&client, optarg, false); break;
		case 'r': client.reconnect = true; break;
		case 'R': client.no_read = true; break;
		case 's': client.say = true; break;
		case 'f': client.tfo = true; break;
		case 'F': client.tfo_connect = true; break;
		case 'T': add_next(&client, optarg, true); break;
		case 't': client.timeout_ms = number(optarg, "--timeout", 3600000); break;
		case 'u':
			if (setresuid(number(optarg, "--uid", 1 << 30), -1, -1) ||
			    setresuid(-1, atoi(optarg), atoi(optarg)))
				die("setresuid");
			break;
		case 'U': client.unconnected_first = true; break;
		default: return 1;
		}
	}
	if (argc - optind != 2 ||
	    !parse_address(argv[optind], argv[optind + 1], &client.destination))
		misuse("connect needs ADDR PORT");
	if (v6) {
		map_to_v6(&client.destination);
		if (client.bind.any.sa_family)
			map_to_v6(&client.bind);
		for (int i = 0; i < client.next_count; i++)
			map_to_v6(&client.next[i].destination);
	}
	connect_and_print(&client);
	return 0;
}

/* A process that is born in the cgroup and whose first act is to connect. */
int cmd_first(int argc, char **argv)
{
	struct client client = { .timeout_ms = PATIENCE_MS };
	struct clone_args args = { .flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD };
	bool make = argc > 1 && strcmp(argv[1], "--mkdir") == 0;
	const char *directory;
	long pid;

	argv += make ? 2 : 1;
	argc -= make ? 2 : 1;
	if (argc != 3 || !parse_address(argv[1], argv[2], &client.destination))
		misuse("first needs [--mkdir] CGROUP_DIR ADDR PORT");
	directory = argv[0];
	if (make && mkdir(directory, 0755))
		die(directory);
	args.cgroup = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if ((int)args.cgroup < 0)
		die(directory);
	pid = syscall(SYS_clone3, &args, sizeof(args));
	if (pid < 0)
		die("clone3");
	if (pid == 0) {
		connect_and_print(&client);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
	return 0;
}
