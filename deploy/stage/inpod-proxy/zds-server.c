// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The agent's end of ZDS, for tests without an agent: sends to all that are
 * connected what standard input says, and prints what they answer.
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

#define MOST_CLIENTS 16
#define MOST_WORDS 8
/* A nack may carry a stack trace. */
#define ANSWER_MAX 16384

struct client {
	struct watched watched;
	int number;
};

static struct client clients[MOST_CLIENTS];

static void print_client(const char *event, const struct client *client)
{
	printf("{\"event\":\"%s\",\"client\":%d", event, client->number);
}

static void on_client(struct watched *watched, uint32_t events)
{
	struct client *client = container_of(watched, struct client, watched);
	static uint8_t bytes[ANSWER_MAX];
	char error[ZDS_MAX];
	ssize_t n = recv(watched->fd, bytes, sizeof(bytes), 0);

	(void)events;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		close_watched(watched, false);
		print_client("closed", client);
		printf("}\n");
		return;
	}
	if (n == 2 && bytes[0] == 0x08 && bytes[1] == 0x01) {
		print_client("hello", client);
	} else if (decode_ack(bytes, n, error)) {
		print_client("ack", client);
		printf(",\"error\":");
		print_text(error);
	} else {
		print_client("rubbish", client);
	}
	printf("}\n");
}

static void on_caller(struct watched *watched, uint32_t events)
{
	static int number;
	int fd = accept4(watched->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	(void)events;
	for (int i = 0; i < MOST_CLIENTS && fd >= 0; i++) {
		struct client *client = &clients[i];

		if (client->watched.fd >= 0)
			continue;
		client->watched = (struct watched){ .fd = fd, .on_event = on_client };
		client->number = ++number;
		return watch(&client->watched, EPOLLIN);
	}
	if (fd >= 0)
		close(fd);
}

/* To all that are connected; with a descriptor unless it is negative. Returns to how many. */
static int send_to_all(const void *bytes, size_t len, const int *descriptors, int count)
{
	union {
		char bytes[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr aligned;
	} control = {};
	struct iovec part = { .iov_base = (void *)bytes, .iov_len = len };
	struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1 };
	int sent = 0;

	if (count) {
		header.msg_control = &control;
		header.msg_controllen = CMSG_SPACE(count * sizeof(int));
		control.aligned.cmsg_level = SOL_SOCKET;
		control.aligned.cmsg_type = SCM_RIGHTS;
		control.aligned.cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(&control.aligned), descriptors, count * sizeof(int));
	}
	for (int i = 0; i < MOST_CLIENTS; i++) {
		if (clients[i].watched.fd < 0)
			continue;
		sent += sendmsg(clients[i].watched.fd, &header, MSG_NOSIGNAL) >= 0;
	}
	return sent;
}

static void set_text(char text[ZDS_MAX], const char *word)
{
	snprintf(text, ZDS_MAX, "%s", word ? word : "");
}

static int send_message(enum zds_kind kind, char **words, const int *descriptors, int count)
{
	static struct zds_message message;
	struct zds_packet packet;

	memset(&message, 0, sizeof(message));
	message.kind = kind;
	set_text(message.uid, words[0]);
	if (kind == ZDS_ADD && words[3]) {
		message.has_names = true;
		set_text(message.namespace, words[1]);
		set_text(message.name, words[2]);
		set_text(message.account, words[3]);
	}
	encode_message(&message, &packet);
	return send_to_all(packet.bytes, packet.len, descriptors, count);
}

/* The namespace's file, or the PID of a process in it. */
static int open_netns(const char *text)
{
	char path[64];

	if (text[0] != '/') {
		snprintf(path, sizeof(path), "/proc/%.10s/ns/net", text);
		text = path;
	}
	return open(text, O_RDONLY | O_CLOEXEC);
}

/* UID NAMESPACE NAME ACCOUNT PID|FILE; the descriptor twice if wanted. */
static int send_add(char **words, int copies)
{
	int descriptors[2], sent = 0;

	if (!words[4])
		return -1;
	descriptors[0] = open_netns(words[4]);
	if (descriptors[0] < 0)
		return -1;
	descriptors[1] = descriptors[0];
	sent = send_message(ZDS_ADD, words, descriptors, copies);
	close(descriptors[0]);
	return sent;
}

static int send_raw(const char *hex)
{
	uint8_t bytes[2 * ZDS_MAX];
	size_t len = 0;

	for (; hex && hex[0] && hex[1] && len < sizeof(bytes); hex += 2) {
		char digits[3] = { hex[0], hex[1] };

		bytes[len++] = strtoul(digits, NULL, 16);
	}
	return send_to_all(bytes, len, NULL, 0);
}

static int close_all(void)
{
	int count = 0;

	for (int i = 0; i < MOST_CLIENTS; i++) {
		count += clients[i].watched.fd >= 0;
		close_watched(&clients[i].watched, false);
	}
	return count;
}

/* To how many it was sent; negative: not understood. */
static int obey(char **words)
{
	if (!words[0])
		return -1;
	if (strcmp(words[0], "add") == 0)
		return send_add(words + 1, 1);
	if (strcmp(words[0], "add-twice") == 0)
		return send_add(words + 1, 2);
	if (strcmp(words[0], "add-bare") == 0)
		return send_message(ZDS_ADD, words + 1, NULL, 0);
	if (strcmp(words[0], "del") == 0)
		return send_message(ZDS_DEL, words + 1, NULL, 0);
	if (strcmp(words[0], "keep") == 0)
		return send_message(ZDS_KEEP, words + 1, NULL, 0);
	if (strcmp(words[0], "snapshot") == 0)
		return send_message(ZDS_SNAPSHOT, words + 1, NULL, 0);
	if (strcmp(words[0], "raw") == 0)
		return send_raw(words[1]);
	if (strcmp(words[0], "hang-up") == 0)
		return close_all();
	return -1;
}

static void on_input(struct watched *watched, uint32_t events)
{
	static char line[4 * ZDS_MAX];
	char *words[MOST_WORDS] = {}, *rest = line;
	int sent;

	(void)watched;
	(void)events;
	/* Unbuffered, so that epoll tells of the next line too. */
	if (!fgets(line, sizeof(line), stdin))
		return leave_loop();
	line[strcspn(line, "\n")] = 0;
	for (int i = 0; i < MOST_WORDS - 1; i++)
		words[i] = strtok_r(rest, " ", &rest);
	sent = obey(words);
	printf("{\"event\":\"order\",\"order\":");
	print_text(words[0] ? words[0] : "");
	printf(",\"ok\":%s,\"sent\":%d}\n", sent < 0 ? "false" : "true", sent < 0 ? 0 : sent);
}

/* Ends with its standard input. */
int cmd_zds_serve(int argc, char **argv)
{
	static struct watched listener = { .on_event = on_caller };
	static struct watched input = { .fd = STDIN_FILENO, .on_event = on_input };
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	if (argc != 2 || strlen(argv[1]) >= sizeof(address.sun_path))
		misuse("zds-serve needs the PATH of a socket");
	strcpy(address.sun_path, argv[1]);
	open_loop();
	setvbuf(stdin, NULL, _IONBF, 0);
	for (int i = 0; i < MOST_CLIENTS; i++)
		clients[i].watched.fd = -1;
	listener.fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	unlink(argv[1]);
	if (listener.fd < 0 || bind(listener.fd, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(listener.fd, MOST_CLIENTS))
		die(argv[1]);
	watch(&listener, EPOLLIN);
	watch(&input, EPOLLIN);
	printf("{\"event\":\"serving\"}\n");
	run_loop();
	return 0;
}
