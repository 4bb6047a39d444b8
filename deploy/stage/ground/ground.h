/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the test programs beside this directory have in common; no program by itself. */
#ifndef GROUND_H
#define GROUND_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>

/* "[ffff:...]:65535" fits. */
#define ADDRESS_TEXT 64

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

/* address.c */
bool parse_address(const char *host, const char *port, union address *address);
bool parse_host_port(const char *text, union address *address);
void map_to_v6(union address *address);
void unmap_from_v6(union address *address);
bool is_v4(const union address *address);
bool same_host(const union address *a, const union address *b);
unsigned int port_of(const union address *address);
void set_port(union address *address, unsigned int port);
socklen_t address_len(const union address *address);
const char *address_text(const union address *address, char text[ADDRESS_TEXT]);
const char *peer_text(int fd, char text[ADDRESS_TEXT]);
const char *local_text(int fd, char text[ADDRESS_TEXT]);

/* process.c */
void die(const char *what) __attribute__((noreturn));
void misuse(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
long number(const char *text, const char *what, long max);
uint64_t now_ns(void);
unsigned long raise_file_limit(unsigned long files);
void close_reset(int fd);
const char *errno_name(int error);

#endif
