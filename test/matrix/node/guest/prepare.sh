#!/bin/busybox sh
# shellcheck shell=dash
# Before containerd: the network, the disk with what this run made, the cgroup driver.
set -eu
for module in virtio_net bridge veth overlay; do modprobe $module; done
ip link set lo up
ip address add 10.96.255.15/16 dev eth0
ip link set eth0 up
ip route add default via 10.96.255.2
sysctl -qw net.ipv4.ip_forward=1
mount -t ext4 -o ro /dev/vdc /data
exec /usr/local/sbin/cgroup-driver "$(cat /data/cgroup-driver)" configure
