/**
 * What is to be seen on the host of a pod that may be the node's proxy: whether it
 * runs, which addresses its network namespace has, and where that listens. The agent
 * looks, and `status`, which may run without one.
 */
import type { Host } from '../../watcher/open-host.ts';
import { isListenedOn, type Listener } from '../../watcher/listeners.ts';
import type { SeenNetwork } from '../decisions/proxy-choice.ts';
import { addressBytes, familyOf } from '../objects/address.ts';

/** Processes of each cgroup that are asked: one may have 60,000. */
const ASKED_OF_CGROUP = 8;

export type ProxyHost = Pick<Host, 'isPopulated' | 'pidsOf' | 'addressesOf' | 'listenersOf' | 'isOwnAddress'>;

export interface ProxyLook {
  readonly hasProcesses: boolean;
  readonly network: SeenNetwork | undefined;
  /** Undefined where that cannot be told. */
  readonly listeners: readonly Listener[] | undefined;
}

/** @param paths of its cgroups whose processes are in its network, relative to the watched root */
export function lookAtProxy(host: ProxyHost, paths: readonly string[]): ProxyLook {
  const hasProcesses = paths.some((path) => host.isPopulated(path));
  // The oldest is the runtime's, which is in the pod's namespace: others may have gone elsewhere.
  const [oldest] = paths
    .flatMap((path) => host.pidsOf(path).slice(0, ASKED_OF_CGROUP))
    .flatMap((pid) => {
      const addresses = host.addressesOf(pid);
      return addresses === undefined ? [] : [{ pid, ...addresses }];
    })
    .toSorted((a, b) => a.startedTicks - b.startedTicks);
  if (oldest === undefined) return { hasProcesses, network: undefined, listeners: undefined };
  const { pid, isHost, ips } = oldest;
  return {
    hasProcesses,
    network: { isHost, ips, has: (ip) => (isHost ? host.isOwnAddress(ip) : ips.includes(ip)) },
    listeners: host.listenersOf(pid),
  };
}

/** Of these addresses and ports, as `10.0.0.5:15001`, those that nobody listens on. */
export function notListened(
  listeners: readonly Listener[],
  ips: readonly string[],
  ports: readonly number[],
): string[] {
  return ips.flatMap((ip) => {
    const bytes = addressBytes(ip)?.subarray(familyOf(ip) === 4 ? 12 : 0) ?? new Uint8Array();
    return ports
      .filter((port) => !isListenedOn(listeners, bytes, port))
      .map((port) => `${familyOf(ip) === 4 ? ip : `[${ip}]`}:${port}`);
  });
}
