/** The names that a kubelet and its runtime give to cgroups, for both drivers (kubernetes/pkg/kubelet/cm). */
import type { PodSpec } from './kube-objects.ts';

export type CgroupDriver = 'cgroupfs' | 'systemd';
export type QosClass = 'guaranteed' | 'burstable' | 'besteffort';

/** kubernetes/pkg/apis/core/v1/helper/qos: by the CPU and memory of all containers. */
export function qosOf(spec: PodSpec): QosClass {
  const containers = [...spec.containers, ...(spec.initContainers ?? [])];
  const asks = containers.map(({ resources = {} }) => {
    const { limits = {}, requests = {} } = resources;
    const names = ['cpu', 'memory'];
    return {
      some: names.some((name) => limits[name] !== undefined || requests[name] !== undefined),
      all: names.every(
        (name) => limits[name] !== undefined && (requests[name] ?? limits[name]) === limits[name],
      ),
    };
  });
  if (!asks.some(({ some }) => some)) return 'besteffort';
  return asks.every(({ all }) => all) ? 'guaranteed' : 'burstable';
}

/** What a kubelet makes when it starts. Paths are below its root. */
export function podTrees(driver: CgroupDriver): string[] {
  const tree = driver === 'systemd' ? 'kubepods.slice' : 'kubepods';
  return (['burstable', 'besteffort'] as const).map((qos) =>
    driver === 'systemd' ? `${tree}/kubepods-${qos}.slice` : `${tree}/${qos}`,
  );
}

/** @param uid the pod's, or the hash of a static pod's configuration */
export function podCgroupPath(driver: CgroupDriver, qos: QosClass, uid: string): string {
  if (driver === 'cgroupfs') return qos === 'guaranteed' ? `kubepods/pod${uid}` : `kubepods/${qos}/pod${uid}`;
  // A dash in a slice's name means nesting to systemd.
  const pod = `pod${uid.replaceAll('-', '_')}.slice`;
  return qos === 'guaranteed'
    ? `kubepods.slice/kubepods-${pod}`
    : `kubepods.slice/kubepods-${qos}.slice/kubepods-${qos}-${pod}`;
}

/** As containerd's CRI plugin names a container's cgroup in its pod's. */
export function containerCgroupPath(driver: CgroupDriver, pod: string, id: string): string {
  return driver === 'cgroupfs' ? `${pod}/${id}` : `${pod}/cri-containerd-${id}.scope`;
}
