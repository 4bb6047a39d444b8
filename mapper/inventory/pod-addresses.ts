/**
 * Which addresses count for a pod: those of its status, as far as they can be a
 * pod's; for want of any, those of its network namespace.
 */
import { isNobodys } from '../objects/address.ts';
import type { Pod } from '../objects/pod.ts';

/** What is asked of the host. */
export interface AddressHost {
  /** True for an address of the host itself. */
  isOwnAddress(ip: string): boolean;
  /** Addresses of the network namespace of any process below these cgroups; undefined when that tells nothing. */
  addressesIn(paths: readonly string[]): readonly string[] | undefined;
}

export interface PodAddressBookOptions {
  readonly host: AddressHost;
  /** The cgroups of a pod whose processes are in its network, relative to the watched root. */
  readonly pathsOf: (podKey: string) => readonly string[];
}

/** Pods are named by the key under which their cgroups are known. */
export class PodAddressBook {
  readonly #options: PodAddressBookOptions;
  /** Found in the network namespace, by the pod's key; never empty. */
  readonly #found = new Map<string, readonly string[]>();

  constructor(options: PodAddressBookOptions) {
    this.#options = options;
  }

  /** Those of the pod's status that can be a pod's. */
  told(pod: Pod): readonly string[] {
    return pod.ips.filter((ip) => !isNobodys(ip) && !this.#options.host.isOwnAddress(ip));
  }

  /** Those that are the pod's own: none for one in the host's network. Looks at its processes where nothing tells. */
  ownOf(podKey: string, pod: Pod): readonly string[] {
    if (pod.hostNetwork) return [];
    const told = this.told(pod);
    if (told.length > 0) return told;
    const known = this.#found.get(podKey);
    if (known !== undefined) return known;
    const found = this.#options.host.addressesIn(this.#options.pathsOf(podKey)) ?? [];
    if (found.length > 0) this.#found.set(podKey, found);
    return found;
  }

  /** Those under which it is reached: the host's own for one in the host's network. */
  reachedAt(podKey: string, pod: Pod): readonly string[] {
    return pod.hostNetwork ? pod.ips : this.ownOf(podKey, pod);
  }

  /** Whether nothing has told the pod's address so far, so that a process of it could. */
  isWanting(podKey: string, pod: Pod): boolean {
    return !pod.hostNetwork && !this.#found.has(podKey) && this.told(pod).length === 0;
  }

  /** The pod is gone. */
  forget(podKey: string): void {
    this.#found.delete(podKey);
  }
}
