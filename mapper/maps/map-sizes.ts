/** How large the kernel's maps are made. */
import type { MapShares } from '../../native/data-plane/maps.ts';
import { freePart } from '../../native/layout/layouts.ts';
import { allMaps } from '../../native/programs/maps.ts';
import type { Config } from '../config/config.ts';

/** One listen backlog, as large as Linux makes it (somaxconn): who connects much waits there, and takes nobody's room. */
const MAX_UNACCEPTED_PER_POD = 4_096;

/** What one pod may have at most of the maps that all pods share; how full they are may leave it less, see {@link mayHave}. */
export function mapShares({ maxConnections, maxConnectionsPerPod }: Config): MapShares {
  return {
    connections: Math.min(maxConnectionsPerPod, maxConnections),
    originals: Math.min(MAX_UNACCEPTED_PER_POD, maxConnections),
  };
}

/** How many entries of such a map one pod may have now, by what the programs go by: its share, or a part of what is free. */
export function mayHave(
  of: keyof MapShares,
  shares: MapShares,
  room: { readonly entries: number; readonly capacity: number },
): number {
  const free = Math.max(0, room.capacity - room.entries);
  return Math.min(shares[of], Math.ceil(free / freePart[of]));
}

/** Entries of each map whose size follows from the configuration, by its rule in the table of maps. */
export function mapSizes({ maxPods, maxConnections, maxTrafficEntries }: Config): Record<string, number> {
  const counts = { pod: maxPods, connection: maxConnections, trafficEntry: maxTrafficEntries };
  return Object.fromEntries(
    allMaps.flatMap(({ name, size }) => {
      if (size === undefined) return [];
      const { per, times = 1, plus = 0, most = Infinity } = size;
      return [[name, Math.min(counts[per] * times + plus, most)] as const];
    }),
  );
}
