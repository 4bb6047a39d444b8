/** A node of a real API server without a kubelet: its pods have cgroups and no process, and the agent follows them. */
import type { Agent } from '../../deploy/stage/agent.ts';
import type { Cgroup } from '../../deploy/stage/cgroup.ts';
import { containerId, containerPath } from '../../deploy/stage/pod-cgroup.ts';
import { inSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import type { AgentSeat } from './agent-seat.ts';
import { type Cluster, startCluster } from './kube.ts';
import { type KubeAgentOptions, kubeAgentSeat } from './kube-agent.ts';
import type { ServerOptions } from './kube-server.ts';

export interface ClusterNode extends AgentSeat<KubeAgentOptions>, AsyncDisposable {
  readonly sandbox: Sandbox;
  readonly cluster: Cluster;
  readonly agent: Agent;
  /** Makes the cgroup of a container of a pod that the API server has. */
  startPod(namespace: string, name: string): Promise<Cgroup>;
}

/** Starts the API server; the node is `node-a`, and an agent has the admin's rights unless it is told another account. */
export function startClusterNode(name: string, options: ServerOptions = {}): Promise<ClusterNode> {
  return inSandbox(name, async (sandbox) => {
    const cluster = await startCluster(sandbox, options);
    const seat = kubeAgentSeat(sandbox, { node: 'node-a' }, () => cluster.kubeconfig);
    return {
      ...seat,
      sandbox,
      cluster,
      get agent() {
        return seat.latest();
      },
      async startPod(namespace, pod) {
        const { uid } = (await cluster.pod(namespace, pod))?.metadata ?? {};
        if (uid === undefined) throw new Error(`the API server has no pod ${namespace}/${pod}`);
        return sandbox.cgroup(containerPath('cgroupfs', uid, containerId(pod)));
      },
      [Symbol.asyncDispose]: () => sandbox[Symbol.asyncDispose](),
    };
  });
}
