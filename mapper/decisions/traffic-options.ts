/**
 * A pod's traffic annotations, as Istio spells them: a pure function from
 * annotations to lists of ports and ranges. What cannot be read is named, and the
 * rest of the list counts; a list of which nothing can be read counts as absent,
 * so that no slip of the pen takes a pod out of the mesh.
 */
import { addressBytes, addressText, familyOf, isMapped } from '../objects/address.ts';
import { TRAFFIC } from '../objects/label-names.ts';
import { labelValue, type Labels } from '../objects/labels.ts';

/** Addresses that share a prefix; IPv4-mapped IPv6 ranges are IPv4 ones. */
export interface Range {
  readonly family: 4 | 6;
  /** Network order; IPv4 in the last four. Bits beyond the prefix are zero. */
  readonly address: Uint8Array;
  /** Bits of the family's own length, 0 to 32 or 128. */
  readonly prefix: number;
}

/** What `*` says, or a list; undefined where the annotation is absent. */
type Listed<T> = 'all' | readonly T[] | undefined;

export interface TrafficOptions {
  readonly excludedPorts: Listed<number>;
  readonly excludedRanges: Listed<Range>;
  readonly includedPorts: Listed<number>;
  readonly includedRanges: Listed<Range>;
  readonly excludedInbound: Listed<number>;
  readonly includedInbound: Listed<number>;
}

export interface TrafficAnnotations {
  /** Undefined where no annotation limits anything. */
  readonly options: TrafficOptions | undefined;
  /** What could not be read, each in a few words that quote it. */
  readonly problems: readonly string[];
}

/** Ports, and ranges, that one pod may list: the maps are there for all pods. */
export const MOST_LISTED = 4096;

const PORTS = 'a port from 1 to 65535 or "*"';
const RANGES = 'an address, a range such as 10.0.0.0/8 or fd00::/8, or "*"';

/** Never throws. */
export function trafficOptions(annotations: Labels): TrafficAnnotations {
  const problems: string[] = [];
  function list<T>(name: string, read: (part: string) => T | undefined, expected: string): Listed<T> {
    const key = TRAFFIC + name;
    const text = labelValue(annotations, key);
    if (text === undefined) return undefined;
    const parts = text
      .split(',')
      .map((part) => part.trim())
      .filter((part) => part !== '');
    const isAll = parts.includes('*');
    const items: T[] = [];
    const bad: string[] = [];
    for (const part of parts) {
      if (part === '*') continue;
      const item = read(part);
      if (item === undefined) bad.push(part);
      else items.push(item);
    }
    if (bad.length > 0) {
      const shown = bad
        .slice(0, 3)
        .map((part) => JSON.stringify(part.slice(0, 64)))
        .join(', ');
      const rest =
        isAll || items.length > 0 ? 'the rest of the list counts' : 'the annotation counts as absent';
      problems.push(
        `${key} has ${shown}${bad.length > 3 ? ` and ${bad.length - 3} more` : ''}, expected each to be ${expected}; ${rest}`,
      );
      if (!isAll && items.length === 0) return undefined;
    }
    return isAll ? 'all' : items;
  }
  const options: TrafficOptions = {
    excludedPorts: list('excludeOutboundPorts', portOf, PORTS),
    excludedRanges: list('excludeOutboundIPRanges', rangeOf, RANGES),
    includedPorts: list('includeOutboundPorts', portOf, PORTS),
    includedRanges: list('includeOutboundIPRanges', rangeOf, RANGES),
    excludedInbound: list('excludeInboundPorts', portOf, PORTS),
    includedInbound: list('includeInboundPorts', portOf, PORTS),
  };
  const count = (...lists: readonly Listed<unknown>[]): number =>
    lists.reduce((sum, list) => sum + (Array.isArray(list) ? list.length : 0), 0);
  const ports = count(
    options.excludedPorts,
    options.includedPorts,
    options.excludedInbound,
    options.includedInbound,
  );
  const ranges = count(options.excludedRanges, options.includedRanges);
  if (ports > MOST_LISTED || ranges > MOST_LISTED) {
    problems.push(
      `the annotations ${TRAFFIC}... list ${ports} ports and ${ranges} ranges, expected at most ${MOST_LISTED} of each for one pod; all of them count as absent`,
    );
    return { options: undefined, problems };
  }
  return { options: limits(options) ? options : undefined, problems };
}

/** Included ports only matter where ranges are limited, as in Istio. */
function limits({
  excludedPorts,
  excludedRanges,
  includedRanges,
  excludedInbound,
  includedInbound,
}: TrafficOptions): boolean {
  const names = (list: Listed<unknown>): boolean => list === 'all' || (list !== undefined && list.length > 0);
  const narrows = (list: Listed<unknown>): boolean => list !== undefined && list !== 'all';
  return (
    names(excludedPorts) ||
    names(excludedRanges) ||
    names(excludedInbound) ||
    narrows(includedRanges) ||
    narrows(includedInbound)
  );
}

function portOf(text: string): number | undefined {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  return port >= 1 && port <= 65_535 ? port : undefined;
}

function rangeOf(text: string): Range | undefined {
  const [, ip = '', bits] = /^([^/]+)(?:\/(\d{1,3}))?$/.exec(text) ?? [];
  const family = familyOf(ip);
  if (family === undefined) return undefined;
  const width = family === 4 ? 32 : 128;
  const prefix = bits === undefined ? width : Number(bits);
  const address = addressBytes(ip);
  if (prefix > width || address === undefined) return undefined;
  if (prefix >= 96 && isMapped(address)) {
    return masked(4, Uint8Array.from([...new Uint8Array(12), ...address.subarray(12)]), prefix - 96);
  }
  return masked(family, address, prefix);
}

function masked(family: 4 | 6, address: Uint8Array, prefix: number): Range {
  const first = family === 4 ? 96 : 0;
  const bytes = address.map((byte, i) => {
    const kept = Math.min(8, Math.max(0, first + prefix - 8 * i));
    return byte & (0xff00 >> kept) & 0xff;
  });
  return { family, address: bytes, prefix };
}

/** In words, for people. */
export function trafficText(options: TrafficOptions): string {
  const listed = (list: Listed<number | Range>): string | undefined =>
    list === undefined
      ? undefined
      : list === 'all'
        ? 'all'
        : list.length === 0
          ? 'none'
          : list.map((item) => (typeof item === 'number' ? String(item) : rangeText(item))).join(', ');
  const parts: readonly (readonly [string, Listed<number | Range>])[] = [
    ['outbound ports but', options.excludedPorts],
    ['outbound ranges but', options.excludedRanges],
    ['only outbound ranges', options.includedRanges],
    ['whatever the range, outbound ports', options.includedPorts],
    ['inbound ports but', options.excludedInbound],
    ['only inbound ports', options.includedInbound],
  ];
  return parts
    .flatMap(([words, list]) => {
      const text = listed(list);
      return text === undefined ? [] : [`${words} ${text}`];
    })
    .join('; ');
}

function rangeText({ family, address, prefix }: Range): string {
  return `${addressText(address) ?? (family === 4 ? '0.0.0.0' : '::')}/${prefix}`;
}

/**
 * Whether a connection to there is left alone, as the connect programs decide it.
 * @param address 16 bytes in network order, IPv4 in the last four
 */
export function isExcludedOutbound(options: TrafficOptions, address: Uint8Array, port: number): boolean {
  const { excludedPorts, excludedRanges, includedPorts, includedRanges } = options;
  const covers = (list: Listed<Range>): boolean =>
    Array.isArray(list) && (list as readonly Range[]).some((range) => isWithin(range, address));
  const lists = (list: Listed<number>): boolean =>
    Array.isArray(list) && (list as readonly number[]).includes(port);
  if (excludedPorts === 'all' || excludedRanges === 'all' || lists(excludedPorts) || covers(excludedRanges))
    return true;
  return (
    Array.isArray(includedRanges) &&
    includedPorts !== 'all' &&
    !lists(includedPorts) &&
    !covers(includedRanges)
  );
}

/** Ports of the proxy itself, by Istio's conventions; as the connect programs have them. */
const PROXY_PORTS: ReadonlySet<number> = new Set([15001, 15006, 15008, 15020, 15021, 15090]);

/** Whether what a process of the host opens to this port of the pod is left alone, as the connect programs decide it. */
export function isExcludedInbound(options: TrafficOptions | undefined, port: number): boolean {
  if (PROXY_PORTS.has(port)) return true;
  const { includedInbound, excludedInbound } = options ?? {};
  if (Array.isArray(includedInbound)) return !(includedInbound as readonly number[]).includes(port);
  return (
    excludedInbound === 'all' ||
    (Array.isArray(excludedInbound) && (excludedInbound as readonly number[]).includes(port))
  );
}

function isWithin({ family, address: network, prefix }: Range, address: Uint8Array): boolean {
  if ((family === 4) !== address.subarray(0, 12).every((byte) => byte === 0)) return false;
  const bits = (family === 4 ? 96 : 0) + prefix;
  return network.every((byte, at) => {
    const mask = (0xff00 >> Math.min(8, Math.max(0, bits - 8 * at))) & 0xff;
    return (byte & mask) === ((address[at] ?? 0) & mask);
  });
}
