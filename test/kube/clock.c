// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * For LD_PRELOAD: the clocks of one program, moved by what stands in the file
 * $CLOCK_OFFSETS, two numbers of 64 bits in nanoseconds: the wall clock's, and
 * the monotonic clocks'. The machine's clocks are left alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ll

static const volatile int64_t none[2];
static const volatile int64_t *offsets = none;

__attribute__((constructor)) static void map_offsets(void)
{
	const char *path = getenv("CLOCK_OFFSETS");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *memory;

	if (fd < 0)
		return;
	memory = mmap(NULL, sizeof(none), PROT_READ, MAP_SHARED, fd, 0);
	if (memory != MAP_FAILED)
		offsets = memory;
	close(fd);
}

static int64_t offset_of(clockid_t id)
{
	switch (id) {
	case CLOCK_REALTIME:
	case CLOCK_REALTIME_COARSE: return offsets[0];
	case CLOCK_MONOTONIC:
	case CLOCK_MONOTONIC_COARSE:
	case CLOCK_MONOTONIC_RAW:
	case CLOCK_BOOTTIME: return offsets[1];
	default: return 0;
	}
}

int clock_gettime(clockid_t id, struct timespec *now)
{
	int result = syscall(SYS_clock_gettime, id, now);
	int64_t ns;

	if (result)
		return result;
	ns = now->tv_sec * SECOND + now->tv_nsec + offset_of(id);
	now->tv_sec = ns / SECOND;
	now->tv_nsec = ns % SECOND;
	return 0;
}

int gettimeofday(struct timeval *now, void *zone)
{
	struct timespec ts;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &ts);
	now->tv_sec = ts.tv_sec;
	now->tv_usec = ts.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *result)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	if (result)
		*result = ts.tv_sec;
	return ts.tv_sec;
}

/* The kernel waits by the machine's clocks, so what was reckoned by the moved ones is moved back. */
static struct timespec moved_back(clockid_t id, const struct timespec *until)
{
	int64_t ns = until->tv_sec * SECOND + until->tv_nsec - offset_of(id);

	return ns < 0 ? (struct timespec){}
		      : (struct timespec){ .tv_sec = ns / SECOND, .tv_nsec = ns % SECOND };
}

int pthread_cond_clockwait(pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t id,
			   const struct timespec *until)
{
	static int (*next)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
	struct timespec real = moved_back(id, until);

	if (!next)
		next = (typeof(next))dlsym(RTLD_NEXT, "pthread_cond_clockwait");
	return next(cond, mutex, id, &real);
}

/* By which clock is the condition's secret; no machine has been up since 2001. */
int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
			   const struct timespec *until)
{
	static int (*next)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
	struct timespec real =
		moved_back(until->tv_sec > 1000000000 ? CLOCK_REALTIME : CLOCK_MONOTONIC, until);

	if (!next)
		next = (typeof(next))dlsym(RTLD_NEXT, "pthread_cond_timedwait");
	return next(cond, mutex, &real);
}
