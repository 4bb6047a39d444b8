/** How large the kernel's maps are made. */
import type { MapShares } from '../../native/data-plane/data-plane.ts';
import type { Config } from '../config/config.ts';

/** A pod has its own cgroup, a few containers', and for a while those of restarted ones. */
const CGROUPS_PER_POD = 8;
/** Several proxies' listen backlogs. */
const MAX_UNACCEPTED = 8_192;

/** One listen backlog, as large as Linux makes it (somaxconn): who connects much waits there, and takes nobody's room. */
const MAX_UNACCEPTED_PER_POD = 4_096;

/** What one pod may have of the maps that all pods share. */
export function mapShares({ maxConnections, maxConnectionsPerPod }: Config): MapShares {
  return {
    connections: Math.min(maxConnectionsPerPod, maxConnections),
    originals: Math.min(MAX_UNACCEPTED_PER_POD, maxConnections),
  };
}

/** Entries of each map whose size follows from the configuration. */
export function mapSizes({ maxPods, maxConnections, maxTrafficEntries }: Config): Record<string, number> {
  return {
    cgroup_info_map: maxPods * CGROUPS_PER_POD,
    pod_ip_map: maxPods * 2,
    pod_info_map: maxPods,
    pod_counters_map: maxPods + 1,
    bypass_filter_map: maxPods,
    bypass_filter6_map: maxPods,
    pod_options_map: maxPods + 1,
    pod_port_map: maxTrafficEntries,
    pod_range_map: maxTrafficEntries,
    pod_share_map: maxPods + 1,
    // The small one before it is not counted.
    connection_overflow_map: maxConnections,
    // Those that have not been accepted yet; a small map is a fast one.
    original_dst_map: Math.min(maxConnections, MAX_UNACCEPTED),
  };
}
