// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* One loop for all sockets and timers of the proxy. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "inpod.h"

#define EVENTS 256

struct buried {
	struct buried *next;
};

static int epoll;
static bool is_over;
/* Ordered by time. Most have the same patience, so the place of a new one is near the end. */
static struct timer timers = { .next = &timers, .previous = &timers };
static struct buried *graveyard;

void open_loop(void)
{
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		die("epoll_create1");
}

/* No events: not even those that epoll tells unasked, which would come again and again. */
void watch(struct watched *watched, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = watched };

	if (watched->events == events)
		return;
	if (!watched->events)
		epoll_ctl(epoll, EPOLL_CTL_ADD, watched->fd, &event);
	else
		epoll_ctl(epoll, events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL, watched->fd, &event);
	watched->events = events;
}

void close_watched(struct watched *watched, bool reset)
{
	if (watched->fd < 0)
		return;
	watch(watched, 0);
	if (reset)
		close_reset(watched->fd);
	else
		close(watched->fd);
	watched->fd = -1;
}

void set_timer(struct timer *timer, unsigned int ms)
{
	struct timer *before;

	stop_timer(timer);
	timer->due_ns = now_ns() + ms * 1000000ull;
	for (before = timers.previous; before != &timers; before = before->previous) {
		if (before->due_ns <= timer->due_ns)
			break;
	}
	timer->previous = before;
	timer->next = before->next;
	before->next->previous = timer;
	before->next = timer;
	timer->is_set = true;
}

void stop_timer(struct timer *timer)
{
	if (!timer->is_set)
		return;
	timer->previous->next = timer->next;
	timer->next->previous = timer->previous;
	timer->is_set = false;
}

/* At the end of the turn, as an event for it may have been fetched. Holds a pointer at least. */
void free_later(void *memory)
{
	struct buried *buried = memory;

	buried->next = graveyard;
	graveyard = buried;
}

static int wait_ms(void)
{
	uint64_t now = now_ns();

	if (timers.next == &timers)
		return -1;
	if (timers.next->due_ns <= now)
		return 0;
	return (timers.next->due_ns - now + 999999) / 1000000;
}

void run_loop(void)
{
	struct epoll_event events[EVENTS];

	while (!is_over) {
		int n = epoll_wait(epoll, events, EVENTS, wait_ms());

		if (n < 0 && errno != EINTR)
			die("epoll_wait");
		for (int i = 0; i < n; i++) {
			struct watched *watched = events[i].data.ptr;

			if (watched->fd >= 0 && watched->events)
				watched->on_event(watched, events[i].events);
		}
		while (timers.next != &timers && timers.next->due_ns <= now_ns()) {
			struct timer *timer = timers.next;

			stop_timer(timer);
			timer->on_due(timer);
		}
		while (graveyard) {
			struct buried *buried = graveyard;

			graveyard = buried->next;
			free(buried);
		}
	}
}

void leave_loop(void)
{
	is_over = true;
}
