/** What is asked of the host about pods' networks, answered by what it says of processes. */
import type { Host } from '../../watcher/open-host.ts';
import type { AddressHost } from '../inventory/pod-addresses.ts';
import type { WitnessHost } from '../inventory/pod-networks.ts';

/** Processes of each cgroup that are asked: one may have 60,000. */
const ASKED_OF_CGROUP = 8;

type Asked = Pick<Host, 'isOwnAddress' | 'pidsOf' | 'networkOf' | 'networkTablesOf' | 'addressesOf'>;

/**
 * What the oldest process of a pod says. A process may have gone into a namespace of
 * its own making, with any address that it likes. The oldest is the runtime's, which
 * is in the pod's; a cgroup lists those first that came first.
 */
function oldest<T extends { readonly startedTicks: number; readonly isHost: boolean }>(
  { pidsOf }: Pick<Host, 'pidsOf'>,
  paths: readonly string[],
  ask: (pid: number) => T | undefined,
): T | undefined {
  const found = paths
    .flatMap((path) => pidsOf(path).slice(0, ASKED_OF_CGROUP).map(ask))
    .filter((said) => said !== undefined)
    .filter(({ isHost }) => !isHost);
  return found.sort((a, b) => a.startedTicks - b.startedTicks)[0];
}

export function addressHost(host: Asked): AddressHost {
  return {
    isOwnAddress: (ip) => host.isOwnAddress(ip),
    addressesIn: (paths) =>
      oldest(host, paths, (pid) => {
        const said = host.addressesOf(pid);
        return said === undefined || said.ips.length === 0 ? undefined : said;
      })?.ips,
  };
}

export function witnessHost(host: Asked): WitnessHost {
  return {
    witnessIn: (paths) => oldest(host, paths, (pid) => host.networkOf(pid)),
    stands({ pid, netns, startedTicks }) {
      const now = host.networkOf(pid);
      return now !== undefined && now.netns === netns && now.startedTicks === startedTicks;
    },
    tablesOf: (pid) => host.networkTablesOf(pid),
  };
}
