#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Starts the bundle that lies beside this file, with the project's own Node where
# it is, else with the one on PATH. The agent makes little garbage, so a small
# young generation costs no time and saves some megabytes on each node. So do two
# heaps of C in place of one for each thread. The agent itself says when garbage is
# to be collected, beside Node.
# In the image there is a shell, and no readlink.
self=$0
if [ -L "$self" ] || [ "${self%/*}" = "$self" ]; then self=$(readlink -f "$self"); fi
here=${self%/*}
node=$here/../node_modules/.bin/node
[ -x "$node" ] || node=node
: "${MALLOC_ARENA_MAX:=2}"
export MALLOC_ARENA_MAX
# The kubelet's probes come every few seconds: a small program of their own answers them.
if [ "${1-}" = probe ]; then exec "$node" "$here/probe.mjs" "$@"; fi
exec "$node" --expose-gc --max-semi-space-size=1 --heap-growing-percent=20 "$here/cgroute.mjs" "$@"
