/** `pod_ip_map`: addresses of pods that host processes reach through the proxy. */
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import type { Address } from '../../native/layout/layouts.ts';
import { AddressClaims, type Claim } from './address-claims.ts';
import { MapMirror } from './map-mirror.ts';
import { addressBytes } from '../objects/address.ts';

const textOf = ({ word }: Address): string => Buffer.from(word).toString('hex');

export class PodAddressMap {
  readonly #claims = new AddressClaims();
  readonly #map;
  readonly #beforeFirst: () => void;
  /** Addresses that some pod claims, as their bytes in hex. */
  readonly #claimed = new Set<string>();

  /** @param beforeFirst called before an address is written; idempotent */
  constructor(map: DataPlane['maps']['podAddresses'], beforeFirst: () => void) {
    this.#map = new MapMirror(map, textOf);
    this.#beforeFirst = beforeFirst;
  }

  /** Replaces what a pod claims. @throws CgrouteError `EBPF` */
  claim(podKey: string, ips: readonly string[], claim: Claim): void {
    for (const ip of this.#claims.claim(podKey, ips, claim)) {
      const word = addressBytes(ip);
      if (word === undefined) continue;
      const owner = this.#claims.owner(ip);
      if (owner === undefined) this.#claimed.delete(textOf({ word }));
      else this.#claimed.add(textOf({ word }));
      if (owner?.redirected === true) this.#beforeFirst();
      if (owner?.redirected === true)
        this.#map.set({ word }, { slot: owner.slot, hasOptions: owner.hasOptions ? 1 : 0 });
      else this.#map.delete({ word });
    }
  }

  /** The pod is gone. */
  release(podKey: string): void {
    this.claim(podKey, [], { slot: 0, createdAt: 0, redirected: false, hasOptions: false });
  }

  /** Removes what an earlier agent left and no pod claims. Returns the number of entries. */
  removeLeftovers(): number {
    return this.#map.entries().filter(({ key }) => !this.#claimed.has(textOf(key)) && this.#map.delete(key))
      .length;
  }

  repair(): number {
    return this.#map.repair();
  }

  get size(): number {
    return this.#map.size;
  }
}
