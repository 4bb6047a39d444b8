// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* How a test program ends that cannot go on, what it was given, and what it may use. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include "ground.h"

void die(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
	exit(1);
}

void misuse(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fprintf(stderr, "%s: ", program_invocation_short_name);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	exit(1);
}

long number(const char *text, const char *what, long max)
{
	char *end;
	long value = strtol(text, &end, 10);

	if (!*text || *end || value < 0 || value > max)
		misuse("%s must be a number from 0 to %ld, not \"%s\"", what, max, text);
	return value;
}

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

/* As far as this process may go; returns what it got. */
unsigned long raise_file_limit(unsigned long files)
{
	struct rlimit limit, wanted;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		die("getrlimit");
	if (limit.rlim_cur >= files)
		return limit.rlim_cur;
	wanted.rlim_cur = files;
	wanted.rlim_max = limit.rlim_max < files ? files : limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &wanted) == 0)
		return files;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	return limit.rlim_cur;
}

/* Closes with a reset, so that no TIME_WAIT keeps the port. */
void close_reset(int fd)
{
	struct linger linger = { .l_onoff = 1, .l_linger = 0 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(fd);
}

const char *errno_name(int error)
{
	const char *name = strerrorname_np(error);

	return name ? name : "EUNKNOWN";
}
