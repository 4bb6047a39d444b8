#!/bin/sh
# Makes a clean clone ready: Debian packages, npm packages with the project's own
# Node, everything built. It does only what is missing, and may run twice at once.
set -eu

PACKAGES='clang llvm libbpf-dev libbpf1 bpftool iproute2 iptables haproxy runc busybox-static util-linux procps openssl clang-format shellcheck'
# The image is built in CI only, and by whoever has these two.
[ -z "${CI:-}" ] || PACKAGES="$PACKAGES buildah mmdebstrap"
COMMANDS='clang clang-format shellcheck llvm-strip bpftool ip iptables haproxy runc busybox flock nsenter sysctl openssl'

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

# Nothing here may ask a question, and standard input may be closed.
exec </dev/null
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export PATH

cache="${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/cgroute"
mkdir -p "$cache" 2>/dev/null || fail "cannot make the directory $cache; set XDG_CACHE_HOME to one that can be written"
log="$cache/setup.$$.log"
trap 'rm -f "$log"' EXIT

command -v flock >/dev/null || fail 'flock is missing; install the package util-linux'
exec 9>"$cache/setup.lock"
flock -n 9 || { say 'waiting for another set-up on this machine'; flock 9; }

# Runs a command quietly; what it printed is shown only when it fails.
quietly() {
	what=$1
	shift
	"$@" >"$log" 2>&1 9>&- && return
	tail -n 25 "$log" >&2
	fail "$what"
}

missing_packages() {
	for package in $PACKAGES; do
		state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) || state=
		[ "$state" = installed ] || printf ' %s' "$package"
	done
}

missing_commands() {
	for command in $COMMANDS; do
		command -v "$command" >/dev/null || printf ' %s' "$command"
	done
}

install_packages() {
	if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
		missing=$(missing_commands)
		[ -z "$missing" ] || fail "no apt-get on this machine; install these commands another way:$missing"
		return 0
	fi
	missing=$(missing_packages)
	[ -n "$missing" ] || return 0
	[ "$(id -u)" = 0 ] || fail "must run as root to install Debian packages; missing:$missing"
	say "installing Debian packages:$missing"
	DEBIAN_FRONTEND=noninteractive
	export DEBIAN_FRONTEND
	quietly 'apt-get update failed; is this machine online?' apt-get -q update
	# shellcheck disable=SC2086
	quietly "apt-get could not install:$missing" apt-get -q -y --no-install-recommends install $missing
}

# npm runs on the machine's Node: `npm ci` removes the one in node_modules.
outer_path() {
	echo "$PATH" | tr ':' '\n' | grep -v 'node_modules/\.bin$' | paste -sd: -
}

install_modules() {
	wanted=$(sha256sum <package-lock.json)
	stamp=node_modules/.cgroute-lock
	[ -x node_modules/.bin/node ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return 0
	path=$(outer_path)
	PATH="$path" command -v npm >/dev/null || fail 'npm is missing; install Node 18 or later with npm (Debian: apt-get install npm)'
	say 'installing npm packages'
	# No package here needs its install script: native addons come prebuilt.
	quietly 'npm ci failed; is this machine online, and the registry within reach?' \
		env PATH="$path" npm ci --ignore-scripts --include=dev --include=optional --no-audit --no-fund --loglevel=error
	[ -x node_modules/.bin/node ] ||
		fail "npm left out the package with Node for this machine ($(uname -m)); x86_64 and aarch64 have one, and a broken download can be the cause: try again"
	echo "$wanted" >"$stamp"
}

install_packages
install_modules
node_modules/.bin/node deploy/build/build.ts 9>&-
