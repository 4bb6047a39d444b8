// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Bytes from one end of a connection to the other, both ways, each end shut when its other is read to the end. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include "inpod.h"

/* Of one connection in one turn of the loop. */
#define MOST_READS 16

static char buffer[65536];

/* What the socket does not take is kept. False: it takes nothing any more. */
static bool give(struct end *end, const char *bytes, size_t len)
{
	ssize_t n = send(end->watched.fd, bytes, len, MSG_NOSIGNAL);

	if (n < 0 && errno != EAGAIN && errno != EINTR)
		return false;
	if (n < 0)
		n = 0;
	if ((size_t)n == len)
		return true;
	end->pending_len = len - n;
	end->pending = malloc(end->pending_len);
	if (!end->pending)
		die("malloc");
	memcpy(end->pending, bytes + n, end->pending_len);
	return true;
}

static bool give_pending(struct end *end)
{
	char *pending = end->pending;
	size_t len = end->pending_len;
	bool ok;

	if (!len)
		return true;
	end->pending = NULL;
	end->pending_len = 0;
	ok = give(end, pending, len);
	free(pending);
	return ok;
}

static bool pass(struct end *from, struct end *to)
{
	for (int reads = 0; reads < MOST_READS && !from->is_read && !to->pending_len; reads++) {
		ssize_t n = recv(from->watched.fd, buffer, sizeof(buffer), 0);

		if (n < 0)
			return errno == EAGAIN || errno == EINTR;
		if (n == 0)
			from->is_read = true;
		else if (!give(to, buffer, n))
			return false;
		if ((size_t)n < sizeof(buffer) && n > 0)
			break; /* it is empty most likely */
	}
	return true;
}

static void shut_if_done(const struct end *from, struct end *to)
{
	if (!from->is_read || to->pending_len || to->is_shut)
		return;
	shutdown(to->watched.fd, SHUT_WR);
	to->is_shut = true;
}

static uint32_t wanted(const struct end *end, const struct end *opposite)
{
	return (!end->is_read && !opposite->pending_len ? EPOLLIN : 0) |
	       (end->pending_len ? EPOLLOUT : 0);
}

void relay(struct connection *connection)
{
	struct end *client = &connection->client, *other = &connection->other;

	if (!give_pending(client) || !give_pending(other) || !pass(client, other) ||
	    !pass(other, client))
		return end_connection(connection, true);
	shut_if_done(client, other);
	shut_if_done(other, client);
	if (client->is_shut && other->is_shut)
		return end_connection(connection, false);
	watch(&client->watched, wanted(client, other));
	watch(&other->watched, wanted(other, client));
}

void on_relay(struct watched *watched, uint32_t events)
{
	(void)events;
	relay(container_of(watched, struct end, watched)->connection);
}
