/** How large the kernel's maps are made. */
import type { MapShares } from '../../native/data-plane/maps.ts';
import { allMaps } from '../../native/programs/maps.ts';
import type { Config } from '../config/config.ts';

/** One listen backlog, as large as Linux makes it (somaxconn): who connects much waits there, and takes nobody's room. */
const MAX_UNACCEPTED_PER_POD = 4_096;

/** What one pod may have of the maps that all pods share. */
export function mapShares({ maxConnections, maxConnectionsPerPod }: Config): MapShares {
  return {
    connections: Math.min(maxConnectionsPerPod, maxConnections),
    originals: Math.min(MAX_UNACCEPTED_PER_POD, maxConnections),
  };
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
