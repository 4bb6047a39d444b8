/** `pod_local_map` and `pod_device_map`: addresses of pods' own network namespaces, and the interfaces that lead to the proxy. */
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import { CgrouteError } from '../../native/error.ts';
import { localAddress, type LocalKey, type PodDevices } from '../../native/layout/layouts.ts';
import { addressBytes } from '../objects/address.ts';
import { MapMirror } from './map-mirror.ts';
import { SHARED_SLOT } from './pod-slots.ts';

interface Local {
  readonly ip: string;
  readonly isElsewhere: boolean;
}

/** A pod may have one in so many of the entries. What it has beyond them is not known to be its own, and goes to the proxy. */
const ONE_IN = 16;

const NO_DEVICES: PodDevices = { ip4: 0, ip6: 0 };

const textOf = ({ slot, address }: LocalKey): string =>
  `${slot} ${Buffer.from(address.word).toString('hex')}`;

export class PodLocals {
  readonly #locals;
  readonly #devices;
  readonly #most: number;
  /** What each slot has of the first, as their texts. */
  readonly #slots = new Map<number, Map<string, LocalKey>>();

  constructor({ podLocals, podDevices }: Pick<DataPlane['maps'], 'podLocals' | 'podDevices'>) {
    this.#locals = new MapMirror(podLocals, textOf);
    this.#devices = new MapMirror(podDevices, String, NO_DEVICES);
    // So that no pod takes the room of the others.
    this.#most = Math.max(1, Math.floor(podLocals.info.maxEntries / ONE_IN));
    for (const { key } of this.#locals.entries()) this.#slot(key.slot).set(textOf(key), key);
  }

  /**
   * Writes what differs. What finds no room counts as absent, with what was thrown.
   * @returns whether there are any
   * @throws CgrouteError `EBPF`
   */
  set(
    slot: number,
    locals: readonly Local[],
    devices: PodDevices,
  ): { readonly hasAny: boolean; readonly unfit?: CgrouteError } {
    // Who has no slot of its own shares it with all others.
    if (slot === SHARED_SLOT) return { hasAny: false };
    this.#setDevices(slot, devices);
    try {
      return { hasAny: this.#setLocals(slot, locals) };
    } catch (error) {
      if (!(error instanceof CgrouteError) || locals.length === 0) throw error;
      this.#setLocals(slot, []);
      return { hasAny: false, unfit: error };
    }
  }

  /** The slot is nobody's any more. */
  clear(slot: number): void {
    this.set(slot, [], NO_DEVICES);
  }

  /** Slots that have any, left by an earlier agent. */
  slots(): ReadonlySet<number> {
    return new Set([...this.#slots.keys(), ...this.#devices.entries().map(({ key }) => key)]);
  }

  /** Undoes what others did to the maps. Returns the number of entries. */
  repair(): number {
    return this.#locals.repair() + this.#devices.repair();
  }

  #setDevices(slot: number, devices: PodDevices): void {
    if (devices.ip4 === 0 && devices.ip6 === 0) this.#devices.delete(slot);
    else this.#devices.set(slot, devices);
  }

  #setLocals(slot: number, locals: readonly Local[]): boolean {
    const before = this.#slot(slot);
    const wanted = new Map<string, { readonly key: LocalKey; readonly value: number }>();
    for (const { ip, isElsewhere } of locals.slice(0, this.#most)) {
      const word = addressBytes(ip);
      if (word === undefined) continue;
      const key = { slot, address: { word } };
      wanted.set(textOf(key), { key, value: isElsewhere ? localAddress.elsewhere : localAddress.leads });
    }
    for (const [text, key] of before) if (!wanted.has(text) && before.delete(text)) this.#locals.delete(key);
    for (const [text, { key, value }] of wanted) {
      this.#locals.set(key, value);
      before.set(text, key);
    }
    if (wanted.size === 0) this.#slots.delete(slot);
    return wanted.size > 0;
  }

  #slot(slot: number): Map<string, LocalKey> {
    const known = this.#slots.get(slot) ?? new Map<string, LocalKey>();
    this.#slots.set(slot, known);
    return known;
  }
}
