#!/bin/sh
# The guest's init: a pure cgroup v2 host with what systemd would have mounted,
# then one program, then off. Its standard output is the console; what the host
# is to read goes to the second serial line.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
HOME=/root
LANG=C.UTF-8
export PATH HOME LANG
for filesystem in tmpfs:/run tmpfs:/tmp tmpfs:/dev/shm devpts:/dev/pts cgroup2:/sys/fs/cgroup bpf:/sys/fs/bpf tracefs:/sys/kernel/tracing; do
	mkdir -p "${filesystem#*:}"
	mount -t "${filesystem%%:*}" "${filesystem%%:*}" "${filesystem#*:}"
done
mkdir -p /run/netns
# udev's. A kernel with tomoyo resolves /dev/fd/N when a descriptor is executed.
ln -s /proc/self/fd /dev/fd
for stream in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${stream%:*}" "/dev/${stream#*:}"; done
ip link set lo up
hostname guest
# As on any host with an init system, nothing runs in the root cgroup.
mkdir /sys/fs/cgroup/init.scope
echo $$ >/sys/fs/cgroup/init.scope/cgroup.procs
stty -F /dev/ttyS1 raw -echo
cd /guest || exit
sh ./main.sh </dev/null
echo "guest: ended with exit code $?"
poweroff -f
