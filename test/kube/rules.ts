/**
 * The rules by which a label decides, read a second time: from the objects of the
 * API to what must stand in the maps and become of connections. Shares no code
 * with the agent.
 */
import type { Pod, Texts } from '../harness/kube-objects.ts';
import type { Travel } from '../harness/travel.ts';

/** `bypass.allowed` */
export type Allowed = 'any' | 'namespace' | 'never';

/** Labels by the name of their namespace. */
export type NamespaceLabels = ReadonlyMap<string, Texts>;

export interface Expected {
  readonly verdict: 'in' | 'out' | 'bypass';
  readonly reason: string;
  /** `flags` of the pod's entries. */
  readonly flags: number;
  /** What becomes of a connection that the pod opens, and of one that a host process opens to it. */
  readonly outbound: Travel;
  readonly inbound: Travel;
}

const FLAG = {
  inMesh: 1,
  proxy: 4,
  bypassOutbound: 8,
  bypassInbound: 16,
  sidecar: 32,
  hostNetwork: 64,
  options: 256,
} as const;
const MESH_MODES: readonly string[] = ['ambient', 'kmesh'];
const GATEWAYS: readonly string[] = [
  'istio.io-mesh-controller',
  'istio.io-gateway-controller',
  'istio.io-eastwest-controller',
];
const BYPASSES: Readonly<Record<string, string>> = {
  enabled: 'bypass',
  outbound: 'bypass-outbound',
  inbound: 'bypass-inbound',
};

function bypassOf({ metadata: { labels = {} } }: Pod, theirs: Texts, allowed: Allowed): string | undefined {
  const may = { any: true, namespace: theirs['cgroute.io/allow-bypass'] === 'true', never: false }[allowed];
  return may ? BYPASSES[(labels['kmesh.net/bypass'] ?? '').toLowerCase()] : undefined;
}

function reasonOf(pod: Pod, theirs: Texts, allowed: Allowed): string {
  const { metadata, spec, status } = pod;
  const { labels = {}, annotations = {}, namespace = '' } = metadata;
  const word = (text: string | undefined): string => (text ?? '').toLowerCase();
  const mesh = (text: string | undefined): string | undefined =>
    MESH_MODES.find((mode) => mode === word(text));
  const own = mesh(labels['istio.io/dataplane-mode']);
  const mode = own ?? mesh(theirs['istio.io/dataplane-mode']);
  const bypass = bypassOf(pod, theirs, allowed);
  const hasSidecar = annotations['sidecar.istio.io/status'] !== undefined;
  const rows: readonly (readonly [applies: boolean, reason: string])[] = [
    [spec.hostNetwork === true, 'host-network'],
    [status?.phase === 'Succeeded' || status?.phase === 'Failed', 'terminal'],
    [labels['app'] === 'ztunnel', 'proxy'],
    [namespace === 'kube-system' || namespace === 'istio-system', 'excluded-namespace'],
    [GATEWAYS.includes(word(labels['gateway.istio.io/managed'])), 'gateway'],
    [word(labels['istio.io/dataplane-mode']) === 'none', 'pod-opt-out'],
    [mode === undefined, 'not-enrolled'],
    [hasSidecar && mode === 'kmesh', 'sidecar-short-circuited'],
    [hasSidecar, 'sidecar'],
    [bypass !== undefined, bypass ?? ''],
    [own !== undefined, 'pod-label'],
    [true, 'namespace-label'],
  ];
  return rows.find(([applies]) => applies)?.[1] ?? '';
}

const ENROLLED = ['sidecar-short-circuited', 'pod-label', 'namespace-label'];

/** What is true of this pod, by what the API says of it and of its namespace. */
export function expected(pod: Pod, namespaces: NamespaceLabels, allowed: Allowed): Expected {
  const { labels = {}, annotations = {}, namespace = '' } = pod.metadata;
  const theirs = namespaces.get(namespace) ?? {};
  const reason = reasonOf(pod, theirs, allowed);
  const verdict = ENROLLED.includes(reason)
    ? 'in'
    : Object.values(BYPASSES).includes(reason)
      ? 'bypass'
      : 'out';
  // Beside a sidecar that is short-circuited, a bypass counts, and shows in no reason.
  const bypass = verdict === 'out' ? undefined : bypassOf(pod, theirs, allowed);
  const goesOut = verdict !== 'out' && (bypass === undefined || bypass === 'bypass-inbound');
  const comesIn = verdict !== 'out' && (bypass === undefined || bypass === 'bypass-outbound');
  const ended = pod.status?.phase === 'Succeeded' || pod.status?.phase === 'Failed';
  const flags =
    (verdict === 'out' ? 0 : FLAG.inMesh) |
    (labels['app'] === 'ztunnel' && !ended ? FLAG.proxy : 0) |
    (bypass !== undefined && !goesOut ? FLAG.bypassOutbound : 0) |
    (bypass !== undefined && !comesIn ? FLAG.bypassInbound : 0) |
    (annotations['sidecar.istio.io/status'] === undefined ? 0 : FLAG.sidecar) |
    // A sidecar's own user is left alone, so its pod's connections are looked at one by one.
    (reason === 'sidecar-short-circuited' ? FLAG.options : 0) |
    (pod.spec.hostNetwork === true ? FLAG.hostNetwork : 0);
  return {
    verdict,
    reason,
    flags,
    outbound: goesOut ? 'redirected' : 'direct',
    inbound: comesIn ? 'inbound' : 'direct',
  };
}
