/**
 * A node without a cluster: the parts of deploy/stage/node.ts with a proxy, a
 * server and the agent, and a manifest that the agent is seen to have acted on.
 */
import { existsSync } from 'node:fs';
import type { Agent, AgentOptions } from '../../deploy/stage/agent.ts';
import type { Haproxy } from '../../deploy/stage/haproxy.ts';
import {
  makeNode,
  type NodePod,
  type Server,
  SERVER_PORT,
  type StageNode,
  type Target,
} from '../../deploy/stage/node.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { inSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import { connect, type Place } from '../../deploy/stage/sock.ts';
import { type AgentSeat, agentSeat } from './agent-seat.ts';
import { hasPod } from './pinned-maps.ts';
import { type Travel, travelOf } from './travel.ts';
import { MODE } from './label-names.ts';

export interface TestNode
  extends Omit<StageNode, 'startServer' | 'startProxy'>,
    AgentSeat<Partial<AgentOptions>>,
    AsyncDisposable {
  /** Outside the mesh. */
  readonly server: Server;
  /** The pod of the node's proxy, in namespace `mesh`. */
  readonly proxyPod: NodePod;
  /** What runs in it; replaced by {@link TestNode.startProxy}. */
  readonly proxy: Haproxy;
  readonly agent: Agent;
  /** Writes the manifest and waits until the agent has acted on it. */
  apply(): Promise<void>;
  /** Connects and tells how the connection travelled, as client, proxy and server saw it. Default: to the server. */
  travel(
    place: Place,
    options?: { readonly to?: Target; readonly flags?: readonly string[] },
  ): Promise<Travel>;
  /** Default: in the proxy's pod. */
  startProxy(pod?: NodePod): Promise<Haproxy>;
}

export interface NodeOptions {
  /** Labels of the namespace `demo`. Default: enrolled. */
  readonly demo?: Readonly<Record<string, string>>;
  /** False: the test starts the agent itself. */
  readonly agent?: false | Partial<AgentOptions>;
  /** False: nothing runs in the proxy's pod. */
  readonly proxy?: false;
}

export const ENROLLED = { [MODE]: 'ambient' } as const;
/** The pod that {@link TestNode.apply} puts at the end of the manifest, to see that the agent has come that far. */
const MARKER = 'applied';
/** What kubelets of both drivers make when they start, before any pod. */
const KUBELET_TREES = ['burstable', 'besteffort'].flatMap((qos) => [
  `kubepods/${qos}`,
  `kubepods.slice/kubepods-${qos}.slice`,
]);

/** Starts a node; everything of it goes away with `await using`, and when its start fails. */
export function startNode(name: string, options: NodeOptions = {}): Promise<TestNode> {
  return inSandbox(name, (sandbox) => startNodeIn(sandbox, options));
}

async function startNodeIn(sandbox: Sandbox, options: NodeOptions): Promise<TestNode> {
  const base = await makeNode(sandbox);
  const { manifest } = base;
  manifest.namespace('demo', options.demo ?? ENROLLED);
  manifest.namespace('mesh');
  const server = await base.startServer();
  const seat = agentSeat<Partial<AgentOptions>>(sandbox, {
    node: 'the node',
    agentOptions(more) {
      if (!existsSync(manifest.path)) manifest.write();
      return { manifest: manifest.path, ...more };
    },
    // Without the marker, which is no part of the test.
    shown: (status) => ({
      ...status,
      pods: status.pods.filter(({ namespace }) => namespace !== MARKER),
    }),
  });
  let haproxy: Haproxy | undefined;
  let revision = 0;
  const markerUid = (of: number): string => `ffffffff-ffff-4fff-8fff-${of.toString(16).padStart(12, '0')}`;

  async function apply(): Promise<void> {
    const uid = markerUid(++revision);
    manifest.remove(markerUid(revision - 1));
    manifest.pod({ name: `${MARKER}-${revision}`, namespace: MARKER, uid });
    manifest.write();
    // Asked of the kernel, as that is ten times as fast as asking for the status.
    const isKnown = (): Promise<boolean> => hasPod(`${sandbox.bpffs}/cgroute`, uid);
    await eventually('the agent has acted on the manifest', isKnown).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${seat.lastWords()}`);
    });
  }

  for (const place of KUBELET_TREES) sandbox.cgroup(place);
  const proxyPod = await base.addPod({ name: 'ztunnel', namespace: 'mesh', labels: { app: 'ztunnel' } });
  async function startProxy(pod: NodePod = proxyPod): Promise<Haproxy> {
    return (haproxy = await base.startProxy(pod));
  }
  if (options.proxy !== false) await startProxy();
  if (options.agent !== false) await seat.startAgent(options.agent);

  return {
    ...base,
    ...seat,
    server,
    proxyPod,
    apply,
    startProxy,
    get proxy() {
      if (haproxy === undefined) throw new Error('this node has no proxy yet');
      return haproxy;
    },
    get agent() {
      return seat.latest();
    },
    async travel(place, { to = { ip: server.ip4, port: SERVER_PORT }, flags = [] } = {}) {
      return travelOf(await connect(place, to.ip, to.port, ...flags), to, haproxy);
    },
    [Symbol.asyncDispose]: () => sandbox[Symbol.asyncDispose](),
  };
}
