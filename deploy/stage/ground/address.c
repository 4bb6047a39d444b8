// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Socket addresses from and to text: 10.0.0.1:80, [fd77::1]:80. */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include "ground.h"

/* "*" is any address; a colon makes it IPv6. */
bool parse_address(const char *host, const char *port, union address *address)
{
	long value = number(port, "port", 65535);

	memset(address, 0, sizeof(*address));
	if (strcmp(host, "*") == 0)
		host = "0.0.0.0";
	if (strchr(host, ':')) {
		address->v6.sin6_family = AF_INET6;
		address->v6.sin6_port = htons(value);
		return inet_pton(AF_INET6, host, &address->v6.sin6_addr) == 1;
	}
	address->v4.sin_family = AF_INET;
	address->v4.sin_port = htons(value);
	return inet_pton(AF_INET, host, &address->v4.sin_addr) == 1;
}

/* An address with or without a port: 10.0.0.1, 10.0.0.1:80, fd77::1, [fd77::1]:80. */
bool parse_host_port(const char *text, union address *address)
{
	char host[ADDRESS_TEXT];
	const char *colon = strrchr(text, ':');

	if (strlen(text) >= sizeof(host))
		return false;
	if (text[0] == '[') {
		if (!colon || colon[-1] != ']')
			return false;
		snprintf(host, sizeof(host), "%.*s", (int)(colon - text - 2), text + 1);
		return parse_address(host, colon + 1, address);
	}
	if (!colon || strchr(text, ':') != colon)
		return parse_address(text, "0", address);
	snprintf(host, sizeof(host), "%.*s", (int)(colon - text), text);
	return parse_address(host, colon + 1, address);
}

/* 10.0.0.1 becomes ::ffff:10.0.0.1; any address becomes ::. */
void map_to_v6(union address *address)
{
	struct sockaddr_in v4 = address->v4;

	if (!is_v4(address))
		return;
	memset(address, 0, sizeof(*address));
	address->v6.sin6_family = AF_INET6;
	address->v6.sin6_port = v4.sin_port;
	if (v4.sin_addr.s_addr == 0)
		return;
	memset(&address->v6.sin6_addr.s6_addr[10], 0xff, 2);
	memcpy(&address->v6.sin6_addr.s6_addr[12], &v4.sin_addr, 4);
}

/* ::ffff:10.0.0.1 becomes 10.0.0.1; any other stays. */
void unmap_from_v6(union address *address)
{
	struct sockaddr_in6 v6 = address->v6;

	if (is_v4(address) || !IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr))
		return;
	memset(address, 0, sizeof(*address));
	address->v4.sin_family = AF_INET;
	address->v4.sin_port = v6.sin6_port;
	memcpy(&address->v4.sin_addr, &v6.sin6_addr.s6_addr[12], 4);
}

bool is_v4(const union address *address)
{
	return address->any.sa_family == AF_INET;
}

/* Whatever their ports are. */
bool same_host(const union address *a, const union address *b)
{
	if (a->any.sa_family != b->any.sa_family)
		return false;
	if (is_v4(a))
		return a->v4.sin_addr.s_addr == b->v4.sin_addr.s_addr;
	return IN6_ARE_ADDR_EQUAL(&a->v6.sin6_addr, &b->v6.sin6_addr);
}

unsigned int port_of(const union address *address)
{
	return ntohs(is_v4(address) ? address->v4.sin_port : address->v6.sin6_port);
}

void set_port(union address *address, unsigned int port)
{
	if (is_v4(address))
		address->v4.sin_port = htons(port);
	else
		address->v6.sin6_port = htons(port);
}

socklen_t address_len(const union address *address)
{
	return is_v4(address) ? sizeof(address->v4) : sizeof(address->v6);
}

const char *address_text(const union address *address, char text[ADDRESS_TEXT])
{
	char host[INET6_ADDRSTRLEN] = "?";

	if (is_v4(address)) {
		inet_ntop(AF_INET, &address->v4.sin_addr, host, sizeof(host));
		snprintf(text, ADDRESS_TEXT, "%s:%u", host, ntohs(address->v4.sin_port));
	} else if (address->any.sa_family == AF_INET6) {
		inet_ntop(AF_INET6, &address->v6.sin6_addr, host, sizeof(host));
		snprintf(text, ADDRESS_TEXT, "[%s]:%u", host, ntohs(address->v6.sin6_port));
	} else {
		snprintf(text, ADDRESS_TEXT, "?");
	}
	return text;
}

const char *peer_text(int fd, char text[ADDRESS_TEXT])
{
	union address address = {};
	socklen_t len = sizeof(address);

	getpeername(fd, &address.any, &len);
	return address_text(&address, text);
}

const char *local_text(int fd, char text[ADDRESS_TEXT])
{
	union address address = {};
	socklen_t len = sizeof(address);

	getsockname(fd, &address.any, &len);
	return address_text(&address, text);
}
