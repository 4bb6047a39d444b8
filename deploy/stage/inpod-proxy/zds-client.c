// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The stream to the agent: dialled again whenever it ends, one acknowledgement a
 * message and in order, and the faults that somebody asked for.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/un.h>
#include <unistd.h>
#include "inpod.h"

#define FIRST_WAIT_MS 20
#define LAST_WAIT_MS 15000
/* More than any message brings that is as it should be. */
#define MOST_DESCRIPTORS 8

struct ack {
	struct ack *next;
	uint64_t due_ns;
	struct zds_packet packet;
};

static void on_stream(struct watched *watched, uint32_t events);
static void on_redial(struct timer *timer);
static void on_ack_due(struct timer *timer);

static struct watched stream = { .fd = -1, .on_event = on_stream };
static struct timer redial = { .on_due = on_redial };
static struct timer ack_due = { .on_due = on_ack_due };
static const char *socket_path;
static unsigned int wait_ms = FIRST_WAIT_MS;
static bool has_snapshot, is_ready;

static struct ack *acks, **last_ack = &acks;
static unsigned int late_ms;
static bool is_held;
static char next_error[ZDS_MAX];

static void forget_acks(void)
{
	struct ack *ack;

	while ((ack = acks)) {
		acks = ack->next;
		free(ack);
	}
	last_ack = &acks;
	stop_timer(&ack_due);
}

static void end_stream(const char *why)
{
	if (stream.fd >= 0)
		report_stream("disconnected", why);
	close_watched(&stream, false);
	forget_acks();
	is_ready = false;
	set_timer(&redial, wait_ms);
	wait_ms = wait_ms * 2 < LAST_WAIT_MS ? wait_ms * 2 : LAST_WAIT_MS;
}

/* The kind of fault that ends the process of the mesh's own proxy. */
static void end_process(const char *why)
{
	report_stream("fatal", why);
	misuse("%s", why);
}

void say_if_ready(void)
{
	if (is_ready || stream.fd < 0 || !has_snapshot || is_any_pending())
		return;
	is_ready = true;
	report_stream("ready", NULL);
}

static void send_acks(void)
{
	while (acks && !is_held && stream.fd >= 0) {
		struct ack *ack = acks;
		uint64_t now = now_ns();

		if (ack->due_ns > now) {
			set_timer(&ack_due, (ack->due_ns - now + 999999) / 1000000);
			break;
		}
		if (send(stream.fd, ack->packet.bytes, ack->packet.len, MSG_NOSIGNAL) < 0) {
			if (errno != EAGAIN)
				return end_stream(errno_name(errno));
			watch(&stream, EPOLLIN | EPOLLOUT);
			return;
		}
		acks = ack->next;
		if (!acks)
			last_ack = &acks;
		free(ack);
	}
	if (stream.fd >= 0)
		watch(&stream, EPOLLIN);
}

static void on_ack_due(struct timer *timer)
{
	(void)timer;
	send_acks();
}

static void acknowledge(const char *error)
{
	struct ack *ack = calloc(1, sizeof(*ack));

	if (!ack)
		die("calloc");
	ack->due_ns = now_ns() + late_ms * 1000000ull;
	encode_ack(error, &ack->packet);
	*last_ack = ack;
	last_ack = &ack->next;
	send_acks();
}

static void take_add(const struct zds_message *message, int *descriptors, int count)
{
	char error[ZDS_MAX] = "";

	if (!message->has_names)
		end_process("an Add came without the workload's names");
	if (count != 1) {
		acknowledge("an Add needs one descriptor of a network namespace\n   at proxy");
		return end_stream("an Add came without exactly one descriptor");
	}
	if (next_error[0]) {
		strcpy(error, next_error);
		next_error[0] = 0;
		report_stream("refused", message->uid);
	} else {
		add_workload(message, descriptors[0], error);
		descriptors[0] = -1; /* its own now */
	}
	acknowledge(error);
}

static void take_snapshot(void)
{
	if (has_snapshot)
		end_process("a second SnapshotSent came on one stream");
	has_snapshot = true;
	drop_unconfirmed();
	acknowledge("");
}

static void take(const struct zds_message *message, int *descriptors, int count)
{
	switch (message->kind) {
	case ZDS_ADD: take_add(message, descriptors, count); break;
	case ZDS_DEL:
		delete_workload(message->uid);
		acknowledge("");
		break;
	case ZDS_SNAPSHOT: take_snapshot(); break;
	case ZDS_KEEP:
		if (has_snapshot)
			end_process("a Keep came after SnapshotSent");
		keep_workload(message->uid);
		acknowledge("");
		break;
	}
}

static int take_descriptors(struct msghdr *header, int descriptors[MOST_DESCRIPTORS])
{
	int count = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; CMSG_LEN((i + 1) * sizeof(int)) <= c->cmsg_len; i++)
			memcpy(&descriptors[count++], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
	}
	return count;
}

static void read_stream(void)
{
	union {
		char bytes[CMSG_SPACE(MOST_DESCRIPTORS * sizeof(int))];
		struct cmsghdr aligned;
	} control;
	uint8_t bytes[ZDS_MAX];
	struct iovec part = { .iov_base = bytes, .iov_len = sizeof(bytes) };
	struct msghdr header = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	int descriptors[MOST_DESCRIPTORS], count;
	static struct zds_message message;
	ssize_t n = recvmsg(stream.fd, &header, MSG_CMSG_CLOEXEC);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
		return end_stream(n ? errno_name(errno) : "the agent has ended it");
	count = take_descriptors(&header, descriptors);
	if ((header.msg_flags & MSG_TRUNC) || !decode_message(bytes, n, &message)) {
		acknowledge("a message could not be decoded\n   at proxy");
		end_stream("a message could not be decoded");
	} else {
		take(&message, descriptors, count);
	}
	for (int i = 0; i < count; i++) {
		if (descriptors[i] >= 0)
			close(descriptors[i]);
	}
	say_if_ready();
}

static void on_stream(struct watched *watched, uint32_t events)
{
	(void)watched;
	if (events & EPOLLOUT)
		send_acks();
	if (stream.fd >= 0 && (events & ~EPOLLOUT))
		read_stream();
}

static void on_redial(struct timer *timer)
{
	static const uint8_t hello[] = { 0x08, 0x01 };
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	(void)timer;
	strcpy(address.sun_path, socket_path);
	stream.fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (stream.fd < 0)
		die("socket");
	if (connect(stream.fd, (struct sockaddr *)&address, sizeof(address)) ||
	    send(stream.fd, hello, sizeof(hello), MSG_NOSIGNAL) < 0) {
		close(stream.fd);
		stream.fd = -1; /* nothing to tell: it comes again and again */
		return end_stream("");
	}
	wait_ms = FIRST_WAIT_MS;
	has_snapshot = false;
	doubt_workloads();
	report_stream("connected", NULL);
	watch(&stream, EPOLLIN);
}

void dial_agent(const char *path)
{
	if (strlen(path) >= sizeof(((struct sockaddr_un *)NULL)->sun_path))
		misuse("the path of the socket is too long: %s", path);
	socket_path = path;
	on_redial(&redial);
}

/* A packet that is no message. */
void say_rubbish(void)
{
	static const uint8_t rubbish[] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

	if (stream.fd >= 0)
		send(stream.fd, rubbish, sizeof(rubbish), MSG_NOSIGNAL);
}

void hang_up(void)
{
	if (stream.fd >= 0)
		end_stream("somebody asked for it");
}

void refuse_next(const char *error)
{
	snprintf(next_error, sizeof(next_error) - 64, "%s\n   0: proxy::start\n   1: main", error);
}

void delay_acks(unsigned int ms)
{
	late_ms = ms;
}

void hold_acks(bool held)
{
	is_held = held;
	send_acks();
}
