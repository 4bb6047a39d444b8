/** The kernel's counters by slot, and what the slots' earlier pods had counted. */
import type { DataPlane } from '../../native/data-plane/data-plane.ts';

export class PodCounters {
  readonly #map: DataPlane['maps']['counters'];
  readonly #retired: number[] = [];
  #highestSlot = 0;

  constructor(map: DataPlane['maps']['counters']) {
    this.#map = map;
  }

  /** A slot that a pod had before this agent. */
  restore(slot: number): void {
    this.#highestSlot = Math.max(this.#highestSlot, slot);
  }

  /** From zero; what the slot's last pod had counted stays in the totals, unless an earlier agent had counted it. */
  start(slot: number): void {
    if (slot > this.#highestSlot) this.#highestSlot = slot;
    else
      this.#map
        .get(slot)
        ?.count.forEach(
          (count, branch) => (this.#retired[branch] = (this.#retired[branch] ?? 0) + Number(count)),
        );
    this.#map.set(slot, { count: [] });
  }

  /** By branch, of pods that are gone. */
  get retired(): readonly number[] {
    return this.#retired;
  }

  get highestSlot(): number {
    return this.#highestSlot;
  }
}
