// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What becomes of a connection that came to one of a pod's three listeners. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "inpod.h"

/* linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h. */
#define SO_ORIGINAL_DST 80

/* For the line at the head of a tunnel. */
#define LINE_MS 10000
#define TUNNEL_WORD "CGROUTE-TUNNEL"

static void on_line(struct watched *watched, uint32_t events);

static void put_in_list(struct connection *connection)
{
	struct connection **first = &connection->workload->connections;

	connection->next = *first;
	if (*first)
		(*first)->previous = connection;
	*first = connection;
	count_open(1);
}

static void take_from_list(struct connection *connection)
{
	if (connection->previous)
		connection->previous->next = connection->next;
	else
		connection->workload->connections = connection->next;
	if (connection->next)
		connection->next->previous = connection->previous;
	count_open(-1);
}

/* Both ends of it. Nobody may look at it afterwards. */
void end_connection(struct connection *connection, bool reset)
{
	stop_timer(&connection->timer);
	close_watched(&connection->client.watched, reset);
	close_watched(&connection->other.watched, reset);
	free(connection->client.pending);
	free(connection->other.pending);
	take_from_list(connection);
	forget_if_drained(connection->workload);
	free_later(connection);
}

static void on_timer(struct timer *timer)
{
	struct connection *connection = container_of(timer, struct connection, timer);

	report_failure(connection, connection->other.watched.fd < 0 ? "line" : "connect",
		       ETIMEDOUT);
	end_connection(connection, true);
}

/* As real proxies do: at the level of the connection's own family, and without an answer the local address. */
static void ask_original(struct connection *connection)
{
	socklen_t len = address_len(&connection->local);

	connection->original = connection->local;
	if (getsockopt(connection->client.watched.fd, is_v4(&connection->local) ? SOL_IP : SOL_IPV6,
		       SO_ORIGINAL_DST, &connection->original, &len)) {
		connection->error = errno;
		connection->original = connection->local;
	}
	unmap_from_v6(&connection->original);
}

static void finish(struct connection *connection, enum deed deed, bool reset)
{
	report_connection(connection, deed);
	end_connection(connection, reset);
}

/* Addressed to one of the proxy's own listeners: passed on, it would come back for ever. */
static bool is_loop(const struct connection *connection)
{
	switch (port_of(&connection->original)) {
	case OUTBOUND_PORT:
	case INBOUND_PORT:
	case TUNNEL_PORT: return is_local(connection->workload, &connection->original);
	default: return false;
	}
}

static void take_outbound(struct connection *connection)
{
	struct connection *c = connection;
	union address to = c->original;
	char line[TUNNEL_LINE], destination[ADDRESS_TEXT], source[ADDRESS_TEXT];

	if (!is_in_mesh(&to)) {
		report_connection(c, PASSED);
		return dial(c, &to, NULL);
	}
	snprintf(line, sizeof(line), TUNNEL_WORD " %s %s\n", address_text(&to, destination),
		 address_text(&c->source, source));
	report_connection(c, TUNNELLED);
	/* It goes first: nothing is read from the client before the other end is open. */
	c->other.pending = strdup(line);
	c->other.pending_len = strlen(line);
	set_port(&to, TUNNEL_PORT);
	dial(c, &to, NULL);
}

/* From the client itself as far as the application can see. */
static void deliver(struct connection *connection, enum deed deed)
{
	report_connection(connection, deed);
	dial(connection, &connection->original, policy.spoofs ? &connection->source : NULL);
}

static void take_inbound(struct connection *connection)
{
	if (is_denied(&connection->source) || is_strict(port_of(&connection->original)))
		return finish(connection, DENIED, true);
	deliver(connection, PASSED);
}

/* The line says what the connection is; what is behind it is for the application already. */
static bool parse_line(struct connection *connection, char *line)
{
	char *rest = line, *word = strtok_r(rest, " ", &rest);
	char *destination = strtok_r(rest, " ", &rest), *source = strtok_r(rest, " ", &rest);

	if (!source || strcmp(word, TUNNEL_WORD))
		return false;
	return parse_host_port(destination, &connection->original) &&
	       parse_host_port(source, &connection->source);
}

static void take_tunnel(struct connection *connection, char *end)
{
	struct connection *c = connection;
	size_t more = c->line + c->line_len - (end + 1);

	*end = 0;
	if (!parse_line(c, c->line) || !is_local(c->workload, &c->original))
		return finish(c, RUBBISH, true);
	if (is_loop(c))
		return finish(c, LOOP, false);
	if (is_denied(&c->source))
		return finish(c, DENIED, true);
	if (more) {
		c->other.pending = malloc(more);
		if (!c->other.pending)
			die("malloc");
		memcpy(c->other.pending, end + 1, more);
		c->other.pending_len = more;
	}
	deliver(c, DELIVERED);
}

static void on_line(struct watched *watched, uint32_t events)
{
	struct end *client = container_of(watched, struct end, watched);
	struct connection *connection = client->connection;
	ssize_t n = recv(watched->fd, connection->line + connection->line_len,
			 TUNNEL_LINE - connection->line_len, 0);
	char *end;

	(void)events;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
		return finish(connection, RUBBISH, false);
	connection->line_len += n;
	end = memchr(connection->line, '\n', connection->line_len);
	if (end)
		return take_tunnel(connection, end);
	if (connection->line_len == TUNNEL_LINE)
		finish(connection, RUBBISH, true);
}

static void get_addresses(struct connection *connection)
{
	socklen_t len = sizeof(union address);

	getpeername(connection->client.watched.fd, &connection->peer.any, &len);
	len = sizeof(union address);
	getsockname(connection->client.watched.fd, &connection->local.any, &len);
	unmap_from_v6(&connection->peer);
	connection->source = connection->peer;
	unmap_from_v6(&connection->local);
}

static void begin_connection(struct listener *listener, int fd)
{
	struct connection *connection = calloc(1, sizeof(*connection));
	int one = 1;

	if (!connection)
		die("calloc");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	connection->workload = listener->workload;
	connection->kind = listener->kind;
	connection->timer.on_due = on_timer;
	connection->client = (struct end){
		.watched = { .fd = fd, .on_event = on_relay },
		.connection = connection,
	};
	connection->other = (struct end){
		.watched = { .fd = -1, .on_event = on_relay },
		.connection = connection,
	};
	put_in_list(connection);
	get_addresses(connection);
	if (connection->kind == TUNNEL) {
		connection->client.watched.on_event = on_line;
		set_timer(&connection->timer, LINE_MS);
		return watch(&connection->client.watched, EPOLLIN);
	}
	ask_original(connection);
	if (is_loop(connection))
		finish(connection, LOOP, false);
	else if (connection->kind == OUTBOUND)
		take_outbound(connection);
	else
		take_inbound(connection);
}

void accept_all(struct listener *listener)
{
	int fd;

	while ((fd = accept4(listener->watched.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
		begin_connection(listener, fd);
	if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
		die("accept");
}
