/**
 * Which pod an address belongs to. A new pod may get an address before the old
 * one's deletion is seen, so the newest pod that claims it has it.
 */
export interface Claim {
  /** The pod's index in the counters. */
  readonly slot: number;
  /** Milliseconds since the epoch. */
  readonly createdAt: number;
  /** Whether host processes reach this pod through the proxy. */
  readonly redirected: boolean;
  /** Whether its annotations leave some of its ports alone. */
  readonly hasOptions: boolean;
}

export class AddressClaims {
  readonly #claims = new Map<string, Map<string, Claim>>();
  readonly #addresses = new Map<string, readonly string[]>();

  /** Replaces what a pod claims. Returns the addresses whose owner may have changed. */
  claim(podKey: string, addresses: readonly string[], claim: Claim): readonly string[] {
    const before = this.#addresses.get(podKey) ?? [];
    for (const address of before) {
      if (!addresses.includes(address)) this.#drop(address, podKey);
    }
    for (const address of addresses) {
      const pods = this.#claims.get(address) ?? new Map<string, Claim>();
      pods.set(podKey, claim);
      this.#claims.set(address, pods);
    }
    if (addresses.length === 0) this.#addresses.delete(podKey);
    else this.#addresses.set(podKey, addresses);
    return [...new Set([...before, ...addresses])];
  }

  /** The claim of the newest pod; undefined when nobody has the address. */
  owner(address: string): Claim | undefined {
    let newest: Claim | undefined;
    // Later claims win among equals, as creation times have a second's grain.
    for (const claim of this.#claims.get(address)?.values() ?? []) {
      if (newest === undefined || claim.createdAt >= newest.createdAt) newest = claim;
    }
    return newest;
  }

  #drop(address: string, podKey: string): void {
    const pods = this.#claims.get(address);
    pods?.delete(podKey);
    if (pods?.size === 0) this.#claims.delete(address);
  }
}
