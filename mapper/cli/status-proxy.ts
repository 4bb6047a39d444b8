/** The node's proxy in `status`: as the maps have it, and as the agent sees it or, without one, the host shows it. */
import { pino } from 'pino';
import type { PinnedMaps } from '../../native/data-plane/maps.ts';
import { infoFlag, proxyPorts, setting, type PodInfo } from '../../native/layout/layouts.ts';
import { openHost } from '../../watcher/open-host.ts';
import type { NotTaken } from '../decisions/proxy-choice.ts';
import { addressText } from '../objects/address.ts';
import type { ProxyReport } from '../placement/node-proxy.ts';
import { lookAtProxy, notListened } from '../placement/proxy-look.ts';

export interface ProxyStatus {
  readonly address: string | null;
  readonly address6: string | null;
  readonly pod: string | null;
  /** An address is known, and nothing says that it does not serve. */
  readonly ready: boolean;
  /** What of it is not as it should be, in words. */
  readonly unready: string | null;
  /** Its addresses and ports that nobody listens on; null where nobody can look. */
  readonly notListening: readonly string[] | null;
  /** Since when one of these two is so, and how many connections had been redirected until then; null without an agent. */
  readonly trouble: ProxyReport['trouble'];
  /** Other pods that the selector matches, and why they are not the proxy; empty when the agent does not answer. */
  readonly notTaken: readonly NotTaken[];
}

export const NO_PROXY: ProxyStatus = {
  address: null,
  address6: null,
  pod: null,
  ready: false,
  unready: null,
  notListening: null,
  trouble: null,
  notTaken: [],
};

export interface ProxyPlace {
  /** Undefined when the paths of cgroups cannot be told. */
  readonly cgroupRoot: string | undefined;
  readonly procRoot: string;
  /** Paths of the cgroups that a slot has in the maps, as far as they exist. */
  readonly pathsOf: (slot: number) => readonly string[];
}

type ProxyMaps = Pick<PinnedMaps, 'settings'>;

/** @param report of the agent; undefined when it does not answer */
export function proxyStatus(
  maps: ProxyMaps,
  infos: readonly PodInfo[],
  report: ProxyReport | undefined,
  place?: ProxyPlace,
): ProxyStatus {
  const [address, address6] = [addressIn(maps, setting.proxyIp4), addressIn(maps, setting.proxyIp6)];
  const ips = [address, address6].filter((ip) => ip !== undefined);
  const info = infos.find(
    ({ flags, ip4, ip6 }) =>
      (flags & infoFlag.proxy) !== 0 && [ip4, ip6].some((ip) => ips.includes(addressText(ip) ?? '')),
  );
  const seen =
    report ?? (info === undefined || place === undefined ? NOT_SEEN : look(maps, info, ips, place));
  const pod = info === undefined ? null : `${info.podNamespace}/${info.podName}`;
  return {
    address: address ?? address6 ?? null,
    address6: address6 ?? null,
    pod: ips.length === 0 ? null : (report?.pod ?? pod),
    ready: ips.length > 0 && seen.unready === null && (seen.notListening ?? []).length === 0,
    unready: seen.unready,
    notListening: ips.length === 0 ? null : seen.notListening,
    trouble: seen.trouble,
    notTaken: seen.notTaken,
  };
}

const NOT_SEEN: Omit<ProxyReport, 'pod'> = {
  unready: null,
  notListening: null,
  trouble: null,
  notTaken: [],
};

/** What the host itself tells of the one that the maps name: whether it is Ready, nobody says. */
function look(
  maps: ProxyMaps,
  info: PodInfo,
  ips: readonly string[],
  { cgroupRoot, procRoot, pathsOf }: ProxyPlace,
): Omit<ProxyReport, 'pod'> {
  if (cgroupRoot === undefined) return NOT_SEEN;
  const host = openHost({ cgroupRoot, procRoot, logger: pino({ level: 'silent' }) });
  const { hasProcesses, network, listeners } = lookAtProxy(host, pathsOf(info.slot));
  if (!hasProcesses) return { ...NOT_SEEN, unready: 'no process runs in its cgroup' };
  const missing = network === undefined ? [] : ips.filter((ip) => !network.has(ip));
  return {
    ...NOT_SEEN,
    unready:
      missing.length === 0
        ? null
        : `its network namespace does not have ${missing.join(', ')}, but ${network?.ips.join(', ') || 'none'}`,
    notListening: listeners === undefined ? null : notListened(listeners, ips, portsIn(maps)),
  };
}

function addressIn({ settings }: ProxyMaps, key: number): string | undefined {
  const bytes = settings.get(key)?.bytes;
  return bytes === undefined ? undefined : addressText(bytes);
}

function portsIn({ settings }: ProxyMaps): readonly number[] {
  const bytes = settings.get(setting.ports)?.bytes;
  if (bytes === undefined) return [];
  const { outbound, inbound } = proxyPorts.decode(Buffer.from(bytes));
  return [outbound, inbound];
}
