/**
 * The addresses of bypassed pods, in the maps that the rules in those pods ask: which
 * of their directions pass their sidecar by.
 */
import { isIPv4 } from 'node:net';
import type { PinnedMaps } from '../../native/data-plane/maps.ts';
import { MapMirror } from '../maps/map-mirror.ts';
import { addressBytes } from '../objects/address.ts';

export type BypassMaps = Pick<PinnedMaps, 'bypass4' | 'bypass6'>;

interface Listed {
  readonly ips: readonly string[];
  readonly isBypassed: boolean;
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

export class BypassList {
  readonly #bypass4: MapMirror<Uint8Array, number>;
  readonly #bypass6: MapMirror<Uint8Array, number>;
  /** By UID, bypassed or not. */
  readonly #pods = new Map<string, Listed>();

  constructor(maps: BypassMaps) {
    this.#bypass4 = new MapMirror(maps.bypass4, hex);
    this.#bypass6 = new MapMirror(maps.bypass6, hex);
  }

  /**
   * @param directions of `bypassDirection`; 0 for a pod that is not bypassed
   * @throws CgrouteError `EBPF` when the map is full; what was known of the pod stands
   */
  set(uid: string, ips: readonly string[], directions: number): void {
    this.#replace(this.#pods.get(uid), uid, directions === 0 ? [] : ips, directions);
    this.#pods.set(uid, { ips, isBypassed: directions !== 0 });
  }

  /** The pod is gone. */
  forget(uid: string): void {
    const known = this.#pods.get(uid);
    this.#pods.delete(uid);
    this.#replace(known, uid, [], 0);
  }

  /** Another pod may have the address by now: that one's entry stays. */
  #replace(known: Listed | undefined, uid: string, wanted: readonly string[], directions: number): void {
    const others = this.#bypassedIps(uid);
    for (const ip of known?.ips ?? []) {
      if (wanted.includes(ip) || others.has(ip)) continue;
      const { mirror, key } = this.#placeOf(ip);
      mirror.delete(key);
    }
    for (const ip of wanted) {
      const { mirror, key } = this.#placeOf(ip);
      mirror.set(key, directions);
    }
  }

  #bypassedIps(except?: string): ReadonlySet<string> {
    return new Set(
      [...this.#pods].flatMap(([uid, { ips, isBypassed }]) => (isBypassed && uid !== except ? ips : [])),
    );
  }

  #placeOf(ip: string): { readonly mirror: MapMirror<Uint8Array, number>; readonly key: Uint8Array } {
    const bytes = addressBytes(ip) ?? new Uint8Array(16);
    return isIPv4(ip)
      ? { mirror: this.#bypass4, key: bytes.slice(12) }
      : { mirror: this.#bypass6, key: bytes };
  }

  /** Once all pods are known: entries of those that are no more. Returns how many they were. */
  removeLeftovers(): number {
    const wanted = new Set([...this.#bypassedIps()].map((ip) => hex(this.#placeOf(ip).key)));
    let removed = 0;
    for (const mirror of [this.#bypass4, this.#bypass6])
      for (const { key } of mirror.entries())
        if (!wanted.has(hex(key))) removed += Number(mirror.delete(key));
    return removed;
  }

  /** Returns how many entries somebody else had altered, which are put back. */
  repair(): number {
    return this.#bypass4.repair() + this.#bypass6.repair();
  }
}
