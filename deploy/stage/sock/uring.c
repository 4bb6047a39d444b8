// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* connect() through io_uring, by bare system calls (no liburing needed). */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/io_uring.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "sock.h"

static void *map_ring(int ring, size_t size, off_t offset)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, offset);
}

/* Returns 0 or an errno. A ring of one entry is made for it and closed again. */
int uring_connect(int fd, const union address *address)
{
	struct io_uring_params params = {};
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
	char *sq, *cq;
	unsigned tail, mask;
	int ring, res;

	ring = syscall(SYS_io_uring_setup, 1, &params);
	if (ring < 0)
		return errno;
	sq = map_ring(ring, params.sq_off.array + params.sq_entries * sizeof(unsigned),
		      IORING_OFF_SQ_RING);
	cq = map_ring(ring, params.cq_off.cqes + params.cq_entries * sizeof(*cqes),
		      IORING_OFF_CQ_RING);
	sqes = map_ring(ring, params.sq_entries * sizeof(*sqes), IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || (void *)sqes == MAP_FAILED)
		die("mmap of the io_uring");
	cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes);

	memset(&sqes[0], 0, sizeof(sqes[0]));
	sqes[0].opcode = IORING_OP_CONNECT;
	sqes[0].fd = fd;
	sqes[0].addr = (unsigned long)&address->any;
	sqes[0].off = address_len(address);
	tail = *(unsigned *)(sq + params.sq_off.tail);
	mask = *(unsigned *)(sq + params.sq_off.ring_mask);
	((unsigned *)(sq + params.sq_off.array))[tail & mask] = 0;
	__atomic_store_n((unsigned *)(sq + params.sq_off.tail), tail + 1, __ATOMIC_RELEASE);

	res = syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
	res = res < 0 ? errno : -cqes[0].res;
	close(ring);
	return res;
}
