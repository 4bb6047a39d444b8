// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What the proxy was told of the mesh: who is in it, who may not come, and where plaintext may not. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "inpod.h"

#define SEPARATORS ", \t\n"

struct hosts {
	union address *addresses;
	size_t count;
};

struct policy policy = { .spoofs = true };

static struct hosts mesh, mesh_in_file, denied;
static bool strict[65536];

static bool has(const struct hosts *hosts, const union address *address)
{
	for (size_t i = 0; i < hosts->count; i++) {
		if (same_host(&hosts->addresses[i], address))
			return true;
	}
	return false;
}

/* All of them, or nothing changes. */
static bool replace(struct hosts *hosts, const char *text)
{
	struct hosts found = {};
	char *copy = strdup(text), *rest = copy;

	for (char *word; (word = strtok_r(rest, SEPARATORS, &rest));) {
		found.addresses =
			realloc(found.addresses, (found.count + 1) * sizeof(*found.addresses));
		if (!found.addresses)
			die("realloc");
		if (!parse_address(word, "0", &found.addresses[found.count])) {
			free(found.addresses);
			free(copy);
			return false;
		}
		found.count++;
	}
	free(copy);
	free(hosts->addresses);
	*hosts = found;
	return true;
}

/* The list is "mesh" or "deny". */
bool set_hosts(const char *list, const char *text)
{
	return replace(strcmp(list, "mesh") == 0 ? &mesh : &denied, text);
}

bool set_strict_ports(const char *text)
{
	char *copy = strdup(text), *rest = copy;
	bool ok = true;

	memset(strict, 0, sizeof(strict));
	for (char *word; ok && (word = strtok_r(rest, SEPARATORS, &rest));) {
		char *end;
		unsigned long port = strtoul(word, &end, 10);

		ok = !*end && port > 0 && port < 65536;
		if (ok)
			strict[port] = true;
	}
	free(copy);
	return ok;
}

bool is_in_mesh(const union address *address)
{
	return has(&mesh, address) || has(&mesh_in_file, address);
}

bool is_denied(const union address *address)
{
	return has(&denied, address);
}

bool is_strict(unsigned int port)
{
	return strict[port & 0xffff];
}

/* Addresses, a line or a word each. A file that is not there yet is an empty one. */
bool read_mesh_file(void)
{
	FILE *file;
	char *text = NULL;
	size_t size = 0;
	bool ok;

	if (!policy.mesh_file)
		return true;
	file = fopen(policy.mesh_file, "re");
	if (!file)
		return errno == ENOENT && replace(&mesh_in_file, "");
	/* To its end: no text has a NUL. */
	ok = getdelim(&text, &size, 0, file) < 0 ? replace(&mesh_in_file, "")
						 : replace(&mesh_in_file, text);
	free(text);
	fclose(file);
	return ok;
}
