/** Pods for the agent to map, without networks: cgroups as runtimes make them, and a manifest that has them. */
import { makeManifest, type Manifest } from '../../deploy/stage/manifest.ts';
import { ENROLLED } from '../harness/node.ts';
import { containerId, containerPath, newUid } from '../../deploy/stage/pod-cgroup.ts';
import type { Cgroup } from '../../deploy/stage/cgroup.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';

export interface AgentPods {
  readonly manifest: Manifest;
  readonly uids: readonly string[];
  /** Where a container of the pod will have its cgroup; another one each time. */
  newContainer(uid: string): string;
  /** Makes a container's cgroup, and the pod's where it is not there. */
  startContainer(uid: string): Cgroup;
}

/** Lists `count` enrolled pods of one namespace in a manifest, and writes it. None has a cgroup yet. */
export function makeAgentPods(sandbox: Sandbox, count: number): AgentPods {
  const manifest = makeManifest(sandbox.file('pods.yaml'));
  manifest.namespace('bench', ENROLLED);
  const uids = Array.from({ length: count }, newUid);
  for (const [i, uid] of uids.entries()) {
    manifest.pod({
      name: `pod-${i}`,
      namespace: 'bench',
      uid,
      ips: [`10.78.${i >> 8}.${i & 255}`],
      labels: { app: `app-${i % 10}` },
      phase: 'Running',
    });
  }
  manifest.write();
  let containers = 0;
  const newContainer = (uid: string): string =>
    containerPath('systemd', uid, containerId(`${uid} ${++containers}`));
  return { manifest, uids, newContainer, startContainer: (uid) => sandbox.cgroup(newContainer(uid)) };
}
