/** What the kernel's maps should say of a pod: pure functions from a decision. */
import { isIPv4 } from 'node:net';
import { infoFlag, proxyMode, type CgroupInfo, type PodInfo } from '../../native/layout/layouts.ts';
import type { Decision } from '../decisions/decision.ts';
import { addressBytes, NO_ADDRESS } from '../objects/address.ts';
import type { Pod } from '../objects/pod.ts';

/** All bits that the agent can tell; DNS capture comes later. */
const DETECTED = Object.values(infoFlag).reduce((all, bit) => all | bit, 0) & ~infoFlag.dnsCapture;

/** Of what has no pod, or whose pod nobody knows. */
const NO_POD = { proxyMode: proxyMode.node, netns: 0n } as const;

export interface PodAddresses {
  readonly ip4: Uint8Array;
  readonly ip6: Uint8Array;
}

/** A pod as far as its map entries go. */
export interface PodFacts {
  readonly slot: number;
  readonly decision: Decision;
  readonly addresses: PodAddresses;
  /** Inode of its network namespace; 0: not known. */
  readonly netns: bigint;
  /** Whether that has more addresses than those two. */
  readonly hasLocals: boolean;
}

/** A pod has one address of each family at most, as the API has it; what else its namespace shows takes no room. */
export const firstOfEach = (ips: readonly string[]): readonly string[] =>
  [ips.find((ip) => isIPv4(ip)), ips.find((ip) => !isIPv4(ip))].filter((ip) => ip !== undefined);

/** {@link firstOfEach}, as the maps have them. */
export function podAddresses(ips: readonly string[]): PodAddresses {
  const ip4 = ips.find((ip) => isIPv4(ip));
  const ip6 = ips.find((ip) => !isIPv4(ip));
  return {
    ip4: (ip4 === undefined ? undefined : addressBytes(ip4)) ?? NO_ADDRESS,
    ip6: (ip6 === undefined ? undefined : addressBytes(ip6)) ?? NO_ADDRESS,
  };
}

function flagsOf({ decision, hasLocals }: Pick<PodFacts, 'decision' | 'hasLocals'>): number {
  // The label may also ask for what another rule has decided otherwise; beside a sidecar that is short-circuited it counts.
  const { enrolled } = decision;
  return (
    (enrolled ? infoFlag.ambient : 0) |
    (decision.proxy ? infoFlag.proxy : 0) |
    (enrolled && decision.bypassOutbound ? infoFlag.bypassOutbound : 0) |
    (enrolled && decision.bypassInbound ? infoFlag.bypassInbound : 0) |
    (decision.sidecar ? infoFlag.sidecar : 0) |
    (hasOptions(decision) ? infoFlag.options : 0) |
    (hasLocals ? infoFlag.addresses : 0) |
    (decision.reason === 'host-network' ? infoFlag.hostNetwork : 0)
  );
}

/** Whether connections of the pod are looked at one by one: for its annotations, or for its sidecar's own. */
export const hasOptions = ({ enrolled, sidecar, traffic }: Decision): boolean =>
  enrolled && (sidecar || traffic !== undefined);

/** The entry of one of the pod's cgroups. */
export function cgroupEntry(id: bigint, facts: PodFacts): CgroupInfo {
  const { slot, decision, addresses, netns } = facts;
  return {
    id,
    slot,
    isInMesh: decision.enrolled ? 1 : 0,
    proxyMode: proxyMode.node,
    netns,
    cgroupIp: addresses.ip4,
    cgroupIp6: addresses.ip6,
    flags: flagsOf(facts),
    detectedFlags: DETECTED,
  };
}

/** A cgroup of a runtime's own below a pod, such as CRI-O's conmon: it lives in the host's network. */
export function monitorEntry(id: bigint, slot: number): CgroupInfo {
  return {
    id,
    slot,
    isInMesh: 0,
    ...NO_POD,
    cgroupIp: NO_ADDRESS,
    cgroupIp6: NO_ADDRESS,
    flags: infoFlag.hostNetwork,
    detectedFlags: DETECTED,
  };
}

/** A pod's cgroup whose pod nobody knows yet. */
export function unknownEntry(id: bigint): CgroupInfo {
  return {
    id,
    slot: 0,
    isInMesh: 0,
    ...NO_POD,
    cgroupIp: NO_ADDRESS,
    cgroupIp6: NO_ADDRESS,
    flags: infoFlag.unknownPod,
    detectedFlags: DETECTED,
  };
}

/** The entry of the agent's own cgroup while nobody knows its pod: it has to ask who its pods are. */
export function ownEntry(id: bigint): CgroupInfo {
  return { ...unknownEntry(id), flags: 0 };
}

/** The entry of a pod that only an earlier agent knew, whose network may be another by now. */
export function rememberedEntry(
  id: bigint,
  { slot, isInMesh, flags, detectedFlags, proxyMode, ip4, ip6 }: PodInfo,
  netns: bigint,
): CgroupInfo {
  return { id, slot, isInMesh, flags, detectedFlags, proxyMode, netns, cgroupIp: ip4, cgroupIp6: ip6 };
}

/** Whether the connect programs may redirect connections from there. */
export function isRedirected({
  isInMesh,
  flags,
  detectedFlags,
}: Pick<CgroupInfo, 'isInMesh' | 'flags' | 'detectedFlags'>): boolean {
  return (
    isInMesh !== 0 &&
    (flags & detectedFlags & (infoFlag.bypassOutbound | infoFlag.unknownPod | infoFlag.proxy)) === 0
  );
}

/** Whether connections that processes of the host open to there go to the proxy. */
export function isInboundRedirected({ isInMesh, flags }: Pick<CgroupInfo, 'isInMesh' | 'flags'>): boolean {
  return isInMesh !== 0 && (flags & infoFlag.bypassInbound) === 0;
}

/** What `status` reads when the agent is down. */
export function podEntry(pod: Pod, facts: PodFacts, namespaceMode: number): PodInfo {
  const { slot, decision, addresses, netns } = facts;
  return {
    slot,
    flags: flagsOf(facts),
    detectedFlags: DETECTED,
    isInMesh: decision.enrolled ? 1 : 0,
    namespaceMode,
    proxyMode: proxyMode.node,
    netns,
    ...addresses,
    uid: pod.uid,
    verdict: decision.verdict,
    reason: decision.reason,
    podNamespace: pod.namespace,
    podName: pod.name,
    serviceAccount: pod.serviceAccount,
  };
}
