/**
 * Nodes of a real API server on one machine: each with its kubelet, its agent,
 * and its HAProxy as the container of a ztunnel pod, all on one network.
 */
import { once } from 'node:events';
import { globSync, readFileSync, writeFileSync } from 'node:fs';
import { type IncomingMessage, get } from 'node:http';
import { patienceMs } from '../../deploy/stage/deadline.ts';
import { type Agent, type AgentOptions, cgroute, startAgent } from '../../deploy/stage/agent.ts';
import { HAPROXY_PORTS, haproxyCommand, proxiedConnections } from '../../deploy/stage/haproxy.ts';
import { type Cluster, startCluster } from './kube.ts';
import type { ServiceAccount } from './kube-account.ts';
import { type Pod, namespaceObject, podObject } from './kube-objects.ts';
import type { ServerOptions } from './kube-server.ts';
import type { CgroupDriver } from './kubelet-cgroups.ts';
import { type Kubelet, type KubeletOptions, startKubelet } from './kubelet.ts';
import type { PodOnNode } from './kubelet-view.ts';
import { type Network, type NetworkHost, makeNetwork } from '../../deploy/stage/netns.ts';
import { type MapEntry, type NodeStatus, type Travel, travelOf } from './node.ts';
import { eventually, listeningPorts, must } from '../../deploy/stage/process.ts';
import { type Sandbox, makeSandbox } from '../../deploy/stage/sandbox.ts';
import { type Connected, type Listener, type Place, connect, listen } from '../../deploy/stage/sock.ts';

/** What the agent's DaemonSet may do. */
export const AGENT_RULES = [
  { apiGroups: [''], resources: ['pods', 'namespaces'], verbs: ['list', 'watch'] },
  { apiGroups: [''], resources: ['pods/status'], verbs: ['patch'] },
  { apiGroups: [''], resources: ['events'], verbs: ['create'] },
];

/** On this port the server listens, and so does every pod of {@link servingPod}. */
export const SERVER_PORT = 8080;
const PROXY_NAMESPACE = 'istio-system';

export interface Target {
  readonly ip: string;
  readonly port: number;
}

export interface MeshAgentOptions extends Partial<AgentOptions> {
  /** The text of its configuration file. */
  readonly config?: string;
  /** Default: one of the mesh's service account, straight to the API server. */
  readonly kubeconfig?: string;
}

export interface MeshNode {
  readonly name: string;
  readonly kubelet: Kubelet;
  readonly agent: Agent;
  /** A process of the host, in the node's network. */
  readonly hostPlace: Place;
  /** Starts the agent and waits until it is ready. */
  startAgent(options?: MeshAgentOptions): Promise<Agent>;
  /** Starts the agent and waits for nothing. */
  launchAgent(options?: MeshAgentOptions): Agent;
  /** `cgroute cleanup`: nothing is pinned any more. */
  cleanUp(): Promise<void>;
  /** Runs a ztunnel pod of that name on the node, and waits until it is ready. */
  startProxy(name: string): Promise<PodOnNode>;
  /** Plays the readiness probe of a ztunnel pod: ready as soon as it listens. */
  probe(proxy: PodOnNode): Promise<void>;
  status(): Promise<NodeStatus>;
  /** Waits until the status is so. */
  until(
    what: string,
    check: (status: NodeStatus) => unknown,
    options?: { readonly ownMs?: number },
  ): Promise<NodeStatus>;
  /** What a pinned map of the kernel holds, as bpftool reads it by the map's own BTF. */
  entries(map: string): Promise<readonly MapEntry[]>;
  /** The agent's HTTP: `healthz`, `readyz`, `metrics`. */
  http(path: string): Promise<{ readonly status: number; readonly text: string }>;
  /** The values by name and labels, as they stand in the text of `/metrics`. */
  metrics(): Promise<ReadonlyMap<string, number>>;
  /** Connects and tells how the connection travelled, by this node's proxy or without. Default: to the server. */
  travel(from: Place, to?: Target): Promise<Travel>;
}

export interface Mesh extends AsyncDisposable {
  readonly sandbox: Sandbox;
  readonly cluster: Cluster;
  readonly network: Network;
  readonly account: ServiceAccount;
  /** Outside the mesh, on {@link SERVER_PORT}. */
  readonly server: NetworkHost & Target & { readonly listener: Listener };
  addNode(options: MeshNodeOptions): Promise<MeshNode>;
}

export interface MeshNodeOptions extends Pick<KubeletOptions, 'range' | 'reuse' | 'statusDelayMs'> {
  readonly name: string;
  readonly driver?: CgroupDriver;
  /** False: the test starts the agent itself. */
  readonly agent?: false | MeshAgentOptions;
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
    const [cluster, network] = await Promise.all([startCluster(sandbox, options), makeNetwork(sandbox)]);
    stack.use(cluster);
    const account = await cluster.serviceAccount({ name: 'agent', rules: AGENT_RULES });
    await cluster.apply(namespaceObject(PROXY_NAMESPACE));
    const host = await network.addHost('server');
    const listener = await listen(sandbox, { netns: host.netns }, 'serve', '*', [SERVER_PORT], '--dual');
    const mesh = {
      sandbox,
      cluster,
      network,
      account,
      server: { ...host, ip: host.ip4, port: SERVER_PORT, listener },
    };
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
  const roots = { cgroupRoot: `${sandbox.cgroupRoot}/${name}`, bpffsRoot: `${sandbox.bpffs}/${name}` };
  const proxyLog = sandbox.file(`${name}-haproxy.log`);
  writeFileSync(proxyLog, '');
  let agent: Agent | undefined;
  let configs = 0;

  function launchAgent({
    config,
    kubeconfig = mesh.account.kubeconfig(),
    args = [],
    ...more
  }: MeshAgentOptions = {}): Agent {
    const file = sandbox.file(`${name}-${++configs}.yaml`);
    if (config !== undefined) writeFileSync(file, config);
    return (agent = startAgent(sandbox, {
      ...roots,
      node: name,
      ...more,
      args: [...(config === undefined ? [] : ['--config', file]), ...args],
      env: { KUBECONFIG: kubeconfig, ...more.env },
    }));
  }

  async function startOne(more?: MeshAgentOptions): Promise<Agent> {
    const started = launchAgent(more);
    await started.ready();
    return started;
  }

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

  async function status(): Promise<NodeStatus> {
    const { code, stdout, stderr } = await cgroute(sandbox, ['status', '-o', 'json'], roots);
    if (code !== 0 && code !== 3) throw new Error(`cgroute status exited with ${code}\n${stderr}`);
    return JSON.parse(stdout) as NodeStatus;
  }

  async function entries(map: string): Promise<readonly MapEntry[]> {
    const pin = globSync(`${roots.bpffsRoot}/*/maps/${map}`)[0] ?? `${roots.bpffsRoot}/${map}`;
    const dump = JSON.parse(
      await must({ cmd: 'bpftool', args: ['-j', 'map', 'dump', 'pinned', pin] }),
    ) as readonly { readonly formatted: MapEntry }[];
    return dump.map(({ formatted }) => formatted);
  }

  const running = (): Agent => {
    if (agent === undefined) throw new Error(`${name} has no agent yet`);
    return agent;
  };

  async function http(path: string): Promise<{ readonly status: number; readonly text: string }> {
    const address = String((await running().logged('serving'))['http']);
    // A connection of its own each time: a kept one may end in the moment that it is used.
    const request = get(`http://${address}/${path}`, { agent: false, timeout: patienceMs() });
    request.once('timeout', () => request.destroy(new Error(`no answer from /${path}`)));
    const [response] = (await once(request, 'response')) as [IncomingMessage];
    return { status: response.statusCode ?? 0, text: (await response.toArray()).join('') };
  }

  if (wanted !== false) await startOne(wanted);
  if (proxy !== false) await startProxy(`ztunnel-${name}`);
  return {
    name,
    kubelet,
    startProxy,
    probe,
    status,
    entries,
    http,
    launchAgent,
    async cleanUp() {
      const { code, stderr } = await cgroute(sandbox, ['cleanup'], { bpffsRoot: roots.bpffsRoot });
      if (code !== 0) throw new Error(`cgroute cleanup exited with ${code}\n${stderr}`);
    },
    startAgent: startOne,
    get agent() {
      return running();
    },
    hostPlace: { cgroup: sandbox.cgroup(`${name}/host`), netns: host.netns },
    async until(what, check, options) {
      let now = await status();
      await eventually(
        `${name}: ${what}`,
        async () => check(now) || check((now = await status())),
        options,
      ).catch((error: unknown) => {
        const text = JSON.stringify(
          { ...now, capabilities: undefined, host: undefined },
          (key, value: unknown) => (key === 'connections' ? undefined : value),
          1,
        );
        throw new Error(`${String(error)}\n${text}\n${running().running.stdout.slice(-10).join('\n')}`);
      });
      return now;
    },
    async metrics() {
      const lines = (await http('metrics')).text
        .split('\n')
        .filter((line) => line !== '' && !line.startsWith('#'));
      return new Map(
        lines.map((line) => [
          line.slice(0, line.lastIndexOf(' ')),
          Number(line.slice(line.lastIndexOf(' ') + 1)),
        ]),
      );
    },
    async travel(from, to = server) {
      const connected: Connected = await connect(from, to.ip, to.port);
      return travelOf(connected, to, {
        connections: () => proxiedConnections(readFileSync(proxyLog, 'utf8').split('\n')),
      });
    },
  };
}
