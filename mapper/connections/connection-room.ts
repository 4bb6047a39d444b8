/** How full the kernel's maps are whose room can run out. */
import type { PinnedMaps } from '../../native/data-plane/maps.ts';

/** The maps whose room can run out; those of arrays are always full, and behind the first 4,096 connections are the others. */
const FINITE = ['cgroups', 'pods', 'podAddresses', 'overflowConnections', 'originals'] as const;
export type RoomMaps = Pick<PinnedMaps, (typeof FINITE)[number] | 'overflowCount'>;

export interface MapRoom {
  readonly name: string;
  readonly entries: number;
  readonly capacity: number;
}

export function isFull({ entries, capacity }: Omit<MapRoom, 'name'>): boolean {
  return entries >= capacity;
}

/** How full they are. The kernel keeps count of the largest. */
export function mapRoom(maps: RoomMaps): MapRoom[] {
  return FINITE.map((key) => ({
    name: maps[key].name,
    entries: key === 'overflowConnections' ? overflowEntries(maps) : maps[key].count(),
    capacity: maps[key].info.maxEntries,
  }));
}

export function overflowEntries(maps: Pick<RoomMaps, 'overflowCount'>): number {
  return Number(BigInt.asIntN(64, maps.overflowCount.get(0) ?? 0n));
}
