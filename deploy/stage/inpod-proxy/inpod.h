/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A proxy for tests in the place of a mesh's own: it is told of pods over ZDS,
 * listens inside their network namespaces, and says what it does in JSON lines.
 */
#ifndef INPOD_H
#define INPOD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "../ground/ground.h"

#define OUTBOUND_PORT 15001
#define INBOUND_PORT 15006
#define TUNNEL_PORT 15008
#define DNS_PORT 15053

/* What the packets of all its sockets carry. */
#define PROXY_MARK 0x539

/* "CGROUTE-TUNNEL [..]:65535 [..]:65535\n" fits. */
#define TUNNEL_LINE 160

#define container_of(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

/* loop.c */
struct watched {
	int fd; /* -1: closed, and no event is for it */
	uint32_t events;
	void (*on_event)(struct watched *watched, uint32_t events);
};

struct timer {
	uint64_t due_ns;
	void (*on_due)(struct timer *timer);
	struct timer *next, *previous;
	bool is_set;
};

void open_loop(void);
void watch(struct watched *watched, uint32_t events);
void close_watched(struct watched *watched, bool reset);
void set_timer(struct timer *timer, unsigned int ms);
void stop_timer(struct timer *timer);
void free_later(void *memory);
void run_loop(void);
void leave_loop(void);

/* zds-message.c: what agent and proxy say to each other, in the bytes of protobuf. */
#define ZDS_MAX 1024 /* of a message that the proxy reads */

enum zds_kind { ZDS_ADD, ZDS_DEL, ZDS_SNAPSHOT, ZDS_KEEP };

struct zds_message {
	enum zds_kind kind;
	bool has_names;
	char uid[ZDS_MAX], namespace[ZDS_MAX], name[ZDS_MAX], account[ZDS_MAX];
};

struct zds_packet {
	size_t len;
	uint8_t bytes[ZDS_MAX];
};

bool decode_message(const uint8_t *bytes, size_t len, struct zds_message *message);
void encode_message(const struct zds_message *message, struct zds_packet *packet);
bool decode_ack(const uint8_t *bytes, size_t len, char error[ZDS_MAX]);
void encode_ack(const char *error, struct zds_packet *packet);

/* zds-client.c: the stream to the agent, its acknowledgements, and their faults. */
void dial_agent(const char *path);
void say_rubbish(void);
void hang_up(void);
void refuse_next(const char *error);
void delay_acks(unsigned int ms);
void hold_acks(bool held);
void say_if_ready(void);

/* zds-server.c */
int cmd_zds_serve(int argc, char **argv);

/* workload.c */
enum kind { OUTBOUND, INBOUND, TUNNEL, KINDS };

struct workload;

struct listener {
	struct watched watched;
	struct workload *workload;
	enum kind kind;
};

struct dns;

struct workload {
	struct workload *next;
	char *uid, *namespace, *name, *account;
	int netns;
	ino_t inode;
	struct listener listeners[KINDS];
	struct dns *dns;
	struct connection *connections;
	struct timer timer; /* to try again, or the end of its drain */
	bool is_confirmed; /* by this stream, so it outlives the snapshot */
	bool is_pending; /* it should listen, and cannot yet */
	bool is_draining;
};

void remember_own_netns(void);
int socket_in(const struct workload *workload, int family, int type);
bool is_local(const struct workload *workload, const union address *address);
bool add_workload(const struct zds_message *message, int netns, char error[ZDS_MAX]);
void keep_workload(const char *uid);
void delete_workload(const char *uid);
void doubt_workloads(void);
void drop_unconfirmed(void);
bool set_listening(const char *uid, bool on);
void forget_if_drained(struct workload *workload);
bool is_any_pending(void);
long count_workloads(void);

/* main.c */
void drain_process(unsigned int ms);

/* connection.c: what becomes of a connection that came in. */
struct end {
	struct watched watched;
	struct connection *connection;
	char *pending; /* what it could not take yet */
	size_t pending_len;
	bool is_read, is_shut;
};

struct connection {
	struct connection *next, *previous;
	struct workload *workload;
	enum kind kind;
	union address peer, local, original;
	union address source; /* whom the application is to see */
	int error; /* of SO_ORIGINAL_DST */
	struct end client, other;
	struct timer timer;
	bool is_open; /* the other end too: bytes pass */
	char line[TUNNEL_LINE];
	size_t line_len;
};

void accept_all(struct listener *listener);
void end_connection(struct connection *connection, bool reset);

/* relay.c */
void relay(struct connection *connection);
void on_relay(struct watched *watched, uint32_t events);

/* dial.c */
void dial(struct connection *connection, const union address *to, const union address *from);

/* policy.c: who is in the mesh, and what is refused. */
struct policy {
	bool spoofs, is_ipv4_only;
	unsigned int drain_ms;
	const char *mesh_file;
	const struct sockaddr_in *dns_answer; /* NULL: no DNS */
};

extern struct policy policy;

bool set_hosts(const char *list, const char *text);
bool set_strict_ports(const char *text);
bool is_in_mesh(const union address *address);
bool is_denied(const union address *address);
bool is_strict(unsigned int port);
bool read_mesh_file(void);

/* orders.c: what is asked for on standard input and by signals. */
void take_orders(void);
void block_signals(void);

/* dns.c */
void open_dns(struct workload *workload);
void close_dns(struct workload *workload);

/* report.c: JSON lines. */
enum deed { PASSED, TUNNELLED, DELIVERED, DENIED, LOOP, RUBBISH, DEEDS };

extern bool is_quiet;

void print_text(const char *text);
void report_stream(const char *event, const char *detail);
void report_workload(const char *event, const struct workload *workload, const char *error);
void report_connection(const struct connection *connection, enum deed deed);
void report_failure(const struct connection *connection, const char *step, int error);
void report_dns(const struct workload *workload, const char *protocol, const char *name);
void count_open(int change);
long count_of_open(void);
void print_totals(void);

#endif
