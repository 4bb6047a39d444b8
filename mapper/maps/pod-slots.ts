/** Which element of the counters' array belongs to which pod. */

/** Slot 0: host processes, and pods that nobody knows. */
export const SHARED_SLOT = 0;

export class PodSlots {
  readonly #size: number;
  readonly #taken = new Map<string, number>();
  readonly #free: number[] = [];
  #next = SHARED_SLOT + 1;

  /** @param size elements of the array, the shared one included */
  constructor(size: number) {
    this.#size = size;
  }

  /** Puts back what a pod had before the agent was restarted. */
  restore(podKey: string, slot: number): void {
    if (slot === SHARED_SLOT || slot >= this.#size || [...this.#taken.values()].includes(slot)) return;
    for (; this.#next <= slot; this.#next++) {
      if (this.#next !== slot) this.#free.push(this.#next);
    }
    const at = this.#free.indexOf(slot);
    if (at >= 0) this.#free.splice(at, 1);
    this.#taken.set(podKey, slot);
  }

  /** The pod's slot; `isNew` when it was given just now, so that its counters start at zero. The shared one when all are taken. */
  of(podKey: string): { readonly slot: number; readonly isNew: boolean } {
    const taken = this.#taken.get(podKey);
    if (taken !== undefined) return { slot: taken, isNew: false };
    const slot = this.#free.pop() ?? (this.#next < this.#size ? this.#next++ : SHARED_SLOT);
    if (slot === SHARED_SLOT) return { slot, isNew: false };
    this.#taken.set(podKey, slot);
    return { slot, isNew: true };
  }

  /** Those that are some pod's. */
  taken(): ReadonlySet<number> {
    return new Set(this.#taken.values());
  }

  /** Returns the slot that the pod had of its own. */
  release(podKey: string): number | undefined {
    const slot = this.#taken.get(podKey);
    if (slot === undefined) return undefined;
    this.#taken.delete(podKey);
    this.#free.push(slot);
    return slot;
  }
}
