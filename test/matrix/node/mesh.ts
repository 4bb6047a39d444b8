/** A mesh on the real node: the agent as deploy/cgroute.yaml has it, HAProxy as the node's proxy, a server, and clients. */
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { parseAllDocuments } from 'yaml';
import {
  type ProxiedConnection,
  HAPROXY_PORTS,
  haproxyCommand,
  proxiedConnections,
} from '../../../deploy/stage/haproxy.ts';
import {
  type KubeObject,
  type Pod,
  type PodSpec,
  type Texts,
  namespaceObject,
  podObject,
} from '../../harness/kube-objects.ts';
import { type Travel, travelOf } from '../../harness/travel.ts';
import type { NodeStatus } from '../../../deploy/stage/node-status.ts';
import type { Connected } from '../../../deploy/stage/sock.ts';
import { NODE, type RealNode } from './node.ts';
import { POD_IMAGE } from './root.ts';
import { MODE } from '../../harness/label-names.ts';

export const ENROLLED: Texts = { [MODE]: 'ambient' };
/** The namespace of the clients; a check labels it. */
export const SHOP = 'shop';
/** Out of the mesh for ever. */
export const PLAIN = 'plain';
export const AGENT = { namespace: 'kube-system', name: `cgroute-${NODE}` } as const;
const PROXY = { namespace: 'istio-system', name: 'ztunnel' } as const;
const TOOLBOX = { namespace: PLAIN, name: 'toolbox' } as const;
const SERVER = { namespace: PLAIN, name: 'server' } as const;
export const SERVER_PORT = 8080;

/** Of a pod. */
export interface Place {
  readonly namespace: string;
  readonly name: string;
}
type Workload = KubeObject & {
  readonly spec: {
    readonly template: {
      readonly metadata: { readonly labels: Texts; readonly annotations: Texts };
      readonly spec: PodSpec & { readonly volumes: readonly unknown[] };
    };
  };
};

export interface NodeMesh {
  readonly node: RealNode;
  readonly server: { readonly ip: string; readonly port: number };
  /** Runs a command on the host, as a service of systemd; outside /bin by its whole path. */
  host(...command: readonly string[]): Promise<string>;
  /** Connects from a pod's container and tells how it travelled. Default: to the server. */
  travel(from: Place, to?: { readonly ip: string; readonly port: number }): Promise<Travel>;
  /** The same of a process of the host. */
  hostTravel(to: { readonly ip: string; readonly port: number }): Promise<Travel>;
  /** The same of a connection that was made already, as the socket tool told of it. */
  travelled(connected: string, to?: { readonly ip: string; readonly port: number }): Promise<Travel>;
  status(): Promise<NodeStatus>;
  proxied(): Promise<readonly ProxiedConnection[]>;
  /** Labels of a namespace, or of a pod in it; `null` takes one away. */
  label(namespace: string, labels: Readonly<Record<string, string | null>>, pod?: string): Promise<void>;
  /** What agent and proxy have logged last, as far as it is to be had. */
  lastWords(): Promise<string>;
  /** Starts an agent's pod, as the controller of DaemonSets would. */
  startAgent(): Promise<Pod>;
}

function objects(): readonly KubeObject[] {
  const text = readFileSync(resolve(import.meta.dirname, '../../../deploy/cgroute.yaml'), 'utf8');
  return parseAllDocuments(text)
    .map((document) => document.toJS() as KubeObject | null)
    .filter((object) => object !== null);
}

/** A pod of one container that runs in the test's own image. */
export function pod(
  place: Place,
  command: readonly string[] | undefined,
  spec: Partial<PodSpec> = {},
  container: Readonly<Record<string, unknown>> = {},
): Pod {
  const main = {
    name: 'main',
    image: POD_IMAGE,
    imagePullPolicy: 'Never',
    ...(command === undefined ? {} : { command }),
    ...container,
  };
  return podObject(place.name, {
    node: NODE,
    namespace: place.namespace,
    spec: { automountServiceAccountToken: false, enableServiceLinks: false, containers: [main], ...spec },
  });
}

/** Its first act is to connect; what came of it is its termination message. */
export function firstAct(place: Place, to: { readonly ip: string; readonly port: number }): Pod {
  const command = [
    'sh',
    '-c',
    'exec >/dev/termination-log; exec sock connect "$@"',
    'sh',
    '--timeout',
    '30000',
    to.ip,
    String(to.port),
  ];
  const init = { name: 'init', image: POD_IMAGE, imagePullPolicy: 'Never', command };
  return pod(place, command, { restartPolicy: 'Never', initContainers: [init] });
}

/** What its containers have said at their end, those before the start first. */
export function termination({ status }: Pod): readonly string[] {
  const statuses = [status?.['initContainerStatuses'], status?.containerStatuses].flatMap(
    (list) =>
      (list ?? []) as readonly {
        readonly state?: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
      }[],
  );
  return statuses.map(({ state }) => String(state?.['terminated']?.['message'] ?? JSON.stringify(state)));
}

/**
 * Starts all of it; the namespace of the clients is not enrolled yet.
 *
 * What controllers would do is done here: the DaemonSet's pod, and the volume
 * with its account's token, which the API server's plugin adds elsewhere.
 */
export async function startMesh(node: RealNode): Promise<NodeMesh> {
  const { cluster, sandbox } = node;
  const at = ({ namespace, name }: Place): string => `/api/v1/namespaces/${namespace}/pods/${name}`;

  async function startAgent(): Promise<Pod> {
    const daemonSet = await cluster.api.get<Workload>(
      '/apis/apps/v1/namespaces/kube-system/daemonsets/cgroute',
    );
    const { metadata, spec } = daemonSet.spec.template;
    const owner = {
      apiVersion: 'apps/v1',
      kind: 'DaemonSet',
      name: daemonSet.metadata.name,
      uid: daemonSet.metadata.uid,
      controller: true,
    };
    const token = {
      name: 'kube-api-access',
      projected: {
        sources: [
          { serviceAccountToken: { path: 'token', expirationSeconds: 3607 } },
          { configMap: { name: 'kube-root-ca.crt', items: [{ key: 'ca.crt', path: 'ca.crt' }] } },
          {
            downwardAPI: {
              items: [{ path: 'namespace', fieldRef: { apiVersion: 'v1', fieldPath: 'metadata.namespace' } }],
            },
          },
        ],
      },
    };
    const mount = {
      name: token.name,
      mountPath: '/var/run/secrets/kubernetes.io/serviceaccount',
      readOnly: true,
    };
    const containers = spec.containers.map((container) => ({
      ...container,
      volumeMounts: [...((container as { volumeMounts?: readonly unknown[] }).volumeMounts ?? []), mount],
    }));
    const [started] = await node.start({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: {
        ...AGENT,
        labels: metadata.labels,
        annotations: metadata.annotations,
        ownerReferences: [owner],
      },
      spec: { ...spec, nodeName: NODE, containers, volumes: [...spec.volumes, token] },
    });
    if (started === undefined) throw new Error('the agent has not started');
    return started;
  }

  const host: NodeMesh['host'] = (...command) => asService(node, ['--pipe', '--wait'], ...command);
  const proxied: NodeMesh['proxied'] = async () =>
    proxiedConnections((await node.logs(PROXY.namespace, PROXY.name, 'main')).split('\n'));

  const travelled: NodeMesh['travelled'] = async (text, to = server) => {
    const connected = JSON.parse(text) as Connected;
    let connections: readonly ProxiedConnection[] = [];
    if (connected.ok && !connected.reply.endsWith(` ${connected.local}`)) {
      await node.until(
        `the proxy tells of ${connected.local}`,
        async () => (connections = await proxied()).some(({ client }) => client === connected.local),
        20_000,
      );
    }
    return travelOf(connected, to, { connections: () => [...connections] });
  };

  const configuration = readFileSync(haproxyCommand(sandbox, 'haproxy').at(-1) ?? '', 'utf8');
  const configMap = (place: Place, data: Texts): KubeObject => ({
    apiVersion: 'v1',
    kind: 'ConfigMap',
    metadata: place,
    data,
  });
  await cluster.apply(
    namespaceObject(PLAIN),
    namespaceObject(SHOP),
    namespaceObject(PROXY.namespace),
    namespaceObject(AGENT.namespace),
  );
  await cluster.apply(
    ...objects(),
    configMap({ namespace: AGENT.namespace, name: 'kube-root-ca.crt' }, { 'ca.crt': cluster.endpoint.ca }),
    configMap({ namespace: PROXY.namespace, name: 'haproxy' }, { 'haproxy.cfg': configuration }),
  );
  const proxy = pod(
    PROXY,
    ['haproxy', '-db', '-f', '/etc/haproxy/haproxy.cfg'],
    {
      hostNetwork: true,
      volumes: [{ name: 'configuration', configMap: { name: 'haproxy' } }],
    },
    {
      readinessProbe: { tcpSocket: { port: HAPROXY_PORTS[0] }, periodSeconds: 1 },
      volumeMounts: [{ name: 'configuration', mountPath: '/etc/haproxy' }],
    },
  );
  const [, [found]] = await Promise.all([
    startAgent(),
    node.start(
      pod(SERVER, ['sock', 'serve', '0.0.0.0', String(SERVER_PORT)]),
      pod(
        TOOLBOX,
        undefined,
        { hostPID: true, hostNetwork: true },
        { securityContext: { privileged: true } },
      ),
      { ...proxy, metadata: { ...proxy.metadata, labels: { app: 'ztunnel' } } },
    ),
  ]);
  const server = { ip: found?.status?.podIP ?? '', port: SERVER_PORT };

  return {
    node,
    server,
    host,
    travelled,
    proxied,
    startAgent,
    travel: async (from, to = server) =>
      travelled(
        await node.exec(from.namespace, from.name, 'main', 'sock', 'connect', to.ip, String(to.port)),
        to,
      ),
    hostTravel: async (to) =>
      travelled(await host('/usr/local/bin/sock', 'connect', to.ip, String(to.port)), to),
    async lastWords() {
      const logs = [
        [AGENT, 'agent'],
        [PROXY, 'main'],
      ] as const;
      const texts = await Promise.all(
        logs.map(async ([{ namespace, name }, container]) => {
          const text = await node.logs(namespace, name, container).catch((error: unknown) => String(error));
          return `${namespace}/${name}:\n${text.trim().split('\n').slice(-10).join('\n')}`;
        }),
      );
      return texts.join('\n');
    },
    status: async () =>
      JSON.parse(
        await node.exec(AGENT.namespace, AGENT.name, 'agent', 'cgroute', 'status', '-o', 'json'),
      ) as NodeStatus,
    async label(namespace, labels, name) {
      await cluster.api.patch(
        name === undefined ? `/api/v1/namespaces/${namespace}` : at({ namespace, name }),
        'merge-patch+json',
        { metadata: { labels } },
      );
    },
  };
}

/** Runs a command on the host as a service of systemd, out of the toolbox's namespaces and cgroup. */
function asService(node: RealNode, flags: readonly string[], ...command: readonly string[]): Promise<string> {
  const start = ['nsenter', '-t', '1', '-m', '-n', 'systemd-run', '--quiet', ...flags];
  return node.exec(TOOLBOX.namespace, TOOLBOX.name, 'main', ...start, ...command);
}

/** Takes all pods off the node, and gives it the other cgroup driver; it is the same boot. */
export async function switchDriver({ node }: NodeMesh, driver: 'cgroupfs' | 'systemd'): Promise<void> {
  const { cluster } = node;
  const list = async (): Promise<readonly Place[]> => {
    const { items } = await cluster.api.get<{ items: readonly Pod[] }>('/api/v1/pods');
    return items.map(({ metadata: { namespace = '', name } }) => ({ namespace, name }));
  };
  const isToolbox = ({ namespace, name }: Place): boolean =>
    namespace === TOOLBOX.namespace && name === TOOLBOX.name;
  await node.remove(...(await list()).filter((place) => !isToolbox(place)));
  await asService(node, ['--no-block'], '/usr/local/sbin/cgroup-driver', driver, 'switch');
  await node.until('the kubelet stops', async () => (await node.driver()) === undefined);
  await cluster.api.request(
    'DELETE',
    `/api/v1/namespaces/${TOOLBOX.namespace}/pods/${TOOLBOX.name}?gracePeriodSeconds=0`,
  );
  await node.until(`the kubelet is back with ${driver}`, async () => (await node.driver()) === driver);
}
