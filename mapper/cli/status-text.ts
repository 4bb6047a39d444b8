/** `status` for people: the node, its proxy, then a line for each pod. */
import { isFull } from '../connections/connection-room.ts';
import type { Connections, NodeStatus } from './status.ts';

const untouched = ({
  out,
  bypassed,
  proxy,
  local,
  excluded,
  unknownAllowed,
  noProxyAllowed,
}: Connections): number => out + bypassed + proxy + local + excluded + unknownAllowed + noProxyAllowed;

const denied = ({ unknownDenied, noProxyDenied, loopDenied, errorDenied }: Connections): number =>
  unknownDenied + noProxyDenied + loopDenied + errorDenied;

/** Columns as wide as their widest cell; the last is not padded. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = rows.reduce<number[]>(
    (all, row) => row.map((cell, i) => Math.max(all[i] ?? 0, cell.length)),
    [],
  );
  return rows
    .map((row) =>
      row
        .map((cell, i) => (i === row.length - 1 ? cell : cell.padEnd(widths[i] ?? 0)))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

export function statusText(status: NodeStatus): string {
  const { agent, proxy } = status;
  const head = table([
    ['node', status.node ?? 'unknown: nothing of cgroute is pinned here'],
    [
      'agent',
      agent.running
        ? `running, pid ${agent.pid ?? '?'}, version ${agent.version ?? '?'}${agent.ready ? '' : ', not ready'}`
        : agentDown(status),
    ],
    [
      'proxy',
      proxy.address === null
        ? 'none is ready'
        : [proxy.address, proxy.address6 === proxy.address ? null : proxy.address6, proxy.pod]
            .filter((part) => part !== null)
            .join('  '),
    ],
    ['kernel', kernelText(status)],
    ...status.sources.map(({ name, state, detail }) => [name, `${state}: ${detail}`]),
    ...status.maps
      .filter(isFull)
      .map(({ name, capacity }) => [
        'FULL',
        `${name} has no room for more than its ${capacity} entries; ${WITHOUT_ROOM[name] ?? 'see the log of the agent'}`,
      ]),
    ...leftToOthers(status),
  ]);
  const pods = table([
    [
      'NAMESPACE',
      'NAME',
      'VERDICT',
      'REASON',
      'IPS',
      'CGROUPS',
      'REDIRECTED',
      'INBOUND',
      'UNTOUCHED',
      'DENIED',
    ],
    ...status.pods.map((pod) => [
      pod.namespace,
      pod.name,
      pod.verdict,
      pod.reason,
      pod.ips.join(',') || '-',
      String(pod.cgroups.length),
      String(pod.connections.redirected),
      String(pod.connections.inboundRedirected),
      String(untouched(pod.connections)),
      String(denied(pod.connections)),
    ]),
  ]);
  const unknown =
    status.unknown.length === 0
      ? []
      : [
          `${status.unknown.length} cgroups belong to pods that nobody knows:`,
          ...status.unknown.map(({ id, path }) => `  ${id}  ${path ?? 'gone'}`),
        ];
  return [head, '', ...(status.pods.length === 0 ? ['no pods'] : [pods]), ...unknown, ''].join('\n');
}

/** So many pods are named, of those that one line is about. */
const NAMED = 5;

function leftToOthers({ pods }: NodeStatus): string[][] {
  const left = pods.filter(({ reason }) => reason === 'other-mesh');
  if (left.length === 0) return [];
  const names = left.slice(0, NAMED).map(({ namespace, name }) => `${namespace}/${name}`);
  const more = left.length > NAMED ? ` and ${left.length - NAMED} more` : '';
  return [
    [
      'OTHER MESH',
      `its annotation is on ${left.length} of the pods, which are left to it (takeOver: false): ${names.join(', ')}${more}`,
    ],
  ];
}

/** What becomes of connections. */
const WITHOUT_ROOM: Readonly<Record<string, string>> = {
  cgroup_info_map: 'pods that are not in it are treated as unknown: see maxPods',
  pod_info_map: 'pods that are not in it are treated as unknown: see maxPods',
  pod_ip_map: 'host processes reach pods that are not in it directly: see maxPods',
  connection_overflow_map: 'further connections are refused (errorDenied): see maxConnections',
  original_dst_map:
    'the proxy is not told the destination of further connections (handoffLost): is it stuck?',
};

function kernelText({ capabilities }: NodeStatus): string {
  if (capabilities === null) return 'its features could not be tried here';
  const missing = Object.entries(capabilities.features)
    .filter(([, there]) => !there)
    .map(([name]) => name);
  return `${capabilities.kernel}, ${missing.length === 0 ? 'has every feature that is used' : `without ${missing.join(', ')}; see \`cgroute doctor\``}`;
}

function agentDown(status: NodeStatus): string {
  if (status.node === null) return 'down, and nothing is redirected';
  return status.redirecting
    ? 'DOWN; what it left pinned goes on redirecting'
    : 'DOWN, and nothing is redirected: its programs are detached';
}
