/**
 * A node without a cluster: pods in cgroups and network namespaces of their own,
 * HAProxy pods as the node's ztunnel, a server to connect to, and the manifest
 * file that stands for the API server.
 */
import { randomUUID } from 'node:crypto';
import type { ProxiedConnection } from '../stage/haproxy.ts';
import { makeNode, type NodePod } from '../stage/node.ts';
import type { CgroupStyle } from '../stage/pod-cgroup.ts';
import { eventually } from '../stage/process.ts';
import type { Sandbox } from '../stage/sandbox.ts';
import { type Connected, SOCK } from '../stage/sock.ts';

export const NODE_NAME = 'node-a';

type Labels = Readonly<Record<string, string>>;

export interface PodOptions {
  readonly namespace: string;
  readonly name: string;
  /** How its cgroup is named: by which driver. */
  readonly style: CgroupStyle;
  readonly labels?: Labels;
  readonly annotations?: Labels;
}

/** One connection from a pod to the server. */
export interface Visit {
  readonly connected: Connected;
  /** The address that the server saw; undefined when the connection failed. */
  readonly saw: string | undefined;
}

/** A pod whose process lives throughout and connects to the server when told. */
export interface Client extends NodePod {
  visit(): Promise<Visit>;
  /** Its process is still the one that was started at first. */
  isAlive(): boolean;
}

export interface Proxy extends NodePod {
  /** The connection as the proxy saw it. */
  saw(visit: Visit): Promise<ProxiedConnection>;
  /** How many connections it has seen. */
  count(): number;
}

export interface DemoNode {
  /** What the pods connect to, `10.77.0.80:8080`. */
  readonly server: string;
  /** The path of the manifest file; it is there after the first {@link DemoNode.label}. */
  readonly manifest: string;
  addClient(options: PodOptions): Promise<Client>;
  addProxy(options: PodOptions): Promise<Proxy>;
  /**
   * Sets a label, or removes it when the value is undefined, and writes the
   * manifest. Returns the kubectl command that does the same in a cluster.
   */
  label(object: `namespace/${string}` | NodePod, key: string, value: string | undefined): string;
  /** Says in the manifest that the first pod is not ready, and that the second is. */
  replace(old: NodePod, by: NodePod): void;
}

/** Of `10.0.0.1:80` the address. */
function addressOf(endpoint: string): string {
  return endpoint.slice(0, endpoint.lastIndexOf(':'));
}

function withLabel(labels: Labels, key: string, value: string | undefined): Labels {
  const { [key]: _, ...others } = labels;
  return value === undefined ? others : { ...others, [key]: value };
}

/** Makes the node with its server. All of it goes away with the sandbox. */
export async function makeDemoNode(sandbox: Sandbox): Promise<DemoNode> {
  const node = await makeNode(sandbox);
  const { manifest, network } = node;
  const server = await node.startServer({
    at: { ip4: '10.77.0.80', ip6: 'fd77::80' },
    address: '0.0.0.0',
    flags: [],
  });
  const namespaceLabels = new Map<string, Labels>();
  const podLabels = new Map<string, Labels>();
  let last = 1;

  async function addPod(options: PodOptions, ready: boolean): Promise<NodePod> {
    const { namespace, name, style, labels = {}, annotations = {} } = options;
    const number = ++last;
    const pod = await node.addPod({
      name,
      namespace,
      style,
      uid: randomUUID(),
      host: await network.addHost(name, { ip4: `10.77.0.${number}`, ip6: `fd77::${number}` }),
      labels,
      annotations,
      created: `${new Date().toISOString().slice(0, -5)}Z`, // whole seconds, as the API has them
      node: NODE_NAME,
      phase: 'Running',
      ready,
    });
    if (!namespaceLabels.has(namespace)) {
      namespaceLabels.set(namespace, {});
      manifest.namespace(namespace);
    }
    podLabels.set(pod.uid, labels);
    return pod;
  }

  return {
    server: `${server.ip}:${server.port}`,
    manifest: manifest.path,

    async addClient(options) {
      const pod = await addPod(options, true);
      const loop = 'while read -r address port; do "$0" connect "$address" "$port"; done';
      const running = sandbox.spawn({
        cmd: 'sh',
        args: ['-c', loop, SOCK],
        ...pod.place,
      });
      let isAlive = true;
      void running.exit.then(() => (isAlive = false));
      const once = async (): Promise<Visit> => {
        running.write(`${server.ip} ${server.port}\n`);
        const connected = await running.json<Connected>();
        // The server's own words: `server LOCAL PEER`.
        const peer = connected.ok ? connected.reply.split(' ')[2] : undefined;
        return { connected, saw: peer === undefined ? undefined : addressOf(peer) };
      };
      let previous: Promise<unknown> = Promise.resolve();
      return {
        ...pod,
        isAlive: () => isAlive,
        visit() {
          const visit = previous.then(once);
          previous = visit.catch(() => {});
          return visit;
        },
      };
    },

    async addProxy(options) {
      // Not ready before it listens.
      const pod = await addPod({ ...options, labels: { app: 'ztunnel', ...options.labels } }, false);
      const haproxy = await node.startProxy(pod, { addresses: ['0.0.0.0'] });
      return {
        ...pod,
        count: () => haproxy.connections().length,
        saw: ({ connected }) =>
          eventually(`${pod.name} has logged the connection`, () =>
            haproxy.connections().findLast(({ client }) => connected.ok && client === connected.local),
          ),
      };
    },

    label(object, key, value) {
      let where: string;
      if (typeof object === 'string') {
        const name = object.slice('namespace/'.length);
        const labels = withLabel(namespaceLabels.get(name) ?? {}, key, value);
        namespaceLabels.set(name, labels);
        manifest.namespace(name, labels);
        where = `label namespace ${name}`;
      } else {
        const labels = withLabel(podLabels.get(object.uid) ?? {}, key, value);
        podLabels.set(object.uid, labels);
        manifest.change(object.uid, { labels });
        where = `-n ${object.namespace} label pod ${object.name}`;
      }
      manifest.write();
      return `kubectl ${where} ${key}${value === undefined ? '-' : `=${value}`}`;
    },

    replace(old, by) {
      if (old.uid !== by.uid) manifest.change(old.uid, { ready: false });
      manifest.change(by.uid, { ready: true });
      manifest.write();
    },
  };
}
