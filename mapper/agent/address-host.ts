/** What is asked of the host about pods' networks, answered by what it says of processes. */
import type { Host } from '../../watcher/open-host.ts';
import type { AddressHost } from '../inventory/pod-addresses.ts';
import type { WitnessHost } from '../inventory/pod-networks.ts';

/** Processes of each cgroup that are asked: one may have 60,000. */
const ASKED_OF_CGROUP = 8;
/** When the one that was asked has ended. */
const SOUGHT_IN_CGROUP = 4096;

type Asked = Pick<
  Host,
  'isOwnAddress' | 'pidsOf' | 'netnsOf' | 'networkOf' | 'networkTablesOf' | 'addressesOf'
>;

/**
 * What the processes of a pod say, the oldest first. A process may have gone into a
 * namespace of its own making, with any address that it likes. The oldest is the
 * runtime's, which is in the pod's; a cgroup lists those first that came first.
 */
function byAge<T extends { readonly startedTicks: number; readonly isHost: boolean }>(
  { pidsOf }: Pick<Host, 'pidsOf'>,
  paths: readonly string[],
  ask: (pid: number) => T | undefined,
): T[] {
  return paths
    .flatMap((path) => pidsOf(path).slice(0, ASKED_OF_CGROUP).map(ask))
    .filter((said) => said !== undefined)
    .filter(({ isHost }) => !isHost)
    .sort((a, b) => a.startedTicks - b.startedTicks);
}

export function addressHost(host: Asked): AddressHost {
  return {
    isOwnAddress: (ip) => host.isOwnAddress(ip),
    addressesIn: (paths) =>
      byAge(host, paths, (pid) => {
        const said = host.addressesOf(pid);
        return said === undefined || said.ips.length === 0 ? undefined : said;
      })[0]?.ips,
  };
}

export function witnessHost(host: Asked): WitnessHost {
  return {
    witnessesIn(paths) {
      const seen = new Set<number>();
      return byAge(host, paths, (pid) => host.networkOf(pid)).filter(
        ({ netns }) => !seen.has(netns) && seen.add(netns),
      );
    },
    witnessOf(netns, paths) {
      for (const path of paths) {
        const pid = host
          .pidsOf(path)
          .slice(0, SOUGHT_IN_CGROUP)
          .find((each) => host.netnsOf(each) === netns);
        const said = pid === undefined ? undefined : host.networkOf(pid);
        if (said?.netns === netns && !said.isHost) return said;
      }
      return undefined;
    },
    stands({ pid, netns, startedTicks }) {
      const now = host.networkOf(pid);
      return now !== undefined && now.netns === netns && now.startedTicks === startedTicks;
    },
    tablesOf: ({ pid, netns }) => host.networkTablesOf(pid, netns),
  };
}
