#!/bin/busybox sh
# shellcheck shell=dash
# First program of a guest: finds the disks, then hands over to the root file system.
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev
# Built into some kernels, modules in others.
for module in virtio_pci virtio_blk; do busybox modprobe -q $module; done
busybox mount -t ext4 /dev/vda /root || { echo 'guest: no disk with a root file system'; busybox poweroff -f; }
busybox mount -t ext4 -o ro /dev/vdb /root/usr/lib/modules
for directory in proc sys dev; do busybox mount --move /$directory /root/$directory; done
exec busybox switch_root /root /guest/init.sh
