/** A map of the kernel beside what the agent knows to be in it, so that only differences are written. */
import { isDeepStrictEqual } from 'node:util';
import type { BpfMap } from '../../native/bpf/bpf-map.ts';

/**
 * The agent is the only writer of these maps, so what it wrote is what should be
 * there; `repair` looks whether it is, as others on the host can write, too.
 */
export class MapMirror<K, V> {
  readonly #map: BpfMap<K, V>;
  readonly #textOf: (key: K) => string;
  #writes = 0;
  readonly #nothing: V | undefined;
  readonly #held = new Map<string, { readonly key: K; readonly value: V }>();
  /** Entries of others at the last repair. */
  #strangers: ReadonlySet<string> = new Set();

  /** @param nothing for an array, which has every key: the value that stands for none */
  constructor(map: BpfMap<K, V>, textOf: (key: K) => string, nothing?: V) {
    this.#map = map;
    this.#textOf = textOf;
    this.#nothing = nothing;
    for (const [key, value] of this.#entries()) this.#held.set(textOf(key), { key, value });
  }

  /**
   * Puts back what was altered or deleted, removes what was added. Returns how many
   * entries that were.
   * @param kernel where the kernel adds and removes entries, too: what it added is
   *   left alone at first, as the agent is going to hear of it, and what it removed
   *   is not put back when `isGone`
   */
  repair(kernel?: { readonly isGone: (key: K) => boolean }): number {
    const found = new Map(this.#entries().map(([key, value]) => [this.#textOf(key), { key, value }]));
    const altered = [...this.#held].filter(
      ([text, { key, value }]) =>
        !isDeepStrictEqual(found.get(text)?.value, value) &&
        !(kernel !== undefined && !found.has(text) && kernel.isGone(key)),
    );
    const strangers = [...found].filter(([text]) => !this.#held.has(text));
    const added = strangers.filter(([text]) => kernel === undefined || this.#strangers.has(text));
    this.#strangers = new Set(strangers.map(([text]) => text));
    // In this order: what others added may take all the room.
    for (const [, { key }] of added) this.#remove(key);
    for (const [, { key, value }] of altered) this.#map.set(key, value);
    return altered.length + added.length;
  }

  get size(): number {
    return this.#held.size;
  }

  /** So often {@link set} and {@link delete} found something to do. */
  get writes(): number {
    return this.#writes;
  }

  get(key: K): V | undefined {
    return this.#held.get(this.#textOf(key))?.value;
  }

  entries(): { readonly key: K; readonly value: V }[] {
    return [...this.#held.values()];
  }

  /** Returns whether it had to be written. @throws CgrouteError `EBPF`; what was there stays */
  set(key: K, value: V): boolean {
    const text = this.#textOf(key);
    if (isDeepStrictEqual(this.#held.get(text)?.value, value)) return false;
    this.#map.set(key, value);
    this.#held.set(text, { key, value });
    this.#writes++;
    return true;
  }

  /** Removes what the kernel may have added. */
  drop(key: K): void {
    if (!this.delete(key)) this.#remove(key);
  }

  delete(key: K): boolean {
    const text = this.#textOf(key);
    if (!this.#held.has(text)) return false;
    this.#remove(key);
    this.#held.delete(text);
    this.#writes++;
    return true;
  }

  #entries(): [K, V][] {
    const entries = this.#map.entries();
    return this.#nothing === undefined
      ? entries
      : entries.filter(([, value]) => !isDeepStrictEqual(value, this.#nothing));
  }

  #remove(key: K): void {
    if (this.#nothing === undefined) this.#map.delete(key);
    else this.#map.set(key, this.#nothing);
  }
}
