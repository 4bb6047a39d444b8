/**
 * Which pod is the node's proxy, at which addresses, and why the others that its
 * selector matches are not. Pure: what is seen on the host comes in.
 *
 * It is the newest one that is ready. While none is, the last one stays, as long as
 * it runs: a kubelet's restart makes every pod unready, and changes nothing in it.
 */
import type { Config } from '../config/config.ts';
import { hasEnded, type Pod } from '../objects/pod.ts';
import { mayHoldProxy, nameOf } from './pod-case.ts';

/** A pod that the proxy's selector matches, and what is seen of it on the host. */
export interface ProxyCandidate {
  readonly pod: Pod;
  /** Undefined for one that cannot be the proxy, whatever is to be seen. */
  readonly seen: ProxySeen | undefined;
}

export interface ProxySeen {
  /** Its cgroup is known, and `SO_ORIGINAL_DST` is answered there. */
  readonly isAttached: boolean;
  readonly hasProcesses: boolean;
  /** Of its status, as far as they can be its own; for want of any, of its network namespace. */
  readonly addresses: readonly string[];
  /** Those of the network namespace that its processes are in; undefined where that cannot be looked at. */
  readonly network: SeenNetwork | undefined;
  /** Other pods that are not in the host's network, by the addresses of their status. */
  readonly claimants: (ip: string) => readonly Pod[];
}

export interface SeenNetwork {
  readonly isHost: boolean;
  readonly has: (ip: string) => boolean;
  /** For words. */
  readonly ips: readonly string[];
}

export interface NotTaken {
  /** `NAMESPACE/NAME`. */
  readonly pod: string;
  readonly reason: string;
}

export interface ProxyChoice {
  readonly chosen: { readonly pod: Pod; readonly ips: readonly string[] } | undefined;
  /** By name. Addresses of the chosen one that do not count are here, too. */
  readonly notTaken: readonly NotTaken[];
  /** What keeps one that is ready from being taken may pass, and nobody will tell. */
  readonly mayPass: boolean;
}

/** @param lastUid of the pod that is the proxy by now */
export function chooseProxy(
  candidates: readonly ProxyCandidate[],
  lastUid: string | undefined,
  proxy: Pick<Config['proxy'], 'selector' | 'namespaces'>,
): ProxyChoice {
  const looks = candidates.map((candidate) => look(candidate, proxy));
  const usable = looks.filter(({ obstacle, ips }) => obstacle === undefined && ips.length > 0);
  const chosen =
    usable.filter(({ pod }) => pod.ready).toSorted((a, b) => better(a.pod, b.pod))[0] ??
    usable.find(({ pod }) => pod.uid === lastUid && pod.phase === 'Running' && !pod.terminating);
  const matches = `matches ${proxy.selector.text}`;
  return {
    chosen,
    notTaken: looks
      .flatMap((each) => {
        const reasons = each === chosen ? each.refused : reasonsOf(each, chosen?.pod);
        return reasons.map((reason) => ({ pod: nameOf(each.pod), reason: `${matches}; ${reason}` }));
      })
      .toSorted((a, b) => a.pod.localeCompare(b.pod)),
    mayPass: looks.some(
      ({ pod, seen, obstacle, refused }) =>
        pod.ready && seen !== undefined && (obstacle !== undefined || refused.length > 0),
    ),
  };
}

interface Look extends ProxyCandidate {
  /** What keeps it from being the proxy, but for readiness. */
  readonly obstacle: string | undefined;
  /** Its addresses that count, and why others don't. */
  readonly ips: readonly string[];
  readonly refused: readonly string[];
}

function look({ pod, seen }: ProxyCandidate, proxy: Pick<Config['proxy'], 'namespaces'>): Look {
  const refused = seen === undefined ? [] : seen.addresses.flatMap((ip) => refusal(ip, pod, seen) ?? []);
  return {
    pod,
    seen,
    obstacle: obstacleOf(pod, seen, proxy),
    ips: seen === undefined ? [] : seen.addresses.filter((ip) => refusal(ip, pod, seen) === undefined),
    refused,
  };
}

/** Whether a pod is worth a look at the host. */
export function mayBeProxy(pod: Pod, proxy: Pick<Config['proxy'], 'namespaces'>): boolean {
  return mayHoldProxy(pod.namespace, proxy) && !hasEnded(pod);
}

function obstacleOf(
  pod: Pod,
  seen: ProxySeen | undefined,
  { namespaces }: Pick<Config['proxy'], 'namespaces'>,
): string | undefined {
  if (!mayHoldProxy(pod.namespace, { namespaces }))
    return `namespace ${pod.namespace} is not in proxy.namespaces (${namespaces.join(', ')})`;
  if (hasEnded(pod)) return `it has ended (phase ${pod.phase})`;
  if (seen === undefined || !seen.isAttached) return 'its cgroup has not been found';
  // Who has its address meanwhile would be taken for it.
  if (!seen.hasProcesses) return 'no process runs in its cgroup';
  if (seen.addresses.length === 0) return 'it has no address yet';
  return undefined;
}

/** Why an address of its status is not published. */
function refusal(ip: string, pod: Pod, seen: ProxySeen): string | undefined {
  const { network } = seen;
  if (network !== undefined && network.isHost !== pod.hostNetwork)
    return network.isHost
      ? `its address ${ip} is not published: its processes are in the host's network`
      : `its address ${ip} is not published: it says to be in the host's network, and its processes are not`;
  if (network !== undefined && !network.has(ip))
    return `its address ${ip} is not published: its network namespace has ${network.ips.join(', ') || 'none'}`;
  const claimant = seen
    .claimants(ip)
    // Creation times have whole seconds: of two of one age, what is seen decides.
    .find(
      ({ createdAt }) => createdAt > pod.createdAt || (createdAt === pod.createdAt && network === undefined),
    );
  return claimant === undefined
    ? undefined
    : `its address ${ip} is not published: it belongs to younger pod ${nameOf(claimant)}`;
}

function reasonsOf({ pod, obstacle, refused }: Look, chosen: Pod | undefined): readonly string[] {
  if (obstacle !== undefined) return [obstacle];
  if (!pod.ready) return [unready(pod), ...refused];
  if (refused.length > 0) return refused;
  if (chosen !== undefined && pod.terminating && !chosen.terminating)
    return [`it is terminating, and ${nameOf(chosen)} is ready`];
  return [chosen === undefined ? 'it is not the newest' : `${nameOf(chosen)} is newer`];
}

/** `Ready=False since ...`. */
export function unready({ phase, readySince, terminating }: Pod): string {
  const since =
    readySince === undefined ? '' : ` since ${new Date(readySince).toISOString().replace(/\.\d+Z$/, 'Z')}`;
  const notRunning = phase === 'Running' ? '' : `, phase ${phase}`;
  return `Ready=False${since}${notRunning}${terminating ? ', terminating' : ''}`;
}

/** The better one first. The UID breaks a tie, so that every look gives the same one. */
function better(a: Pod, b: Pod): number {
  if (a.terminating !== b.terminating) return a.terminating ? 1 : -1;
  if (a.createdAt !== b.createdAt) return b.createdAt - a.createdAt;
  return a.uid < b.uid ? 1 : -1;
}
