// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The pod's DNS listener: any question for an IPv4 address has one answer, any other none. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "inpod.h"

#define HEADER 12
#define TYPE_A 1
#define MESSAGE 512
/* Of open questions over TCP; more wait until one of them ends. */
#define STREAMS 16

struct place {
	struct watched watched;
	struct dns *dns;
	bool is_stream;
};

struct dns {
	const struct workload *workload;
	struct place places[4];
	struct place streams[STREAMS];
};

/* Makes the question an answer; returns its length, 0 where it is no question. */
static size_t answer(uint8_t message[MESSAGE], size_t len, const char *protocol,
		     const struct workload *workload)
{
	uint8_t record[16] = { 0xc0, HEADER, 0, TYPE_A, 0, 1, 0, 0, 0, 1, 0, 4 };
	char name[256] = "";
	size_t at = HEADER, used = 0;
	bool has_answer;

	if (len < HEADER || message[2] & 0x80)
		return 0;
	while (at < len && message[at]) {
		size_t label = message[at];

		if (label > 63 || at + label + 1 >= len || used + label + 2 > sizeof(name))
			return 0;
		memcpy(name + used, message + at + 1, label);
		used += label;
		name[used++] = '.';
		name[used] = 0;
		at += label + 1;
	}
	at += 5; /* the root, type, class */
	if (at > len || at + sizeof(record) > MESSAGE)
		return 0;
	report_dns(workload, protocol, name);
	has_answer = message[at - 4] == 0 && message[at - 3] == TYPE_A;
	message[2] = 0x80 | (message[2] & 1); /* a response; recursion as desired */
	message[3] = 0x80;
	memset(message + 4, 0, HEADER - 4);
	message[5] = 1;
	message[7] = has_answer;
	memcpy(record + 12, &policy.dns_answer->sin_addr, 4);
	memcpy(message + at, record, sizeof(record));
	return at + (has_answer ? sizeof(record) : 0);
}

static void on_datagram(struct watched *watched, uint32_t events)
{
	struct place *place = container_of(watched, struct place, watched);
	uint8_t message[MESSAGE];
	union address peer;
	socklen_t len = sizeof(peer);
	ssize_t n = recvfrom(watched->fd, message, sizeof(message), 0, &peer.any, &len);
	size_t size = n > 0 ? answer(message, n, "udp", place->dns->workload) : 0;

	(void)events;
	if (size)
		sendto(watched->fd, message, size, 0, &peer.any, len);
}

/* One whole message in one piece, as clients send them. */
static void on_stream(struct watched *watched, uint32_t events)
{
	struct place *place = container_of(watched, struct place, watched);
	uint8_t bytes[2 + MESSAGE];
	ssize_t n = recv(watched->fd, bytes, sizeof(bytes), 0);
	size_t size;

	(void)events;
	if (n < 0 && errno == EAGAIN)
		return;
	size = n > 2 ? answer(bytes + 2, n - 2, "tcp", place->dns->workload) : 0;
	if (!size)
		return close_watched(watched, false);
	bytes[0] = size >> 8;
	bytes[1] = size;
	send(watched->fd, bytes, size + 2, MSG_NOSIGNAL);
}

static void on_caller(struct watched *watched, uint32_t events)
{
	struct dns *dns = container_of(watched, struct place, watched)->dns;
	int fd;

	(void)events;
	fd = accept4(watched->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	for (int i = 0; i < STREAMS && fd >= 0; i++) {
		struct place *place = &dns->streams[i];

		if (place->watched.fd >= 0)
			continue;
		*place = (struct place){ .watched = { .fd = fd, .on_event = on_stream },
					 .dns = dns };
		return watch(&place->watched, EPOLLIN);
	}
	if (fd >= 0)
		close(fd);
}

static void open_place(struct dns *dns, struct place *place, const char *host, bool is_stream)
{
	union address address;
	int fd, one = 1;

	parse_address(host, "0", &address);
	set_port(&address, DNS_PORT);
	fd = socket_in(dns->workload, address.any.sa_family, is_stream ? SOCK_STREAM : SOCK_DGRAM);
	*place = (struct place){
		.watched = { .fd = fd, .on_event = is_stream ? on_caller : on_datagram },
		.dns = dns,
		.is_stream = is_stream,
	};
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
	if (bind(fd, &address.any, address_len(&address)) || (is_stream && listen(fd, 128))) {
		report_workload("no-dns", dns->workload, errno_name(errno));
		return close_watched(&place->watched, false);
	}
	watch(&place->watched, EPOLLIN);
}

void open_dns(struct workload *workload)
{
	struct dns *dns;

	if (!policy.dns_answer || workload->dns)
		return;
	dns = calloc(1, sizeof(*dns));
	if (!dns)
		die("calloc");
	dns->workload = workload;
	workload->dns = dns;
	for (int i = 0; i < STREAMS; i++)
		dns->streams[i].watched.fd = -1;
	for (int i = 0; i < 4; i++)
		open_place(dns, &dns->places[i], i & 1 ? "::1" : "127.0.0.1", i & 2);
}

void close_dns(struct workload *workload)
{
	struct dns *dns = workload->dns;

	if (!dns)
		return;
	for (int i = 0; i < 4; i++)
		close_watched(&dns->places[i].watched, false);
	for (int i = 0; i < STREAMS; i++)
		close_watched(&dns->streams[i].watched, false);
	workload->dns = NULL;
	free_later(dns);
}
