#!/bin/busybox sh
# shellcheck shell=dash
# cgroup-driver DRIVER configure: writes it into the configurations.
# cgroup-driver DRIVER switch: the same for a running node, from which pods and their cgroups go first.
set -u
driver=$1
tree() { find /sys/fs/cgroup/kubepods /sys/fs/cgroup/kubepods.slice -depth -type d 2>/dev/null; }
if [ "$2" = switch ]; then
	systemctl stop kubelet
	ctr -n k8s.io tasks list -q | xargs -r -n 1 ctr -n k8s.io tasks kill -s KILL
	sleep 2
	ctr -n k8s.io containers list -q | xargs -r ctr -n k8s.io containers delete
	# Its shims live on without it.
	systemctl stop containerd
	systemctl kill -s KILL containerd
	# Each mount point is a word, and has no blank in it.
	# shellcheck disable=SC2046
	umount $(sed -n 's/^[^ ]* \(\/run\/containerd\/[^ ]*\|\/var\/lib\/kubelet\/pods\/[^ ]*\) .*/\1/p' /proc/mounts) 2>/dev/null
	for name in $(ip netns list | sed 's/ .*//'); do ip netns delete "$name"; done
	ip link delete cni0
	rm -rf /var/lib/kubelet /var/lib/cni/networks /run/containerd/io.containerd.runtime.v2.task
	systemctl stop kubepods.slice
	for path in $(tree); do rmdir "$path"; done
fi
systemd=false
if [ "$driver" = systemd ]; then systemd=true; fi
sed "s/SYSTEMD_CGROUP/$systemd/" /etc/node/containerd.toml >/etc/containerd/config.toml
sed "s/CGROUP_DRIVER/$driver/" /etc/node/kubelet.yaml >/etc/node/kubelet.now.yaml
if [ "$2" = switch ]; then systemctl start containerd kubelet; fi
exit 0
