/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A tool for tests: connections of processes that were born this moment. */
#ifndef BURST_H
#define BURST_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define MAX_PARALLEL 64
#define ADDRESS_TEXT 32
#define LINE_TEXT 192

struct job {
	char token[32], flags[8], directory[4096], address[64], comm[16];
	unsigned int port;
};

/* What one process has to tell; shared with its parent. */
struct slot {
	pid_t pid;
	uint64_t started_ns, ended_ns;
	int error;
	char step[16], token[32];
	char local[ADDRESS_TEXT], peer[ADDRESS_TEXT], reply[LINE_TEXT];
	bool told;
};

/* main.c */
void die(const char *what) __attribute__((noreturn));
void local_text(int fd, char *text);
void peer_text(int fd, char *text);

/* begin.c */
struct slot *share_slots(void);
void fail(struct slot *slot, const char *step, int error);
void begin(const struct job *job, struct slot *slot);
void exec_job(const struct job *job, struct slot *slot, int index);
int cmd_began(char **argv);

/* run.c */
int cmd_run(int parallel);

/* serve.c */
int cmd_serve(const char *file, char *ports);

#endif
