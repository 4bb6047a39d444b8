/** What is asked of the host about addresses of pods, answered by what it says of processes. */
import type { Host } from '../../watcher/open-host.ts';
import type { AddressHost } from '../inventory/pod-addresses.ts';

/** Processes of each cgroup that are asked for their addresses: one may have 60,000. */
const ASKED_OF_CGROUP = 8;

export function addressHost(host: Pick<Host, 'isOwnAddress' | 'pidsOf' | 'addressesOf'>): AddressHost {
  return {
    isOwnAddress: (ip) => host.isOwnAddress(ip),
    addressesIn(paths) {
      // A process may have gone into a namespace of its own making, with any address that it likes.
      // The oldest is the runtime's, which is in the pod's; a cgroup lists those first that came first.
      const found = paths
        .flatMap((path) =>
          host
            .pidsOf(path)
            .slice(0, ASKED_OF_CGROUP)
            .map((pid) => host.addressesOf(pid)),
        )
        .filter((addresses) => addresses !== undefined && !addresses.isHost && addresses.ips.length > 0);
      return found.sort((a, b) => (a?.startedTicks ?? 0) - (b?.startedTicks ?? 0))[0]?.ips;
    },
  };
}
