/**
 * What /proc/PID/net says of a network namespace, without entering it: its own
 * addresses, and by which interface it reaches others. Formats: fib_trie, route,
 * igmp, if_inet6, ipv6_route of net/ipv4 and net/ipv6 of the kernel. Pure.
 */
import { SocketAddress } from 'node:net';

/** Files below `/proc/PID/net`. */
export const NETWORK_FILES = ['fib_trie', 'route', 'igmp', 'if_inet6', 'ipv6_route'] as const;
export type NetworkFiles = Readonly<Record<(typeof NETWORK_FILES)[number], string>>;

export interface NetworkAddress {
  readonly ip: string;
  /** The interface that it is on, as far as that is told. */
  readonly device: string | undefined;
}

export interface NetworkTables {
  /** Its own, canonical text, without loopback and IPv6's link-local ones, which every interface has; {@link MOST_ADDRESSES} at the most. */
  readonly addresses: readonly NetworkAddress[];
  /**
   * The interface to an address, or by default. Undefined where no route is known, or
   * several could be meant: the kernel lists IPv6's routes of all tables as one.
   * @param to 16 bytes in network order, IPv4 in the last four
   */
  deviceTo(to: Uint8Array | undefined, family: 4 | 6): NetworkDevice | undefined;
}

export interface NetworkDevice {
  readonly name: string;
  readonly index: number;
}

/** What a pod may have is no limit for its agent: more is not looked at. */
export const MOST_ADDRESSES = 256;
const MOST_ROUTES = 1024;

interface Route {
  readonly family: 4 | 6;
  /** 16 bytes in network order, IPv4 in the last four. */
  readonly base: Uint8Array;
  /** Bits that count, of those of the family. */
  readonly prefix: number;
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
  const routes = [...known(routes4(files.route)), ...known(routes6(files.ipv6_route))].toSorted(
    (a, b) => b.prefix - a.prefix || a.metric - b.metric,
  );
  const { indexes, addresses6 } = interfaces(files);
  const deviceOf = (ip: Uint8Array): string | undefined =>
    routes.find((route) => route.family === 4 && route.isDirect && route.prefix > 0 && holds(route, ip))
      ?.device;
  const addresses4 = ownAddresses4(files.fib_trie)
    .slice(0, MOST_ADDRESSES)
    .map((ip) => ({ ip, device: deviceOf(bytes4(ip)) }));
  return {
    addresses: [...addresses4, ...addresses6].slice(0, MOST_ADDRESSES),
    deviceTo(to, family) {
      const fitting = routes.filter(
        (route) => route.family === family && (to === undefined ? route.prefix === 0 : holds(route, to)),
      );
      const [best] = fitting;
      const isDoubtful = fitting.some(
        ({ prefix, device }) => family === 6 && prefix === best?.prefix && device !== best.device,
      );
      const index = best === undefined || isDoubtful ? undefined : indexes.get(best.device);
      return best === undefined || index === undefined ? undefined : { name: best.device, index };
    },
  };
}

/** Those of a table that is looked at as a whole; none of a longer one. */
function known(routes: Iterator<Route>): readonly Route[] {
  const all: Route[] = [];
  for (let next = routes.next(); next.done !== true; next = routes.next())
    if (all.push(next.value) > MOST_ROUTES) return [];
  return all;
}

function holds({ family, base, prefix }: Route, ip: Uint8Array): boolean {
  let bits = prefix;
  for (let at = family === 4 ? 12 : 0; bits > 0; at++, bits -= 8) {
    const mask = bits >= 8 ? 0xff : 0xff << (8 - bits);
    if ((((base[at] ?? 0) ^ (ip[at] ?? 0)) & mask & 0xff) !== 0) return false;
  }
  return true;
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

function bytes4(ip: string): Uint8Array {
  const bytes = new Uint8Array(16);
  bytes.set(ip.split('.').map(Number), 12);
  return bytes;
}

function* routes4(text: string): Generator<Route, undefined> {
  for (const line of text.split('\n').slice(1)) {
    const [device, destination = '', , flagsText = '', , , metric, mask] = line.trim().split(/\s+/);
    if (device === undefined || !/^[0-9A-F]{8}$/.test(destination) || mask === undefined) continue;
    const flags = Number.parseInt(flagsText, 16);
    if ((flags & RTF_UP) === 0 || (flags & RTF_REJECT) !== 0) continue;
    const base = new Uint8Array(16);
    // As the kernel writes it: the bytes of the address as one number of the host.
    base.set(Buffer.from(destination, 'hex').toReversed(), 12);
    yield {
      family: 4,
      base,
      prefix: [...Number.parseInt(mask, 16).toString(2)].filter((bit) => bit === '1').length,
      device,
      isDirect: (flags & RTF_GATEWAY) === 0,
      metric: Number(metric),
    };
  }
}

function* routes6(text: string): Generator<Route, undefined> {
  for (const line of text.split('\n')) {
    const [destination = '', length = '', , fromLength = '', , metric = '', , , flagsText = '', device] = line
      .trim()
      .split(/\s+/);
    if (device === undefined || !/^[0-9a-f]{32}$/.test(destination)) continue;
    const flags = Number.parseInt(flagsText, 16);
    if ((flags & RTF_UP) === 0 || (flags & RTF_REJECT) !== 0) continue;
    // One for some source addresses alone says nothing of the others.
    if (Number.parseInt(fromLength, 16) !== 0) continue;
    yield {
      family: 6,
      base: Buffer.from(destination, 'hex'),
      prefix: Number.parseInt(length, 16),
      device,
      isDirect: (flags & RTF_GATEWAY) === 0,
      metric: Number.parseInt(metric, 16),
    };
  }
}
