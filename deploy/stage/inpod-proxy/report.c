// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What the proxy says: one JSON object a line, and what it has counted. */
#include <stdio.h>
#include "inpod.h"

static const char *const kinds[KINDS] = {
	[OUTBOUND] = "outbound",
	[INBOUND] = "inbound",
	[TUNNEL] = "tunnel",
};

static const char *const deeds[DEEDS] = {
	[PASSED] = "passthrough", [TUNNELLED] = "tunnel", [DELIVERED] = "delivered",
	[DENIED] = "denied",	  [LOOP] = "loop",	  [RUBBISH] = "rubbish",
};

bool is_quiet;

static long by_kind[KINDS], by_deed[DEEDS], failed, opened;

/* As JSON, with its quotes. */
void print_text(const char *text)
{
	putchar('"');
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			printf("\\%c", *text);
		else if ((unsigned char)*text < 0x20)
			printf("\\u%04x", *text);
		else
			putchar(*text);
	}
	putchar('"');
}

void report_stream(const char *event, const char *detail)
{
	printf("{\"event\":\"%s\"", event);
	if (detail) {
		printf(",\"detail\":");
		print_text(detail);
	}
	printf("}\n");
}

void report_workload(const char *event, const struct workload *workload, const char *error)
{
	printf("{\"event\":\"%s\",\"uid\":", event);
	print_text(workload->uid);
	printf(",\"namespace\":");
	print_text(workload->namespace);
	printf(",\"name\":");
	print_text(workload->name);
	printf(",\"account\":");
	print_text(workload->account);
	printf(",\"netns\":%lu", (unsigned long)workload->inode);
	if (error) {
		printf(",\"error\":");
		print_text(error);
	}
	printf("}\n");
}

void report_connection(const struct connection *connection, enum deed deed)
{
	const struct connection *c = connection;
	char peer[ADDRESS_TEXT], local[ADDRESS_TEXT], text[ADDRESS_TEXT];

	by_kind[c->kind]++;
	by_deed[deed]++;
	if (is_quiet)
		return;
	printf("{\"event\":\"connection\",\"kind\":\"%s\",\"uid\":", kinds[c->kind]);
	print_text(c->workload->uid);
	printf(",\"peer\":\"%s\",\"local\":\"%s\"", address_text(&c->peer, peer),
	       address_text(&c->local, local));
	if (c->original.any.sa_family)
		printf(",\"original\":\"%s\"", address_text(&c->original, text));
	if (c->kind == TUNNEL)
		printf(",\"source\":\"%s\"", address_text(&c->source, text));
	if (c->error)
		printf(",\"error\":\"%s\"", errno_name(c->error));
	printf(",\"did\":\"%s\"}\n", deeds[deed]);
}

/* A connection that was to be passed on, and could not be. */
void report_failure(const struct connection *connection, const char *step, int error)
{
	const struct connection *c = connection;
	char peer[ADDRESS_TEXT], text[ADDRESS_TEXT];

	failed++;
	if (is_quiet)
		return;
	printf("{\"event\":\"failed\",\"kind\":\"%s\",\"uid\":", kinds[c->kind]);
	print_text(c->workload->uid);
	printf(",\"peer\":\"%s\",\"original\":\"%s\",\"step\":\"%s\",\"errno\":\"%s\"}\n",
	       address_text(&c->peer, peer), address_text(&c->original, text), step,
	       errno_name(error));
}

void report_dns(const struct workload *workload, const char *protocol, const char *name)
{
	if (is_quiet)
		return;
	printf("{\"event\":\"dns\",\"uid\":");
	print_text(workload->uid);
	printf(",\"protocol\":\"%s\",\"name\":", protocol);
	print_text(name);
	printf("}\n");
}

void count_open(int change)
{
	opened += change;
}

long count_of_open(void)
{
	return opened;
}

void print_totals(void)
{
	printf("{\"event\":\"totals\",\"workloads\":%ld,\"open\":%ld", count_workloads(), opened);
	for (int kind = 0; kind < KINDS; kind++)
		printf(",\"%s\":%ld", kinds[kind], by_kind[kind]);
	printf(",\"failed\":%ld,\"did\":{", failed);
	for (int deed = 0; deed < DEEDS; deed++)
		printf("%s\"%s\":%ld", deed ? "," : "", deeds[deed], by_deed[deed]);
	printf("}}\n");
}
