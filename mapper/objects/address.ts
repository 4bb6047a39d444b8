/** IP addresses: as text, and as the sixteen bytes that the maps have. Pure; `node:net` only reads texts here. */

import { BlockList, isIP, isIPv4 } from 'node:net';

/** No address, as the maps have it. */
export const NO_ADDRESS = new Uint8Array(16);

const NOBODYS = new BlockList();
NOBODYS.addSubnet('127.0.0.0', 8);
NOBODYS.addSubnet('169.254.0.0', 16);
NOBODYS.addAddress('0.0.0.0');
NOBODYS.addSubnet('fe80::', 10, 'ipv6');
// ::, ::1, and ::a.b.c.d, which has the bytes of a.b.c.d in the maps
NOBODYS.addSubnet('::', 96, 'ipv6');

/** True for an address that is no pod's, whoever says so: loopback, link-local, unspecified, IPv4-compatible. */
export function isNobodys(ip: string): boolean {
  return NOBODYS.check(ip, isIPv4(ip) ? 'ipv4' : 'ipv6');
}

/** The family of an address's text; undefined for anything else, also for an address with a zone. */
export function familyOf(text: string): 4 | 6 | undefined {
  const family = text.includes('%') ? 0 : isIP(text);
  return family === 4 || family === 6 ? family : undefined;
}

/**
 * The canonical text of an IP address (RFC 5952 for IPv6), or undefined for
 * anything else. A v4-mapped address becomes the IPv4 address that it stands for.
 */
export function canonicalIp(text: string): string | undefined {
  const family = familyOf(text);
  if (family !== 6) return family === 4 ? text : undefined;
  const canonical = new URL(`http://[${text}]`).hostname.slice(1, -1);
  const { 1: high, 2: low } = /^::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(canonical) ?? [];
  if (high === undefined || low === undefined) return canonical;
  const [h, l] = [parseInt(high, 16), parseInt(low, 16)];
  return `${h >> 8}.${h & 255}.${l >> 8}.${l & 255}`;
}

/**
 * An address as the maps have it: 16 bytes in network order, IPv4 in the last
 * four. Undefined for a text that is no address.
 */
export function addressBytes(text: string): Uint8Array | undefined {
  const bytes = new Uint8Array(16);
  if (isIPv4(text)) {
    bytes.set(text.split('.').map(Number), 12);
    return bytes;
  }
  const url = URL.parse(`http://[${text}]/`);
  if (url === null) return undefined;
  const [head = '', tail] = url.hostname.slice(1, -1).split('::');
  const words = (part: string): number[] =>
    part === '' ? [] : part.split(':').map((word) => Number.parseInt(word, 16));
  const first = words(head);
  const last = tail === undefined ? [] : words(tail);
  const all = [...first, ...Array.from({ length: 8 - first.length - last.length }, () => 0), ...last];
  for (const [i, word] of all.entries()) bytes.set([word >> 8, word & 0xff], 2 * i);
  return bytes;
}

/** Whether these are the bytes of `::ffff:a.b.c.d`, which stands for an IPv4 address. */
export function isMapped(address: Uint8Array): boolean {
  return address.subarray(0, 12).every((byte, at) => byte === (at < 10 ? 0 : 0xff));
}

/** The text of an address as the maps have it; undefined when all bytes are zero. */
export function addressText(bytes: Uint8Array): string | undefined {
  if (bytes.every((byte) => byte === 0)) return undefined;
  if (bytes.subarray(0, 12).every((byte) => byte === 0)) return bytes.subarray(12).join('.');
  const view = new DataView(bytes.buffer, bytes.byteOffset, 16);
  const words = Array.from({ length: 8 }, (_, i) => view.getUint16(2 * i).toString(16));
  return URL.parse(`http://[${words.join(':')}]/`)?.hostname.slice(1, -1);
}
