/** What the reconciler asks of the host, answered by the watch of it. */
import type { HostWatch } from '../watcher/host-watch.ts';
import type { HostView } from './reconciler.ts';

/** @param host the watch, which is made after the reconciler */
export function hostView(host: () => HostWatch): HostView {
  return {
    cgroupIdAt: (path) => host().ensure(path)?.id,
    isOwnAddress: (ip) => host().isOwnAddress(ip),
    addressesIn(paths) {
      for (const path of paths) {
        for (const pid of host().pidsOf(path)) {
          const addresses = host().addressesOf(pid);
          if (addresses !== undefined && !addresses.isHost && addresses.ips.length > 0) return addresses.ips;
        }
      }
      return undefined;
    },
  };
}
