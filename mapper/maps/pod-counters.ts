/** The kernel's counters by slot, and what the slots' earlier pods had counted. */
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import type { PinnedMaps } from '../../native/data-plane/maps.ts';
import { branch } from '../../native/layout/layouts.ts';

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
        ?.count.forEach((count, at) => (this.#retired[at] = (this.#retired[at] ?? 0) + Number(count)));
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

/** Connections of all pods that have been redirected so far, in both directions. */
export function redirectedOf({ pods, counters }: Pick<PinnedMaps, 'pods' | 'counters'>): number {
  return pods.entries().reduce((sum, [, { slot }]) => {
    const count = counters.get(slot)?.count;
    return sum + Number((count?.[branch.redirected] ?? 0n) + (count?.[branch.inboundRedirected] ?? 0n));
  }, 0);
}
