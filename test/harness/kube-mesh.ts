/**
 * Nodes of a real API server on one machine: each with its kubelet, its agent,
 * and its HAProxy as the container of a ztunnel pod, all on one network.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import type { Agent } from '../../deploy/stage/agent.ts';
import { HAPROXY_PORTS, haproxyCommand, proxiedConnections } from '../../deploy/stage/haproxy.ts';
import type { Network } from '../../deploy/stage/netns.ts';
import { makeNode, type Server, SERVER_PORT, type Target } from '../../deploy/stage/node.ts';
import { eventually, listeningPorts } from '../../deploy/stage/process.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import { connect, type Place } from '../../deploy/stage/sock.ts';
import type { AgentSeat } from './agent-seat.ts';
import { AGENT_RULES, type KubeAgentOptions, kubeAgentSeat } from './kube-agent.ts';
import { type Cluster, startCluster } from './kube.ts';
import type { ServiceAccount } from './kube-account.ts';
import { namespaceObject, type Pod, podObject } from './kube-objects.ts';
import type { ServerOptions } from './kube-server.ts';
import type { CgroupDriver } from './kubelet-cgroups.ts';
import { type Kubelet, type KubeletOptions, startKubelet } from './kubelet.ts';
import type { PodOnNode } from './kubelet-view.ts';
import { type Travel, travelOf } from './travel.ts';

const PROXY_NAMESPACE = 'istio-system';

export interface MeshNode extends AgentSeat<KubeAgentOptions> {
  readonly name: string;
  readonly kubelet: Kubelet;
  readonly agent: Agent;
  /** A process of the host, in the node's network. */
  readonly hostPlace: Place;
  /** A /proc as on that node: its PID 1 is in the node's network. */
  readonly procRoot: string;
  /** Runs a ztunnel pod of that name on the node, and waits until it is ready. */
  startProxy(name: string): Promise<PodOnNode>;
  /** Plays the readiness probe of a ztunnel pod: ready as soon as it listens. */
  probe(proxy: PodOnNode): Promise<void>;
  /** Connects and tells how the connection travelled, by this node's proxy or without. Default: to the server. */
  travel(from: Place, to?: Target): Promise<Travel>;
}

export interface Mesh extends AsyncDisposable {
  readonly sandbox: Sandbox;
  readonly cluster: Cluster;
  readonly network: Network;
  readonly account: ServiceAccount;
  /** Outside the mesh. */
  readonly server: Server;
  addNode(options: MeshNodeOptions): Promise<MeshNode>;
}

export interface MeshNodeOptions
  extends Pick<KubeletOptions, 'range' | 'reuse' | 'leaves' | 'statusDelayMs'> {
  readonly name: string;
  readonly driver?: CgroupDriver;
  /** False: the test starts the agent itself. */
  readonly agent?: false | KubeAgentOptions;
  /** False: no ztunnel runs yet. Default: `ztunnel-NODE` does. */
  readonly proxy?: false;
}

/** A pod whose one container serves on {@link SERVER_PORT}; its label `runtime` may say `runc` or `none`. */
export function servingPod(name: string, fields: Parameters<typeof podObject>[1]): Pod {
  return podObject(name, {
    command: ['sock', 'serve', '--quiet', '--dual', '*', String(SERVER_PORT)],
    ...fields,
  });
}

/** Starts etcd, the API server, a network and a server; nodes come with {@link Mesh.addNode}. */
export async function startMesh(name: string, options: ServerOptions = {}): Promise<Mesh> {
  const stack = new AsyncDisposableStack();
  try {
    const sandbox = stack.use(await makeSandbox(name));
    const [cluster, base] = await Promise.all([startCluster(sandbox, options), makeNode(sandbox)]);
    stack.use(cluster);
    const account = await cluster.serviceAccount({ name: 'agent', rules: AGENT_RULES });
    await cluster.apply(namespaceObject(PROXY_NAMESPACE));
    const mesh = { sandbox, cluster, network: base.network, account, server: await base.startServer() };
    return {
      ...mesh,
      addNode: (of) => addNode(mesh, of, stack),
      [Symbol.asyncDispose]: () => stack.disposeAsync(),
    };
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}

async function addNode(
  mesh: Omit<Mesh, 'addNode' | typeof Symbol.asyncDispose>,
  of: MeshNodeOptions,
  stack: AsyncDisposableStack,
): Promise<MeshNode> {
  const { sandbox, cluster, network, server } = mesh;
  const { name, agent: wanted, proxy, ...options } = of;
  const host = await network.addHost(name);
  const kubelet = stack.use(
    await startKubelet(cluster, sandbox, {
      ...options,
      node: name,
      root: name,
      network,
      host,
      runtime: ({ metadata: { labels = {} } }) =>
        labels['runtime'] === 'runc' || labels['runtime'] === 'none' ? labels['runtime'] : 'process',
    }),
  );
  const proxyLog = sandbox.file(`${name}-haproxy.log`);
  writeFileSync(proxyLog, '');
  const roots = {
    cgroupRoot: `${sandbox.cgroupRoot}/${name}`,
    bpffsRoot: `${sandbox.bpffs}/${name}`,
    procRoot: await sandbox.procIn(host.netns),
  };
  const seat = kubeAgentSeat(sandbox, { node: name, roots }, () => mesh.account.kubeconfig());

  async function probe(pod: PodOnNode): Promise<void> {
    await eventually(`${pod.name} listens`, () => {
      const pid = pod.worker.containers.get('main')?.current?.pid;
      const open = pid === undefined ? new Set() : listeningPorts(pid);
      return HAPROXY_PORTS.every((port) => open.has(port));
    });
    pod.setReady(true);
  }

  async function startProxy(proxyName: string): Promise<PodOnNode> {
    // Into a file, which holds what all of them said, over all their lives.
    const command = [
      'sh',
      '-c',
      'log=$1; shift; exec "$@" >>"$log" 2>&1',
      'sh',
      proxyLog,
      ...haproxyCommand(sandbox, `${name}-haproxy`),
    ];
    const container = {
      name: 'main',
      image: 'test.invalid/ztunnel',
      command,
      readinessProbe: { tcpSocket: { port: HAPROXY_PORTS[0] } },
    };
    const fields = {
      node: name,
      namespace: PROXY_NAMESPACE,
      labels: { app: 'ztunnel' },
      spec: { containers: [container] },
    };
    await cluster.apply(podObject(proxyName, fields));
    const pod = await kubelet.started(PROXY_NAMESPACE, proxyName);
    await probe(pod);
    return kubelet.running(PROXY_NAMESPACE, proxyName);
  }

  if (wanted !== false) await seat.startAgent(wanted);
  if (proxy !== false) await startProxy(`ztunnel-${name}`);
  return {
    ...seat,
    name,
    kubelet,
    startProxy,
    probe,
    get agent() {
      return seat.latest();
    },
    hostPlace: { cgroup: sandbox.cgroup(`${name}/host`), netns: host.netns },
    procRoot: roots.procRoot,
    async travel(from, to = server) {
      return travelOf(await connect(from, to.ip, to.port), to, {
        connections: () => proxiedConnections(readFileSync(proxyLog, 'utf8').split('\n')),
      });
    },
  };
}
