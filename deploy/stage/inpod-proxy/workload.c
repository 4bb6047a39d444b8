// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The pods that the proxy was told of: their network namespaces, and its listeners in them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>
#include "inpod.h"

#define RETRY_MS 1000
/* What is open ends within 300 ms of Del. */
#define DRAIN_MS 200
#define BACKLOG 65535

static const unsigned int ports[] = {
	[OUTBOUND] = OUTBOUND_PORT,
	[INBOUND] = INBOUND_PORT,
	[TUNNEL] = TUNNEL_PORT,
};

static struct workload *workloads; /* those that are to listen, not those that drain */
static int own_netns = -1;
static bool is_stopped;

void remember_own_netns(void)
{
	own_netns = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (own_netns < 0)
		die("/proc/thread-self/ns/net");
}

/* A socket belongs to the namespace in which it was made, wherever its owner is. */
int socket_in(const struct workload *workload, int family, int type)
{
	int fd, error, mark = PROXY_MARK;

	if (setns(workload->netns, CLONE_NEWNET))
		return -1;
	fd = socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	error = errno;
	if (setns(own_netns, CLONE_NEWNET))
		die("setns back");
	if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)))
		die("SO_MARK");
	errno = error;
	return fd;
}

/* Whether the pod has this address, 127/8 among them: only then can it be bound. */
bool is_local(const struct workload *workload, const union address *address)
{
	union address host = *address;
	int fd = socket_in(workload, host.any.sa_family, SOCK_DGRAM);
	bool local;

	if (fd < 0)
		return false;
	set_port(&host, 0);
	local = bind(fd, &host.any, address_len(&host)) == 0;
	close(fd);
	return local;
}

static void on_listener(struct watched *watched, uint32_t events)
{
	(void)events;
	accept_all(container_of(watched, struct listener, watched));
}

static int listen_in(const struct workload *workload, unsigned int port)
{
	union address address = { .v4.sin_family = AF_INET };
	int fd, one = 1, zero = 0, error;

	if (!policy.is_ipv4_only)
		map_to_v6(&address);
	set_port(&address, port);
	fd = socket_in(workload, address.any.sa_family, SOCK_STREAM);
	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
	if (is_v4(&address)) {
		setsockopt(fd, SOL_IP, IP_TRANSPARENT, &one, sizeof(one));
	} else {
		setsockopt(fd, SOL_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
		setsockopt(fd, SOL_IPV6, IPV6_TRANSPARENT, &one, sizeof(one));
	}
	if (bind(fd, &address.any, address_len(&address)) == 0 && listen(fd, BACKLOG) == 0)
		return fd;
	error = errno;
	close(fd);
	errno = error;
	return -1;
}

static void close_listeners(struct workload *workload)
{
	close_dns(workload);
	for (int kind = 0; kind < KINDS; kind++) {
		/* What waits there already would be reset. */
		if (workload->listeners[kind].watched.fd >= 0)
			accept_all(&workload->listeners[kind]);
		close_watched(&workload->listeners[kind].watched, false);
	}
}

/* All of them or none; the error has the form of the mesh's own proxy, stack and all. */
static bool open_listeners(struct workload *workload, char error[ZDS_MAX])
{
	for (int kind = 0; kind < KINDS; kind++) {
		struct listener *listener = &workload->listeners[kind];

		if (listener->watched.fd >= 0)
			continue;
		listener->watched.fd = listen_in(workload, ports[kind]);
		if (listener->watched.fd >= 0) {
			watch(&listener->watched, EPOLLIN);
			continue;
		}
		snprintf(error, ZDS_MAX, "%s: port %u: %s (os error %d)\n   0: proxy::listen\n",
			 errno == EADDRINUSE ? "AddrInUse" : errno_name(errno), ports[kind],
			 strerror(errno), errno);
		close_listeners(workload);
		workload->is_pending = true;
		set_timer(&workload->timer, RETRY_MS);
		return false;
	}
	open_dns(workload);
	workload->is_pending = false;
	stop_timer(&workload->timer);
	report_workload("listening", workload, NULL);
	return true;
}

static void end_connections(struct workload *workload)
{
	struct connection *connection, *next;

	for (connection = workload->connections; connection; connection = next) {
		next = connection->next;
		end_connection(connection, false);
	}
}

static void on_workload_timer(struct timer *timer)
{
	struct workload *workload = container_of(timer, struct workload, timer);
	char error[ZDS_MAX];

	if (!workload->is_draining) {
		if (open_listeners(workload, error))
			say_if_ready();
		return;
	}
	/* The last of them takes the workload with it; without any it would stay. */
	if (workload->connections)
		end_connections(workload);
	else
		forget_if_drained(workload);
}

void forget_if_drained(struct workload *workload)
{
	if (!workload->is_draining || workload->connections)
		return;
	report_workload("drained", workload, NULL);
	stop_timer(&workload->timer);
	close(workload->netns);
	free(workload->uid);
	free(workload->namespace);
	free(workload->name);
	free(workload->account);
	free_later(workload);
}

static struct workload **find(const char *uid)
{
	struct workload **place = &workloads;

	while (*place && strcmp((*place)->uid, uid))
		place = &(*place)->next;
	return place;
}

static void drop(struct workload **place)
{
	struct workload *workload = *place;

	*place = workload->next;
	report_workload("removed", workload, NULL);
	/* Before the listeners go, as what waits there is taken. */
	workload->is_pending = false;
	close_listeners(workload);
	workload->is_draining = true;
	set_timer(&workload->timer, workload->connections ? DRAIN_MS : 0);
}

static struct workload *make(const struct zds_message *message, int netns, ino_t inode)
{
	struct workload *workload = calloc(1, sizeof(*workload));

	if (!workload)
		die("calloc");
	workload->uid = strdup(message->uid);
	workload->namespace = strdup(message->namespace);
	workload->name = strdup(message->name);
	workload->account = strdup(message->account);
	workload->netns = netns;
	workload->inode = inode;
	workload->timer.on_due = on_workload_timer;
	for (int kind = 0; kind < KINDS; kind++) {
		workload->listeners[kind] = (struct listener){
			.watched = { .fd = -1, .on_event = on_listener },
			.workload = workload,
			.kind = kind,
		};
	}
	return workload;
}

/* The descriptor is its own from here on. */
bool add_workload(const struct zds_message *message, int netns, char error[ZDS_MAX])
{
	struct workload **place = find(message->uid);
	struct stat stat;

	if (fstat(netns, &stat))
		die("fstat");
	if (*place && (*place)->inode != stat.st_ino)
		drop(place);
	place = find(message->uid);
	if (*place) {
		close(netns);
	} else {
		*place = make(message, netns, stat.st_ino);
		report_workload("added", *place, NULL);
		if (!is_stopped && !open_listeners(*place, error))
			report_workload("refused", *place, error);
	}
	(*place)->is_confirmed = true;
	return !error[0];
}

void keep_workload(const char *uid)
{
	struct workload *workload = *find(uid);

	if (workload)
		workload->is_confirmed = true;
}

void delete_workload(const char *uid)
{
	struct workload **place = find(uid);

	if (*place)
		drop(place);
}

/* A new stream says anew which workloads there are, until its snapshot is complete. */
void doubt_workloads(void)
{
	for (struct workload *workload = workloads; workload; workload = workload->next)
		workload->is_confirmed = false;
}

void drop_unconfirmed(void)
{
	struct workload **place = &workloads;

	while (*place) {
		if ((*place)->is_confirmed)
			place = &(*place)->next;
		else
			drop(place);
	}
}

/* Of one workload, or without a uid of all, those to come too. False: there is no such workload. */
bool set_listening(const char *uid, bool on)
{
	bool found = !*uid;
	char error[ZDS_MAX];

	if (!*uid)
		is_stopped = !on;
	for (struct workload *workload = workloads; workload; workload = workload->next) {
		if (*uid && strcmp(workload->uid, uid))
			continue;
		found = true;
		if (on) {
			open_listeners(workload, error);
			continue;
		}
		workload->is_pending = false;
		stop_timer(&workload->timer);
		close_listeners(workload);
		report_workload("silent", workload, NULL);
	}
	return found;
}

bool is_any_pending(void)
{
	for (struct workload *workload = workloads; workload; workload = workload->next) {
		if (workload->is_pending)
			return true;
	}
	return false;
}

long count_workloads(void)
{
	long count = 0;

	for (struct workload *workload = workloads; workload; workload = workload->next)
		count++;
	return count;
}
