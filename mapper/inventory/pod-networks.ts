/**
 * Which network namespace is a pod's: one that a process of it is in and that has an
 * address which the pod's status says; with its addresses, and where it leads to the
 * proxy. It is another one only when no process of the pod is in it any more, or the
 * status says so: a runtime may make a pod's sandbox anew, and begins containers in
 * networks that are not the pod's; and a process may go where it likes.
 */
import { isIPv4 } from 'node:net';
import { isDeepStrictEqual } from 'node:util';
import type { NetworkTables } from '../../watcher/network-tables.ts';
import { addressBytes } from '../objects/address.ts';
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
  /**
   * The oldest process below these cgroups that is not in the host's network, in
   * each network that there is; the oldest of all first.
   */
  witnessesIn(paths: readonly string[]): readonly NetworkWitness[];
  /** Any process below these cgroups that is in the network of that inode. */
  witnessOf(netns: number, paths: readonly string[]): NetworkWitness | undefined;
  /** Whether that process still runs, in that network. */
  stands(witness: NetworkWitness): boolean;
  /** Undefined where it is not there any more. */
  tablesOf(witness: NetworkWitness): NetworkTables | undefined;
}

export interface PodNetworksOptions {
  readonly host: WitnessHost;
  /** The cgroups of a pod whose processes are in its network, relative to the watched root. */
  readonly pathsOf: (podKey: string) => readonly string[];
  /** Those of the node's proxy. */
  readonly proxyIps: () => readonly string[];
  /** Inode of what was a pod's network by an earlier agent, or 0. */
  readonly remembered: (podKey: string) => bigint;
}

export interface LocalAddress {
  readonly ip: string;
  /** It is on another interface than that by which the proxy is reached. */
  readonly isElsewhere: boolean;
}

export interface PodNetwork {
  /** Inode number of the namespace; 0: not known. */
  readonly netns: bigint;
  readonly addresses: readonly LocalAddress[];
  /** Indexes of the interfaces by which the proxy is reached; 0: not known. */
  readonly devices: { readonly ip4: number; readonly ip6: number };
}

export const NO_NETWORK: PodNetwork = { netns: 0n, addresses: [], devices: { ip4: 0, ip6: 0 } };

interface Known {
  readonly witness: NetworkWitness;
  readonly network: PodNetwork;
}

/** After a look at processes of which none was in a network that is the pod's for sure, in milliseconds. */
const PAUSE_MS = 1000;

type Place = Pick<Pod, 'hostNetwork' | 'ips'>;

/** Pods are named by the key under which their cgroups are known. */
export class PodNetworks {
  readonly #options: PodNetworksOptions;
  readonly #known = new Map<string, Known>();
  /** When such a look was. */
  readonly #looked = new Map<string, number>();

  constructor(options: PodNetworksOptions) {
    this.#options = options;
  }

  /**
   * {@link NO_NETWORK} while no process is in one that is the pod's for sure; nothing
   * is taken for nested then. One in the host's has none of its own.
   * @param pod unless nobody knows it
   */
  of(podKey: string, pod?: Place): PodNetwork {
    const { host } = this.#options;
    if (pod?.hostNetwork === true) return this.forget(podKey);
    const known = this.#known.get(podKey);
    if (known !== undefined && isToldIn(known.network, pod) && host.stands(known.witness))
      return known.network;
    return this.#find(podKey, pod)?.network ?? NO_NETWORK;
  }

  /** Whether a process of the pod could still tell. */
  isWanting(podKey: string, { hostNetwork }: Pick<Pod, 'hostNetwork'>): boolean {
    if (hostNetwork || this.#known.has(podKey)) return false;
    return performance.now() - (this.#looked.get(podKey) ?? -Infinity) > PAUSE_MS;
  }

  /** Keys of the pods that have, or may have, a network. */
  keys(): readonly string[] {
    return [...new Set([...this.#known.keys(), ...this.#looked.keys()])];
  }

  /** Looks at the pod's network again. Whether it is another one, or has changed, or may be known by now. */
  hasChanged(podKey: string): boolean {
    const known = this.#known.get(podKey);
    if (known === undefined) return this.#looked.has(podKey);
    const tables = this.#options.host.tablesOf(known.witness);
    if (tables === undefined) return true;
    const network = this.#read(known.witness, tables);
    this.#known.set(podKey, { ...known, network });
    return !isDeepStrictEqual(known.network, network);
  }

  /** The pod is gone, or nobody needs its network. */
  forget(podKey: string): PodNetwork {
    this.#known.delete(podKey);
    this.#looked.delete(podKey);
    return NO_NETWORK;
  }

  /** The one that is known of the pod, else the one that has an address which its status says. */
  #find(podKey: string, pod: Place | undefined): Known | undefined {
    const { host, pathsOf, remembered } = this.#options;
    const paths = pathsOf(podKey);
    const before = this.#known.get(podKey)?.network.netns ?? remembered(podKey);
    const same = before === 0n ? undefined : host.witnessOf(Number(before), paths);
    this.forget(podKey);
    const known = same === undefined ? undefined : this.#believe(same, pod);
    const others = known === undefined ? host.witnessesIn(paths) : [];
    const isTold = pod !== undefined && pod.ips.length > 0;
    const found = known ?? (isTold ? this.#firstOf(others, pod) : undefined);
    if (found !== undefined) this.#known.set(podKey, found);
    else if (others.length > 0) this.#looked.set(podKey, performance.now());
    return found;
  }

  #firstOf(witnesses: readonly NetworkWitness[], pod: Place): Known | undefined {
    for (const witness of witnesses) {
      const known = this.#believe(witness, pod);
      if (known !== undefined) return known;
    }
    return undefined;
  }

  #believe(witness: NetworkWitness, pod: Place | undefined): Known | undefined {
    const tables = this.#options.host.tablesOf(witness);
    const network = tables === undefined ? undefined : this.#read(witness, tables);
    return network !== undefined && isToldIn(network, pod) ? { witness, network } : undefined;
  }

  #read({ netns }: NetworkWitness, tables: NetworkTables): PodNetwork {
    const proxies = this.#options.proxyIps();
    const to4 = tables.deviceTo(bytesOf(proxies.find((ip) => isIPv4(ip))), 4);
    const to6 = tables.deviceTo(bytesOf(proxies.find((ip) => !isIPv4(ip))), 6);
    return {
      netns: BigInt(netns),
      addresses: tables.addresses.map(({ ip, device }) => {
        const way = isIPv4(ip) ? to4 : to6;
        // Where one of the two is not known, it may be the way to the proxy.
        return { ip, isElsewhere: device !== undefined && way !== undefined && device !== way.name };
      }),
      devices: { ip4: to4?.index ?? 0, ip6: to6?.index ?? 0 },
    };
  }
}

const bytesOf = (ip: string | undefined): Uint8Array | undefined =>
  ip === undefined ? undefined : addressBytes(ip);

/** Whether it has an address that the status says; so also of a pod without any. */
const isToldIn = ({ addresses }: PodNetwork, pod: Place | undefined): boolean =>
  pod === undefined || pod.ips.length === 0 || addresses.some(({ ip }) => pod.ips.includes(ip));
