// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Servers. `serve` is what a client wanted to reach; `proxy` stands where the
 * redirected connections arrive and asks the kernel where they wanted to go.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "sock.h"

/* linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h. */
#define SO_ORIGINAL_DST 80

#define MAX_LISTENERS 64
#define WANTED_FILES 50000

enum level { LEVEL_AUTO, LEVEL_IP, LEVEL_IPV6, LEVEL_BOTH };

struct server {
	union address address;
	bool proxy, dual, udp, tfo, mptcp, quiet, again, lengths;
	enum level level;
	int listeners[MAX_LISTENERS];
	int listener_count;
	bool paused; /* no file descriptor left: others may accept */
};

/* Returns NULL and the text, or the errno's name. */
static const char *original(int fd, int level, char text[ADDRESS_TEXT])
{
	union address address = {};
	socklen_t len = level == SOL_IP ? sizeof(address.v4) : sizeof(address.v6);

	if (getsockopt(fd, level, SO_ORIGINAL_DST, &address, &len))
		return errno_name(errno);
	address_text(&address, text);
	return NULL;
}

/* What real proxies do: ask at the level of the connection's own family. */
static int natural_level(int fd)
{
	union address local = {};
	socklen_t len = sizeof(local);

	getsockname(fd, &local.any, &len);
	if (is_v4(&local) || IN6_IS_ADDR_V4MAPPED(&local.v6.sin6_addr))
		return SOL_IP;
	return SOL_IPV6;
}

/* Each length of buffer, as SOL_IP or SOL_IPV6: the errno, or the length that came. */
static void print_lengths(int fd, int level)
{
	static const int lengths[] = { 0, 4, 15, 16, 17, 27, 28, 29, 128, 4096, 8192 };
	static char buffer[8192];

	printf(",\"lengths%s\":{", level == SOL_IP ? "Ip" : "Ipv6");
	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		socklen_t len = lengths[i];
		int failed = getsockopt(fd, level, SO_ORIGINAL_DST, buffer, &len);

		printf("%s\"%d\":", i ? "," : "", lengths[i]);
		if (failed)
			printf("\"%s\"", errno_name(errno));
		else
			printf("%u", len);
	}
	printf("}");
}

/* The client has gone: what does the kernel say now? */
static void ask_again(int fd)
{
	char peer[ADDRESS_TEXT], text[ADDRESS_TEXT];
	const char *error = original(fd, natural_level(fd), text);

	printf("{\"peer\":\"%s\",\"again\":\"%s\"}\n", peer_text(fd, peer), error ? error : text);
}

static void greet_as_proxy(int fd, const struct server *server)
{
	char peer[ADDRESS_TEXT], local[ADDRESS_TEXT], text[ADDRESS_TEXT], text6[ADDRESS_TEXT];
	const char *error, *error6;
	int level;

	switch (server->level) {
	case LEVEL_IP: level = SOL_IP; break;
	case LEVEL_IPV6: level = SOL_IPV6; break;
	default: level = natural_level(fd);
	}
	peer_text(fd, peer);
	error = original(fd, level, text);
	dprintf(fd, "proxy %s %s\n", error ? error : text, peer);
	if (server->quiet)
		return;
	printf("{\"peer\":\"%s\",\"local\":\"%s\",\"%s\":\"%s\"", peer, local_text(fd, local),
	       error ? "error" : "orig", error ? error : text);
	if (server->level == LEVEL_BOTH) {
		error6 = original(fd, level == SOL_IP ? SOL_IPV6 : SOL_IP, text6);
		printf(",\"%s\":\"%s\"", error6 ? "otherError" : "otherOrig",
		       error6 ? error6 : text6);
	}
	if (server->lengths) {
		print_lengths(fd, SOL_IP);
		print_lengths(fd, SOL_IPV6);
	}
	printf("}\n");
}

static void greet_as_server(int fd, const struct server *server)
{
	char peer[ADDRESS_TEXT], local[ADDRESS_TEXT];

	dprintf(fd, "server %s %s\n", local_text(fd, local), peer_text(fd, peer));
	if (!server->quiet)
		printf("{\"peer\":\"%s\",\"local\":\"%s\"}\n", peer, local);
}

static void listen_on(struct server *server, const char *host, const char *port)
{
	char text[ADDRESS_TEXT];
	int zero = 0, one = 1, fd;

	if (!parse_address(host, port, &server->address))
		misuse("\"%s\" is not an address", host);
	if (server->dual)
		map_to_v6(&server->address);
	fd = socket(server->address.any.sa_family,
		    (server->udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK | SOCK_CLOEXEC,
		    server->mptcp ? IPPROTO_MPTCP : 0);
	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (server->address.any.sa_family == AF_INET6)
		setsockopt(fd, SOL_IPV6, IPV6_V6ONLY, server->dual ? &zero : &one, sizeof(one));
	if (bind(fd, &server->address.any, address_len(&server->address)))
		die("bind");
	if (!server->udp) {
		if (server->tfo &&
		    setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN, &(int){ 1024 }, sizeof(int)))
			die("TCP_FASTOPEN");
		if (listen(fd, 65535))
			die("listen");
	}
	if (server->listener_count == MAX_LISTENERS)
		misuse("at most %d ports", MAX_LISTENERS);
	server->listeners[server->listener_count++] = fd;
	printf("{\"listening\":\"%s\"}\n", local_text(fd, text));
}

static void watch_listeners(struct server *server, int epoll, bool on)
{
	server->paused = !on;
	for (int i = 0; i < server->listener_count; i++) {
		/* Negative: a listener, and which. */
		struct epoll_event event = { .events = EPOLLIN, .data.fd = -1 - i };

		epoll_ctl(epoll, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, server->listeners[i], &event);
	}
}

static void accept_all(struct server *server, int listener, int epoll)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

		if (server->proxy)
			greet_as_proxy(fd, server);
		else
			greet_as_server(fd, server);
		epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
	}
	if (errno == EMFILE)
		watch_listeners(server, epoll, false);
	else if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
		die("accept");
}

static void send_all(int fd, const char *data, size_t size)
{
	while (size > 0) {
		ssize_t n = send(fd, data, size, 0);

		if (n < 0 && errno == EAGAIN) {
			struct pollfd poll_fd = { .fd = fd, .events = POLLOUT };

			poll(&poll_fd, 1, 1000);
			continue;
		}
		if (n < 0)
			return;
		data += n;
		size -= n;
	}
}

static void serve_client(struct server *server, int fd, int epoll)
{
	static char data[65536];
	ssize_t n = recv(fd, data, sizeof(data), 0);

	if (n > 0 && !server->proxy)
		send_all(fd, data, n);
	if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
		return;
	if (server->again)
		ask_again(fd);
	close(fd);
	if (server->paused)
		watch_listeners(server, epoll, true);
}

static void answer_datagram(const struct server *server, int fd)
{
	char data[2048], reply[LINE_MAX_LEN], text[ADDRESS_TEXT], local[ADDRESS_TEXT];
	union address peer = {};
	socklen_t len = sizeof(peer);

	if (recvfrom(fd, data, sizeof(data), 0, &peer.any, &len) < 0)
		return;
	address_text(&peer, text);
	snprintf(reply, sizeof(reply), "server %s %s\n", local_text(fd, local), text);
	sendto(fd, reply, strlen(reply), 0, &peer.any, len);
	if (!server->quiet)
		printf("{\"peer\":\"%s\",\"local\":\"%s\"}\n", text, local);
}

static int run(struct server *server)
{
	struct epoll_event events[256];
	int epoll = epoll_create1(EPOLL_CLOEXEC);

	watch_listeners(server, epoll, true);
	for (;;) {
		int n = epoll_wait(epoll, events, 256, -1);

		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;

			if (fd >= 0)
				serve_client(server, fd, epoll);
			else if (server->udp)
				answer_datagram(server, server->listeners[-1 - fd]);
			else
				accept_all(server, server->listeners[-1 - fd], epoll);
		}
	}
}

static int start(int argc, char **argv, bool proxy)
{
	static const struct option options[] = {
		{ "again", no_argument, NULL, 'a' },	   { "comm", required_argument, NULL, 'c' },
		{ "dual", no_argument, NULL, 'd' },	   { "lengths", no_argument, NULL, 'L' },
		{ "level", required_argument, NULL, 'l' }, { "mptcp", no_argument, NULL, 'm' },
		{ "quiet", no_argument, NULL, 'q' },	   { "tfo", no_argument, NULL, 'f' },
		{ "udp", no_argument, NULL, 'u' },	   {},
	};
	static const char *const levels[] = { "auto", "ip", "ipv6", "both" };
	static struct server server;
	bool v6 = false, known = true;
	unsigned long limit;
	int option;

	server.proxy = proxy;
	while ((option = getopt_long(argc, argv, "6", options, NULL)) != -1) {
		switch (option) {
		case '6': v6 = true; break;
		case 'a': server.again = proxy; break;
		case 'c': break;
		case 'd': server.dual = true; break;
		case 'f': server.tfo = true; break;
		case 'L': server.lengths = proxy; break;
		case 'l':
			known = false;
			for (int i = LEVEL_AUTO; i <= LEVEL_BOTH; i++) {
				if (strcmp(optarg, levels[i]) == 0) {
					server.level = i;
					known = true;
				}
			}
			if (!known)
				misuse("--level must be auto, ip, ipv6 or both, not \"%s\"",
				       optarg);
			break;
		case 'm': server.mptcp = true; break;
		case 'q': server.quiet = true; break;
		case 'u': server.udp = !proxy; break;
		default: return 1;
		}
	}
	if (argc - optind != 2)
		misuse("%s needs ADDR PORT[,PORT]", argv[0]);
	if (v6 && strcmp(argv[optind], "*") == 0)
		argv[optind] = "::";
	limit = raise_file_limit(WANTED_FILES);
	for (char *port = strtok(argv[optind + 1], ","); port; port = strtok(NULL, ","))
		listen_on(&server, argv[optind], port);
	/* One process where the limit allows, else several on the same listeners. */
	for (unsigned long files = limit; files < WANTED_FILES; files += limit) {
		if (fork_worker() == 0)
			break;
	}
	return run(&server);
}

int cmd_serve(int argc, char **argv)
{
	return start(argc, argv, false);
}

int cmd_proxy(int argc, char **argv)
{
	return start(argc, argv, true);
}
