/**
 * What /proc/PID/net says of a network namespace, without entering it: its own
 * addresses, and by which interface it reaches others. Formats: fib_trie, route,
 * igmp, if_inet6, ipv6_route of net/ipv4 and net/ipv6 of the kernel. Pure.
 */
import { BlockList, isIPv4, SocketAddress } from 'node:net';

/** Files below `/proc/PID/net`. */
export const NETWORK_FILES = ['fib_trie', 'route', 'igmp', 'if_inet6', 'ipv6_route'] as const;
export type NetworkFiles = Readonly<Record<(typeof NETWORK_FILES)[number], string>>;

export interface NetworkAddress {
  readonly ip: string;
  /** The interface that it is on, as far as that is told. */
  readonly device: string | undefined;
}

export interface NetworkTables {
  /** Its own, canonical text, without loopback and IPv6's link-local ones, which every interface has. */
  readonly addresses: readonly NetworkAddress[];
  /** The interface to an address, or by default; undefined when no route is known. */
  deviceTo(
    ip: string | undefined,
    family: 4 | 6,
  ): { readonly name: string; readonly index: number } | undefined;
}

interface Route {
  readonly family: 4 | 6;
  readonly prefix: number;
  readonly holds: (ip: string) => boolean;
  readonly device: string;
  readonly isDirect: boolean;
  readonly metric: number;
}

const RTF_UP = 0x1;
const RTF_GATEWAY = 0x2;
const RTF_REJECT = 0x200;
const IFA_F_DADFAILED = 0x08;
const LINK_LOCAL6 = /^fe[89ab]/;

export function networkTables(files: NetworkFiles): NetworkTables {
  const routes = [...routes4(files.route), ...routes6(files.ipv6_route)].toSorted(
    (a, b) => b.prefix - a.prefix || a.metric - b.metric,
  );
  const { indexes, addresses6 } = interfaces(files);
  const deviceOf = (ip: string): string | undefined =>
    routes.find(({ family, isDirect, prefix, holds }) => family === 4 && isDirect && prefix > 0 && holds(ip))
      ?.device;
  return {
    addresses: [...ownAddresses4(files.fib_trie).map((ip) => ({ ip, device: deviceOf(ip) })), ...addresses6],
    deviceTo(ip, wanted) {
      const name = routes.find(
        ({ family, prefix, holds }) => family === wanted && (ip === undefined ? prefix === 0 : holds(ip)),
      )?.device;
      const index = name === undefined ? undefined : indexes.get(name);
      return name === undefined || index === undefined ? undefined : { name, index };
    },
  };
}

/** The IPv4 addresses of the namespace's own. A leaf `|-- 10.0.0.5` is followed by its prefixes, `/32 host LOCAL` if it is ours. */
function ownAddresses4(fibTrie: string): string[] {
  const leaves = fibTrie.matchAll(
    /\|-- (\d+\.\d+\.\d+\.\d+)\n(?: +\/\d+ (?!host LOCAL).*\n)* +\/32 host LOCAL/g,
  );
  const found = new Set([...leaves].flatMap(([, address]) => address ?? []));
  return [...found].filter((address) => !/^(?:127|0)\./.test(address));
}

function interfaces({ igmp, if_inet6 }: NetworkFiles): {
  readonly indexes: ReadonlyMap<string, number>;
  readonly addresses6: readonly NetworkAddress[];
} {
  const indexes = new Map<string, number>();
  const addresses6: NetworkAddress[] = [];
  for (const [, index, name] of igmp.matchAll(/^(\d+)\s+(\S+?)\s*:/gm))
    if (index !== undefined && name !== undefined) indexes.set(name, Number(index));
  for (const line of if_inet6.split('\n')) {
    const [hex = '', index, , , flags, device] = line.trim().split(/ +/);
    if (!/^[0-9a-f]{32}$/.test(hex) || index === undefined || flags === undefined || device === undefined)
      continue;
    indexes.set(device, Number.parseInt(index, 16));
    // ::, ::1, and ::a.b.c.d, which has the bytes of a.b.c.d in the maps
    if (hex.startsWith('0'.repeat(24)) || Number.parseInt(flags, 16) & IFA_F_DADFAILED) continue;
    if (LINK_LOCAL6.test(hex)) continue;
    addresses6.push({ ip: text6(hex), device });
  }
  return { indexes, addresses6 };
}

const text6 = (hex: string): string =>
  new SocketAddress({ address: (hex.match(/.{4}/g) ?? []).join(':'), family: 'ipv6' }).address;

/** As the kernel writes it: the bytes of the address as one number of the host. */
const text4 = (hex: string): string => [...Buffer.from(hex, 'hex')].toReversed().join('.');

function holder(address: string, prefix: number): (ip: string) => boolean {
  const family = isIPv4(address) ? 'ipv4' : 'ipv6';
  if (prefix === 0) return (ip) => (family === 'ipv4') === isIPv4(ip);
  const list = new BlockList();
  list.addSubnet(address, prefix, family);
  return (ip) => list.check(ip, isIPv4(ip) ? 'ipv4' : 'ipv6');
}

function* routes4(text: string): Generator<Route> {
  for (const line of text.split('\n').slice(1)) {
    const [device, destination, , flagsText = '', , , metric, mask] = line.trim().split(/\s+/);
    if (device === undefined || destination === undefined || mask === undefined) continue;
    const flags = Number.parseInt(flagsText, 16);
    if ((flags & RTF_UP) === 0 || (flags & RTF_REJECT) !== 0) continue;
    const prefix = [...Number.parseInt(mask, 16).toString(2)].filter((bit) => bit === '1').length;
    const isDirect = (flags & RTF_GATEWAY) === 0;
    yield {
      family: 4,
      prefix,
      holds: holder(text4(destination), prefix),
      device,
      isDirect,
      metric: Number(metric),
    };
  }
}

function* routes6(text: string): Generator<Route> {
  for (const line of text.split('\n')) {
    const [destination = '', length = '', , , , metric = '', , , flagsText = '', device] = line
      .trim()
      .split(/\s+/);
    if (device === undefined || !/^[0-9a-f]{32}$/.test(destination)) continue;
    const flags = Number.parseInt(flagsText, 16);
    if ((flags & RTF_UP) === 0 || (flags & RTF_REJECT) !== 0) continue;
    const prefix = Number.parseInt(length, 16);
    const isDirect = (flags & RTF_GATEWAY) === 0;
    yield {
      family: 6,
      prefix,
      holds: holder(text6(destination), prefix),
      device,
      isDirect,
      metric: Number.parseInt(metric, 16),
    };
  }
}
