/**
 * Which network namespace is a pod's: that of the oldest of its processes that is
 * in none of the host's. It is asked for again when that process has ended, as
 * a runtime may make a pod's sandbox anew, with another network.
 */
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
}

export interface PodNetworksOptions {
  readonly host: WitnessHost;
  /** The cgroups of a pod whose processes are in its network, relative to the watched root. */
  readonly pathsOf: (podKey: string) => readonly string[];
}

/** Stands for a network that nobody knows. */
export const NO_NETWORK = 0n;

/** Pods are named by the key under which their cgroups are known. */
export class PodNetworks {
  readonly #options: PodNetworksOptions;
  readonly #witnesses = new Map<string, NetworkWitness>();

  constructor(options: PodNetworksOptions) {
    this.#options = options;
  }

  /**
   * Inode of the pod's network namespace, {@link NO_NETWORK} when no process shows
   * one: of none that runs, nothing is lost by that. One in the host's has none of its own.
   */
  of(podKey: string, { hostNetwork }: Pick<Pod, 'hostNetwork'>): bigint {
    if (hostNetwork) {
      this.forget(podKey);
      return NO_NETWORK;
    }
    const { host, pathsOf } = this.#options;
    const known = this.#witnesses.get(podKey);
    if (known !== undefined && host.stands(known)) return BigInt(known.netns);
    const found = host.witnessIn(pathsOf(podKey));
    if (found === undefined) this.forget(podKey);
    else this.#witnesses.set(podKey, found);
    return found === undefined ? NO_NETWORK : BigInt(found.netns);
  }

  /** Whether a process of the pod could still tell. */
  isWanting(podKey: string, { hostNetwork }: Pick<Pod, 'hostNetwork'>): boolean {
    return !hostNetwork && !this.#witnesses.has(podKey);
  }

  /** Keys of the pods whose witness has ended: who came after it may be elsewhere. */
  doubtful(): string[] {
    const { host } = this.#options;
    return [...this.#witnesses].filter(([, witness]) => !host.stands(witness)).map(([key]) => key);
  }

  /** The pod is gone. */
  forget(podKey: string): void {
    this.#witnesses.delete(podKey);
  }
}
