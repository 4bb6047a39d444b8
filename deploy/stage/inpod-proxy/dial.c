// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The proxy's own connections: from within the pod's network namespace, under the client's address if wanted. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "inpod.h"

#define DIAL_MS 10000

static void on_dialled(struct watched *watched, uint32_t events);

static bool bind_as(int fd, const union address *client)
{
	union address host = *client;
	int one = 1;

	set_port(&host, 0);
	if (is_v4(&host)) {
		setsockopt(fd, SOL_IP, IP_FREEBIND, &one, sizeof(one));
		setsockopt(fd, SOL_IP, IP_TRANSPARENT, &one, sizeof(one));
	} else {
		setsockopt(fd, SOL_IPV6, IPV6_FREEBIND, &one, sizeof(one));
		setsockopt(fd, SOL_IPV6, IPV6_TRANSPARENT, &one, sizeof(one));
	}
	return bind(fd, &host.any, address_len(&host)) == 0;
}

static void fail(struct connection *connection, const char *step, int error)
{
	report_failure(connection, step, error);
	end_connection(connection, true);
}

/* Whatever comes of it, the connection takes its way from here: its caller is done with it. */
void dial(struct connection *connection, const union address *to, const union address *from)
{
	struct watched *other = &connection->other.watched;
	int one = 1;

	watch(&connection->client.watched, 0);
	connection->client.watched.on_event = on_relay;
	other->on_event = on_dialled;
	other->fd = socket_in(connection->workload, to->any.sa_family, SOCK_STREAM);
	if (other->fd < 0)
		return fail(connection, "socket", errno);
	setsockopt(other->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (from && from->any.sa_family == to->any.sa_family && !bind_as(other->fd, from))
		return fail(connection, "bind", errno);
	if (connect(other->fd, &to->any, address_len(to)) && errno != EINPROGRESS)
		return fail(connection, "connect", errno);
	set_timer(&connection->timer, DIAL_MS);
	watch(other, EPOLLOUT);
}

static void on_dialled(struct watched *watched, uint32_t events)
{
	struct end *other = container_of(watched, struct end, watched);
	struct connection *connection = other->connection;
	int error = 0;
	socklen_t len = sizeof(error);

	(void)events;
	getsockopt(watched->fd, SOL_SOCKET, SO_ERROR, &error, &len);
	if (error)
		return fail(connection, "connect", error);
	stop_timer(&connection->timer);
	watched->on_event = on_relay;
	connection->is_open = true;
	relay(connection);
}
