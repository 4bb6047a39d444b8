/** What goes in and out of a map: the structs are generated, the plain numbers are here. */
import type { Layout } from './layout.ts';

export type Codec<T> = Pick<Layout<T>, 'name' | 'size' | 'encode' | 'decode'>;

export const u8: Codec<number> = {
  name: 'u8',
  size: 1,
  encode(value, buffer, at = 0) {
    buffer.writeUInt8(value, at);
  },
  decode: (buffer, at = 0) => buffer.readUInt8(at),
};

/** Little-endian, as is {@link u64}. */
export const u32: Codec<number> = {
  name: 'u32',
  size: 4,
  encode(value, buffer, at = 0) {
    buffer.writeUInt32LE(value, at);
  },
  decode: (buffer, at = 0) => buffer.readUInt32LE(at),
};

export const u64: Codec<bigint> = {
  name: 'u64',
  size: 8,
  encode(value, buffer, at = 0) {
    buffer.writeBigUInt64LE(value, at);
  },
  decode: (buffer, at = 0) => buffer.readBigUInt64LE(at),
};

/** So many bytes as they are, an IPv4 address in network order for instance. */
export const bytes = (size: number): Codec<Uint8Array> => ({
  name: `u8[${size}]`,
  size,
  encode(value, buffer, at = 0) {
    buffer.set(value, at);
  },
  decode: (buffer, at = 0) => Uint8Array.from(buffer.subarray(at, at + size)),
});
