/**
 * Which network namespace is a pod's: that of the oldest of its processes that is
 * in none of the host's; with its addresses, and where it leads to the proxy. It is
 * another one only when no process of the pod is in it any more, as a runtime may
 * make a pod's sandbox anew, and a process may go where it likes.
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
  /** Its addresses and interfaces have been read, as somebody wanted them. */
  readonly isRead: boolean;
}

type Place = Pick<Pod, 'hostNetwork' | 'ips'>;

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
   * @param pod unless nobody knows it
   * @param wantsMore its addresses and interfaces too, which take longer to read
   */
  of(podKey: string, pod?: Place, wantsMore = false): PodNetwork {
    if (pod?.hostNetwork === true) {
      this.forget(podKey);
      return NO_NETWORK;
    }
    const known = this.#known.get(podKey);
    const stands = known !== undefined && this.#options.host.stands(known.witness);
    if (stands && (!wantsMore || (known.isRead && !isEmpty(known.network)))) return known.network;
    const witness = stands ? known.witness : this.#witness(podKey, pod);
    if (witness === undefined) {
      this.forget(podKey);
      return NO_NETWORK;
    }
    return this.#look(podKey, witness, wantsMore).network;
  }

  /** Whether a process of the pod could still tell. */
  isWanting(podKey: string, { hostNetwork }: Pick<Pod, 'hostNetwork'>): boolean {
    const known = this.#known.get(podKey);
    // A runtime may fill the network after the first process of the pod.
    return !hostNetwork && (known === undefined || (known.isRead && isEmpty(known.network)));
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
    if (!known.isRead) return false;
    return !isDeepStrictEqual(known.network, this.#look(podKey, known.witness, true).network);
  }

  /** The pod is gone. */
  forget(podKey: string): void {
    this.#known.delete(podKey);
  }

  /**
   * In the network that is known of the pod; else in the one that has an address which
   * its status says. A process may have left the pod's network for one of its own, so
   * another than the one before is believed only so.
   */
  #witness(podKey: string, pod: Place | undefined): NetworkWitness | undefined {
    const { host, pathsOf, remembered } = this.#options;
    const paths = pathsOf(podKey);
    const before = this.#known.get(podKey)?.network.netns ?? remembered(podKey);
    const same = before === 0n ? undefined : host.witnessOf(Number(before), paths);
    if (same !== undefined) return same;
    const found = host.witnessesIn(paths);
    if (found.length === 1 && before === 0n) return found[0];
    const told = (witness: NetworkWitness): boolean =>
      host.tablesOf(witness)?.addresses.some(({ ip }) => pod?.ips.includes(ip)) ?? false;
    return found.find(told) ?? (before === 0n ? found[0] : undefined);
  }

  #look(podKey: string, witness: NetworkWitness, wantsMore: boolean): Known {
    const netns = BigInt(witness.netns);
    const before = this.#known.get(podKey);
    const tables = wantsMore ? this.#options.host.tablesOf(witness) : undefined;
    const network =
      tables === undefined
        ? before?.network.netns === netns
          ? before.network
          : { ...NO_NETWORK, netns }
        : { netns, ...this.#read(tables) };
    const known = { witness, network, isRead: tables !== undefined || (before?.isRead ?? false) };
    this.#known.set(podKey, known);
    return known;
  }

  #read(tables: NetworkTables): Omit<PodNetwork, 'netns'> {
    const proxies = this.#options.proxyIps();
    const to4 = tables.deviceTo(bytesOf(proxies.find((ip) => isIPv4(ip))), 4);
    const to6 = tables.deviceTo(bytesOf(proxies.find((ip) => !isIPv4(ip))), 6);
    return {
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

const isEmpty = ({ addresses, devices }: PodNetwork): boolean =>
  addresses.length === 0 && devices.ip4 === 0 && devices.ip6 === 0;
