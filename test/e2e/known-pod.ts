/** Whether a pod is known: by its cgroup, and by its address. */
import { writeFileSync } from 'node:fs';
import type { NodePod, PodOptions } from '../../deploy/stage/node.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { listen } from '../../deploy/stage/sock.ts';
import type { TestNode } from '../harness/node.ts';
import type { Travel } from '../harness/travel.ts';

/** A pod that is listed, runs, and answers on port 80. */
export async function serving(node: TestNode, options: PodOptions): Promise<NodePod> {
  const pod = await node.addPod(options);
  await listen(node.sandbox, { netns: pod.host.netns }, 'serve', '*', [80], '--dual');
  return pod;
}

/** Flags of an agent that learns by events alone: no sweep comes to its help while a test waits. */
export function sweepsRarely(node: TestNode): readonly string[] {
  const file = node.sandbox.file('rare-sweeps.yaml');
  writeFileSync(file, 'sweepSeconds: 3600\n');
  return ['--config', file];
}

/** How a connection of the host to a pod of {@link serving} travels. */
export const inbound = (node: TestNode, pod: NodePod): Promise<Travel> =>
  node.travel(node.hostPlace, { to: { ip: pod.host.ip4, port: 80 } });

export const hasEntry = async (node: TestNode, cgroup: bigint): Promise<boolean> =>
  (await node.knownCgroups()).includes(String(cgroup));

/** Waits until the agent has an entry for the latest cgroup of the pod. */
export const seen = (node: TestNode, pod: NodePod): Promise<unknown> =>
  eventually(`cgroup ${pod.cgroup.path} is known`, () => hasEntry(node, pod.cgroup.id));
