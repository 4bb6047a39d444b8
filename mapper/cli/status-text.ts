/** `status` for people: the node, its proxy, then a line for each pod. */
import type { Connections } from './node-facts.ts';
import type { NodeStatus } from './status.ts';

/** The addresses of the node's proxy, its pod, and what is wrong with it; for `explain`, too. */
export function proxyText({
  address,
  address6,
  pod,
  unready,
  notListening,
}: Omit<NodeStatus['proxy'], 'ready' | 'trouble' | 'notTaken'>): string {
  if (address === null) return 'none is known';
  return [
    address,
    address6 === address ? null : address6,
    pod,
    unready === null ? null : `not ready (${unready})`,
    notListening === null || notListening.length === 0 ? null : `NOT LISTENING at ${notListening.join(', ')}`,
  ]
    .filter((part) => part !== null)
    .join('  ');
}

const untouched = ({
  out,
  bypassed,
  proxy,
  local,
  excluded,
  unknownAllowed,
  noProxyAllowed,
  nestedUntouched,
  otherNetworkUntouched,
}: Connections): number =>
  out +
  bypassed +
  proxy +
  local +
  excluded +
  unknownAllowed +
  noProxyAllowed +
  nestedUntouched +
  otherNetworkUntouched;

const denied = ({
  unknownDenied,
  noProxyDenied,
  loopDenied,
  errorDenied,
  nestedDenied,
  otherNetworkDenied,
}: Connections): number =>
  unknownDenied + noProxyDenied + loopDenied + errorDenied + nestedDenied + otherNetworkDenied;

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
    ['node', status.node ?? (status.redirecting ? 'unknown' : 'unknown: nothing of cgroute is pinned here')],
    [
      'agent',
      agent.running
        ? `running, pid ${agent.pid ?? '?'}, version ${agent.version ?? '?'}${agent.ready ? '' : ', not ready'}`
        : 'DOWN',
    ],
    ['proxy', proxyText(proxy)],
    ...proxy.notTaken.map(({ pod, reason }) => ['no proxy', `${pod}: ${reason}`]),
    ['kernel', kernelText(status)],
    ...status.sources.map(({ name, state, detail }) => [name, `${state}: ${detail}`]),
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
          ...status.unknown.map(
            ({ id, path }) => `  ${id}  ${path ?? (status.unseen.length === 0 ? 'gone' : 'not found')}`,
          ),
        ];
  const wrong = status.conditions.filter(({ status: is }) => is === 'False');
  return [
    ...wrong.map(({ message }) => `WRONG  ${message}`),
    head,
    '',
    ...(status.pods.length === 0 ? ['no pods'] : [pods]),
    ...unknown,
    '',
  ].join('\n');
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

function kernelText({ capabilities }: NodeStatus): string {
  if (capabilities === null) return 'its features could not be tried here';
  const features = Object.entries(capabilities.features);
  const missing = features.filter(([, there]) => there === false).map(([name]) => name);
  const untried = features.filter(([, there]) => there === null);
  return [
    capabilities.kernel,
    ...(missing.length === 0 ? [] : [`without ${missing.join(', ')}; see \`cgroute doctor\``]),
    ...(untried.length === 0
      ? []
      : [
          `${untried.length} of its ${features.length} features cannot be tried without CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (or root)`,
        ]),
    ...(missing.length + untried.length === 0 ? ['has every feature that is used'] : []),
  ].join(', ');
}
