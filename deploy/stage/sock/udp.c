// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A connected UDP socket, which sends one datagram and waits a little for an answer. */
#include <errno.h>
#include <string.h>
#include <sys/time.h>
#include "sock.h"

int cmd_udp(int argc, char **argv)
{
	char peer[ADDRESS_TEXT], local[ADDRESS_TEXT], reply[LINE_MAX_LEN] = "";
	struct timeval timeout = { .tv_sec = PATIENCE_MS / 1000 };
	const char *step = "connect";
	union address to;
	ssize_t n;
	int fd;

	if (argc == 5 && strcmp(argv[1], "--timeout") == 0) {
		long ms = number(argv[2], "--timeout", 3600000);

		timeout = (struct timeval){ .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };
		argv += 2;
		argc -= 2;
	}
	if (argc != 3 || !parse_address(argv[1], argv[2], &to))
		misuse("udp needs ADDR PORT");
	fd = socket(to.any.sa_family, SOCK_DGRAM, 0);
	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	if (connect(fd, &to.any, address_len(&to)))
		goto failed;
	step = "send";
	if (send(fd, "hello\n", 6, 0) != 6)
		goto failed;
	n = recv(fd, reply, sizeof(reply) - 1, 0); /* no answer is fine: UDP */
	reply[n < 0 ? 0 : n] = 0;
	reply[strcspn(reply, "\n")] = 0;
	printf("{\"ok\":true,\"reply\":\"%s\",\"peer\":\"%s\",\"local\":\"%s\"}\n", reply,
	       peer_text(fd, peer), local_text(fd, local));
	return 0;
failed:
	printf("{\"ok\":false,\"step\":\"%s\",\"errno\":\"%s\"}\n", step, errno_name(errno));
	return 0;
}
