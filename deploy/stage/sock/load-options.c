// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The options of what makes many connections. */
#include <getopt.h>
#include <stdlib.h>
#include "sock.h"

int parse_load_options(int argc, char **argv, struct load_options *options)
{
	static const struct option names[] = {
		{ "bind", required_argument, NULL, 'b' },
		{ "comm", required_argument, NULL, 'c' },
		{ "every", required_argument, NULL, 'e' },
		{ "mapped", no_argument, NULL, 'm' },
		{ "answer", no_argument, NULL, 'a' },
		{ "least", required_argument, NULL, 'l' },
		{},
	};
	int option;

	while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
		switch (option) {
		case 'b':
			if (!parse_host_port(optarg, &options->bind))
				misuse("--bind must be ADDR, not \"%s\"", optarg);
			break;
		case 'a': options->answer = true; break;
		case 'c': break;
		case 'e': options->every_us = number(optarg, "--every", 3600000000); break;
		case 'l': options->least = number(optarg, "--least", 1000000); break;
		case 'm': options->mapped = true; break;
		default: exit(1);
		}
	}
	return optind;
}
