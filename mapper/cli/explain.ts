/** Why a pod's traffic is redirected or not: the rules in order, and what came of its connections. */
import { openPinnedMaps, type PinnedMaps } from '../../native/data-plane/maps.ts';
import { CgrouteError, messageOf } from '../../native/error.ts';
import { branch } from '../../native/layout/layouts.ts';
import { isLocked } from '../../native/boundary/lock.ts';
import type { Cgroup } from '../../watcher/cgroup-tree.ts';
import { readAgentRecord } from '../maps/agent-record.ts';
import type { Config } from '../config/config.ts';
import type { Pod } from '../objects/pod.ts';
import { addressText } from '../objects/address.ts';
import { nameOf } from '../decisions/pod-case.ts';
import { trafficText } from '../decisions/traffic-options.ts';
import { SHARED_SLOT } from '../maps/pod-slots.ts';
import type { Decision, RuleStep } from '../decisions/decision.ts';
import type { ProxyReport } from '../placement/node-proxy.ts';
import { proxyStatus, type ProxyStatus } from './status-proxy.ts';
import { proxyText } from './status-text.ts';

export interface ConnectionsOf {
  /** As `status` names it. */
  readonly branch: string;
  readonly count: number;
  readonly words: string;
}

export interface Explanation {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string;
  readonly verdict: string;
  readonly reason: string;
  /** Those that were tried, in order; exactly one decides. */
  readonly rules: readonly RuleStep[];
  readonly notes: readonly string[];
  readonly proxy: Omit<ProxyStatus, 'notTaken'>;
  readonly ips: readonly string[];
  /** Paths are relative to the watched root. */
  readonly cgroups: readonly { readonly id: string; readonly path: string }[];
  /** Branches that no connection took are left out. */
  readonly connections: readonly ConnectionsOf[];
}

/** A pod as it is treated now. */
export interface PodView {
  /** Its key in `pod_info_map`. */
  readonly key: string;
  readonly pod: Pod;
  readonly decision: Decision;
  readonly cgroups: readonly Cgroup[];
  /** Its entries could not be written, and are tried again. */
  readonly failed: boolean;
  /** What becomes of its sidecar, in a sentence; undefined where nothing is to be done. */
  readonly sidecar?: string | undefined;
}

/** What the agent knows. */
export interface ExplainView {
  readonly maps: Pick<PinnedMaps, 'pods' | 'counters' | 'settings'>;
  readonly config: Pick<Config, 'whenProxyDown' | 'sidecarUser'>;
  podsNamed(name: string, namespace: string | undefined): readonly PodView[];
  proxy(): ProxyReport;
}

const WORDS: Readonly<Record<Exclude<keyof typeof branch, 'count'>, string>> = {
  redirected: "opened by it, went to the proxy's outbound port",
  inboundRedirected: "opened to it by processes of the host, went to the proxy's inbound port",
  inboundExempt:
    'opened to it by the kubelet, to a port of the proxy or to an excluded one, were left as they were',
  hostUntouched: 'opened by processes of the host, were left as they were',
  out: 'opened by it, were left as they were: it is not in the mesh',
  bypassed: 'opened by it, were left as they were: it is bypassed',
  proxy: 'opened by it as the proxy, were left as they were',
  unknownAllowed: 'opened before it had a verdict, were left as they were (unknownPods: allow)',
  unknownDenied: 'opened before it had a verdict, were denied (unknownPods: deny)',
  local: 'opened by it to loopback, to its link or to an address of its own network, were left as they were',
  excluded: 'opened by it, are excluded by its traffic annotations',
  noProxyAllowed: 'would have gone to the proxy, and went past it as none was known (whenProxyDown: allow)',
  noProxyDenied: 'would have gone to the proxy, and were denied as none was known (whenProxyDown: deny)',
  loopDenied: "to the proxy's own ports were denied",
  errorDenied:
    'were denied: the maps of connections had no room, or the pod had its share of it; or they went to an address such as ::10.1.2.3',
  foreignUntouched:
    "opened by processes of no pod, in a network that is not the host's, were left as they were",
  nestedUntouched:
    'opened in a network within it that is not its own, as by a nested container, were left as they were (nestedNetworks: untouched)',
  nestedDenied: 'opened in a network within it that is not its own, were denied (nestedNetworks: deny)',
  otherNetworkUntouched:
    'opened by it from an interface or address that does not lead to the proxy, were left as they were (otherNetworks: untouched)',
  otherNetworkDenied:
    'opened by it from an interface or address that does not lead to the proxy, were denied (otherNetworks: deny)',
  handoffLost:
    'reached the proxy without their original destination, as original_dst_map had no room or the pod had its share of it; or could not reach it, from a network namespace of their own or in repair mode',
};

/** `NAMESPACE/NAME` or `NAME`. @throws CgrouteError `EUSAGE` */
export function parsePodName(text: string): {
  readonly namespace: string | undefined;
  readonly name: string;
} {
  const [, namespace, name] = /^(?:([a-z0-9-]+)\/)?([a-z0-9.-]+)$/.exec(text) ?? [];
  if (name === undefined)
    throw new CgrouteError(
      'EUSAGE',
      `cgroute explain expects a pod as NAMESPACE/NAME or NAME, got "${text}"`,
    );
  return { namespace, name };
}

/** @throws CgrouteError `EUSAGE`; `ENOPOD` when there is none of that name, `EAMBIGUOUS` when several namespaces have one */
export function explain(text: string, view: ExplainView): Explanation {
  const { namespace, name } = parsePodName(text);
  const found = view.podsNamed(name, namespace);
  const namespaces = [...new Set(found.map(({ pod }) => pod.namespace))].sort();
  if (namespaces.length > 1) {
    throw new CgrouteError(
      'EAMBIGUOUS',
      `several pods of this node are named ${name}: expected one of ${namespaces.map((of) => `${of}/${name}`).join(', ')}`,
    );
  }
  const [first, ...others] = found.toSorted(
    (a, b) => Number(a.pod.terminating) - Number(b.pod.terminating) || b.pod.createdAt - a.pod.createdAt,
  );
  if (first === undefined) {
    const kept = view.maps.pods
      .entries()
      .map(([, info]) => info)
      .find((info) => info.podName === name && (namespace ?? info.podNamespace) === info.podNamespace);
    throw new CgrouteError(
      'ENOPOD',
      kept === undefined
        ? `no pod of this node is named ${text}: \`cgroute status\` lists those that are`
        : `the source has no pod ${kept.podNamespace}/${kept.podName} any more: what an earlier agent found, ${kept.verdict} because of ${kept.reason}, stands until its cgroups are removed`,
    );
  }
  const { pod, decision, cgroups, key } = first;
  const entry = view.maps.pods.get({ text: key });
  const proxy = proxyOf(view);
  return {
    namespace: pod.namespace,
    name: pod.name,
    uid: pod.uid,
    verdict: decision.verdict,
    reason: decision.reason,
    rules: decision.trace,
    notes: [
      ...decision.notes.map(({ message }) => message),
      ...others.map(
        (other) =>
          `another pod of this name, with UID ${other.pod.uid}, is still there or has gone just now; this is about the newer one`,
      ),
      ...view
        .proxy()
        .notTaken.filter((other) => other.pod === nameOf(pod))
        .map(({ reason }) => `it is not taken for the node's proxy: ${reason}`),
      ...hints(first, entry !== undefined, proxy, view.config),
    ],
    proxy,
    ips:
      entry === undefined
        ? []
        : [addressText(entry.ip4), addressText(entry.ip6)].filter((ip) => ip !== undefined),
    cgroups: cgroups.map(({ id, path }) => ({ id: String(id), path })),
    connections:
      entry === undefined || entry.slot === SHARED_SLOT
        ? []
        : connectionsOf(view.maps.counters.get(entry.slot)?.count ?? []),
  };
}

function hints(
  { decision, cgroups, failed, sidecar }: PodView,
  isMapped: boolean,
  proxy: Explanation['proxy'],
  { whenProxyDown, sidecarUser }: ExplainView['config'],
): string[] {
  return [
    ...(decision.traffic === undefined
      ? []
      : [`its annotations limit what goes to the proxy: ${trafficText(decision.traffic)}`]),
    ...(decision.enrolled && decision.sidecar
      ? [`connections of its user ${sidecarUser}, which sidecars run as, are left as they are`]
      : []),
    ...(failed || !isMapped
      ? [
          'its entries in the maps could not be written, so the programs may act otherwise; the agent tries again',
        ]
      : []),
    ...(cgroups.length === 0 ? ['no cgroup of it has been found: it does not run here yet, or no more'] : []),
    ...(decision.enrolled && proxy.address === null
      ? [
          `no proxy of this node is known, and whenProxyDown is ${whenProxyDown}: its connections are ${whenProxyDown === 'deny' ? 'denied' : 'left as they are'}`,
        ]
      : []),
    ...(decision.enrolled && proxy.address !== null && !proxy.ready
      ? [`the node's proxy, where its connections go, does not serve as it should: ${proxyText(proxy)}`]
      : []),
    ...(decision.bypassOutbound || decision.bypassInbound
      ? ['a peer that insists on mutual TLS refuses connections of a pod that is bypassed']
      : []),
    ...(sidecar === undefined ? [] : [sidecar]),
  ];
}

function connectionsOf(counts: readonly bigint[]): ConnectionsOf[] {
  return Object.entries(WORDS).flatMap(([name, words]) => {
    const count = Number(counts[branch[name as keyof typeof WORDS]] ?? 0n);
    return count === 0 ? [] : [{ branch: name, count, words }];
  });
}

function proxyOf({ maps, proxy }: ExplainView): Explanation['proxy'] {
  const { notTaken: _notTaken, ...shown } = proxyStatus(maps, [], proxy());
  return shown;
}

/**
 * Asks the agent that runs on this node.
 * @throws CgrouteError `EUSAGE`, `EDOWN`, `EEXPLAIN` with the agent's own sentence
 */
export async function askExplanation(bpffsRoot: string, text: string): Promise<Explanation> {
  parsePodName(text);
  const http = addressOfAgent(bpffsRoot);
  let response: Response;
  let body: string;
  try {
    response = await fetch(`http://${http}/explain?${new URLSearchParams({ pod: text })}`, {
      signal: AbortSignal.timeout(5000),
    });
    body = await response.text();
  } catch (cause) {
    throw new CgrouteError(
      'EDOWN',
      `the agent runs and does not answer at ${http} (${messageOf(cause)}): is it in another network namespace?`,
      { cause },
    );
  }
  if (!response.ok) throw new CgrouteError('EEXPLAIN', body.trim());
  return JSON.parse(body) as Explanation;
}

function addressOfAgent(bpffsRoot: string): string {
  using maps = openPinnedMaps(bpffsRoot);
  if (maps === undefined || !isLocked(bpffsRoot)) {
    throw new CgrouteError(
      'EDOWN',
      `no agent runs with --bpffs-root ${bpffsRoot}, and only a running one can explain: start it, or see \`cgroute status\``,
    );
  }
  const http = readAgentRecord(maps.agent)?.http ?? '';
  if (http === '') throw new CgrouteError('EDOWN', 'the agent is starting: try again in a moment');
  return http;
}
