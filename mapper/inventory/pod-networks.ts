/**
 * Which network namespace is a pod's: that of the oldest of its processes that is
 * in none of the host's; with its addresses, and where it leads to the proxy. It is
 * asked for again when that process has ended, as a runtime may make a pod's sandbox
 * anew, with another network.
 */
import { isIPv4 } from 'node:net';
import { isDeepStrictEqual } from 'node:util';
import type { NetworkTables } from '../../watcher/network-tables.ts';
import type { Pod } from '../objects/pod.ts';

/** A process, and the network namespace that it is in. */
export interface NetworkWitness {
  readonly pid: number;
  /** Inode number. */
  readonly netns: number;
  readonly startedTicks: number;
}

/** What is asked of the host. */
export interface WitnessHost {
  /** The oldest process below these cgroups that is not in the host's network; undefined when there is none. */
  witnessIn(paths: readonly string[]): NetworkWitness | undefined;
  /** Whether that process still runs, in that network. */
  stands(witness: NetworkWitness): boolean;
  tablesOf(pid: number): NetworkTables;
}

export interface PodNetworksOptions {
  readonly host: WitnessHost;
  /** The cgroups of a pod whose processes are in its network, relative to the watched root. */
  readonly pathsOf: (podKey: string) => readonly string[];
  /** Those of the node's proxy. */
  readonly proxyIps: () => readonly string[];
}

export interface LocalAddress {
  readonly ip: string;
  /** It is on the interface by which the proxy is reached. */
  readonly leads: boolean;
}

export interface PodNetwork {
  /** Inode number of the namespace; 0: not known. */
  readonly netns: bigint;
  readonly addresses: readonly LocalAddress[];
  /** Indexes of the interfaces by which the proxy is reached; 0: not known. */
  readonly devices: { readonly ip4: number; readonly ip6: number };
}

export const NO_NETWORK: PodNetwork = { netns: 0n, addresses: [], devices: { ip4: 0, ip6: 0 } };

/** More of one pod are not known, so that none takes the room of the others. */
const MOST_ADDRESSES = 256;

interface Known {
  readonly witness: NetworkWitness;
  network: PodNetwork;
}

/** Pods are named by the key under which their cgroups are known. */
export class PodNetworks {
  readonly #options: PodNetworksOptions;
  readonly #known = new Map<string, Known>();

  constructor(options: PodNetworksOptions) {
    this.#options = options;
  }

  /**
   * {@link NO_NETWORK} when no process shows one: of none that runs, nothing is lost
   * by that. One in the host's has none of its own.
   */
  of(podKey: string, { hostNetwork }: Pick<Pod, 'hostNetwork'>): PodNetwork {
    const { host, pathsOf } = this.#options;
    const known = this.#known.get(podKey);
    if (!hostNetwork && known !== undefined && host.stands(known.witness)) return known.network;
    const witness = hostNetwork ? undefined : host.witnessIn(pathsOf(podKey));
    if (witness === undefined) {
      this.forget(podKey);
      return NO_NETWORK;
    }
    const network = this.#read(witness);
    this.#known.set(podKey, { witness, network });
    return network;
  }

  /** Whether a process of the pod could still tell. */
  isWanting(podKey: string, { hostNetwork }: Pick<Pod, 'hostNetwork'>): boolean {
    return !hostNetwork && !this.#known.has(podKey);
  }

  /** Keys of the pods whose network is known. */
  keys(): readonly string[] {
    return [...this.#known.keys()];
  }

  /** Looks at the pod's network again. Whether it is another one, or has changed. */
  hasChanged(podKey: string): boolean {
    const known = this.#known.get(podKey);
    if (known === undefined) return false;
    if (!this.#options.host.stands(known.witness)) return true;
    const before = known.network;
    known.network = this.#read(known.witness);
    return !isDeepStrictEqual(before, known.network);
  }

  /** The pod is gone. */
  forget(podKey: string): void {
    this.#known.delete(podKey);
  }

  #read({ pid, netns }: NetworkWitness): PodNetwork {
    const { host, proxyIps } = this.#options;
    const tables = host.tablesOf(pid);
    const proxies = proxyIps();
    const to4 = tables.deviceTo(
      proxies.find((ip) => isIPv4(ip)),
      4,
    );
    const to6 = tables.deviceTo(
      proxies.find((ip) => !isIPv4(ip)),
      6,
    );
    return {
      netns: BigInt(netns),
      addresses: tables.addresses.slice(0, MOST_ADDRESSES).map(({ ip, device }) => ({
        ip,
        leads: device !== undefined && device === (isIPv4(ip) ? to4 : to6)?.name,
      })),
      devices: { ip4: to4?.index ?? 0, ip6: to6?.index ?? 0 },
    };
  }
}
