/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A tool for tests: precise socket behaviour, one JSON object per line. */
#ifndef SOCK_H
#define SOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "../ground/ground.h"

#define LINE_MAX_LEN 256
/* How long an answer is waited for, milliseconds, unless somebody wants a time-out. */
#define PATIENCE_MS 20000

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

/* main.c */
pid_t fork_worker(void);
bool ended(int fd, int timeout_ms);

/* client.c */
#define MAX_NEXT 8

struct next {
	union address destination;
	bool disconnect; /* connect() to AF_UNSPEC before it */
};

struct client {
	union address destination;
	union address bind; /* sa_family 0: not bound */
	const char *device; /* NULL: not bound */
	bool nonblock, tfo, tfo_connect, io_uring, mptcp;
	bool unconnected_first, reconnect, hold, say, no_read;
	int timeout_ms;
	struct next next[MAX_NEXT]; /* for the same socket, one after the other */
	int next_count;
};

int read_line(int fd, char *line, size_t size);
bool connect_and_print(const struct client *client);
int cmd_connect(int argc, char **argv);
int cmd_first(int argc, char **argv);

/* udp.c */
int cmd_udp(int argc, char **argv);

/* uring.c */
int uring_connect(int fd, const union address *address);

/* server.c */
int cmd_serve(int argc, char **argv);
int cmd_proxy(int argc, char **argv);

/* load-options.c */
struct load_options {
	bool mapped, answer;
	long every_us, least;
	union address bind;
};

int parse_load_options(int argc, char **argv, struct load_options *options);

/* loop.c */
int cmd_loop(int argc, char **argv);

/* load.c */
int cmd_many(int argc, char **argv);
int cmd_bench(int argc, char **argv);

/* hostile.c */
int cmd_grab(int argc, char **argv);
int cmd_repair(int argc, char **argv);
int cmd_threads(int argc, char **argv);

/* race.c */
int cmd_knock(int argc, char **argv);
int cmd_rewrite(int argc, char **argv);

/* start.c */
int cmd_arrive(int argc, char **argv);
int cmd_arrived(int argc, char **argv);
int cmd_nothing(int argc, char **argv);
int cmd_storm(int argc, char **argv);

#endif
