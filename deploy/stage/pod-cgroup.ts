/** Where kubelets and runtimes put a pod's containers, by cgroup driver. */
import { createHash } from 'node:crypto';

/** Paths below the watched root. */
const STYLES = {
  cgroupfs: (uid: string, id: string) => `kubepods/burstable/pod${uid}/${id}`,
  'cgroupfs-guaranteed': (uid: string, id: string) => `kubepods/pod${uid}/${id}`,
  systemd: (uid: string, id: string) =>
    `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${slice(uid)}.slice/cri-containerd-${id}.scope`,
  crio: (uid: string, id: string) => `kubepods.slice/kubepods-pod${slice(uid)}.slice/crio-${id}.scope`,
  docker: (uid: string, id: string) =>
    `kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod${slice(uid)}.slice/docker-${id}.scope`,
  'kind-cgroupfs': (uid: string, id: string) =>
    `docker/${containerId('kind')}/kubepods/besteffort/pod${uid}/${id}`,
  'kind-systemd': (uid: string, id: string) =>
    `system.slice/docker-${containerId('kind')}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod${slice(uid)}.slice/cri-containerd-${id}.scope`,
  joined: (uid: string, id: string) => `kubepods-besteffort-pod${slice(uid)}.slice:cri-containerd:${id}`,
} as const;

export type CgroupStyle = keyof typeof STYLES;
export const CGROUP_STYLES = Object.keys(STYLES) as readonly CgroupStyle[];

function slice(uid: string): string {
  return uid.replaceAll('-', '_');
}

/** 64 hex digits, the same for the same text. */
export function containerId(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}

/** The path of a container's cgroup below the watched root. */
export function containerPath(style: CgroupStyle, uid: string, id: string): string {
  return STYLES[style](uid, id);
}

let uids = 0;

/** A UID that no other pod of this process has. */
export function newUid(): string {
  return `00000000-0000-4000-8000-${(++uids).toString(16).padStart(12, '0')}`;
}
