/** A typed handle on a BPF map: keys and values are structs, not bytes. */
import { closeSync } from 'node:fs';
import { CgrouteError } from '../error.ts';
import type { Codec } from '../layout/codec.ts';
import { checked, libbpf } from '../boundary/libbpf.ts';
import { errnoValue } from '../boundary/libc.ts';

const BPF_ANY = 0;
const ENOENT = -errnoValue('ENOENT');
/** Entries at a time; more than any bucket of a hash map ever has. */
const BATCH = 1024;

export interface MapInfo {
  /** Given once, to no other map until the next boot. */
  readonly id: number;
  readonly keySize: number;
  /** Bytes of one value; a per-CPU map has one for each CPU. */
  readonly valueSize: number;
  readonly maxEntries: number;
}

/**
 * A map by its file descriptor, which the handle owns.
 *
 * Not for per-CPU maps. One buffer each for key and value is reused, so a call
 * allocates nothing but what it returns.
 */
export class BpfMap<K, V> implements Disposable {
  readonly name: string;
  readonly #fd: number;
  readonly #key: Codec<K>;
  readonly #value: Codec<V>;
  readonly #keyBytes: Buffer;
  readonly #valueBytes: Buffer;
  #closed = false;

  /** @throws CgrouteError `ELAYOUT` when the map's key or value has another size */
  constructor(name: string, fd: number, key: Codec<K>, value: Codec<V>) {
    this.name = name;
    this.#fd = fd;
    this.#key = key;
    this.#value = value;
    this.#keyBytes = Buffer.alloc(key.size);
    this.#valueBytes = Buffer.alloc(value.size);
    const info = mapInfo(fd, name);
    if (info.keySize !== key.size || info.valueSize !== value.size) {
      throw new CgrouteError(
        'ELAYOUT',
        `the map ${name} has keys of ${info.keySize} and values of ${info.valueSize} bytes, expected ${key.size} (${key.name}) and ${value.size} (${value.name})`,
      );
    }
  }

  get info(): MapInfo {
    return mapInfo(this.#fd, this.name);
  }

  /** Adds or replaces. @throws CgrouteError `EBPF`, errno `E2BIG` when the map is full */
  set(key: K, value: V): void {
    this.#key.encode(key, this.#keyBytes);
    this.#value.encode(value, this.#valueBytes);
    checked(
      libbpf().mapUpdate(this.#fd, this.#keyBytes, this.#valueBytes, BPF_ANY),
      'bpf_map_update_elem',
      this.name,
    );
  }

  get(key: K): V | undefined {
    this.#key.encode(key, this.#keyBytes);
    const result = libbpf().mapLookup(this.#fd, this.#keyBytes, this.#valueBytes);
    if (result === ENOENT) return undefined;
    checked(result, 'bpf_map_lookup_elem', this.name);
    return this.#value.decode(this.#valueBytes);
  }

  /** Returns whether there was one. */
  delete(key: K): boolean {
    this.#key.encode(key, this.#keyBytes);
    const result = libbpf().mapDelete(this.#fd, this.#keyBytes);
    if (result === ENOENT) return false;
    checked(result, 'bpf_map_delete_elem', this.name);
    return true;
  }

  get isEmpty(): boolean {
    return libbpf().mapNextKey(this.#fd, null, Buffer.alloc(this.#key.size)) === ENOENT;
  }

  /** All keys. One that is deleted by somebody else meanwhile may make others come twice, never be missed. */
  keys(): K[] {
    const keys: K[] = [];
    const next = Buffer.alloc(this.#key.size);
    let result = libbpf().mapNextKey(this.#fd, null, next);
    // The kernel starts over when a key has gone; the bound ends that.
    for (let left = 2 * this.info.maxEntries; result !== ENOENT && left > 0; left--) {
      checked(result, 'bpf_map_get_next_key', this.name);
      keys.push(this.#key.decode(next));
      this.#keyBytes.set(next);
      result = libbpf().mapNextKey(this.#fd, this.#keyBytes, next);
    }
    return keys;
  }

  /** Keys and values; entries that go away meanwhile are left out. */
  entries(): [K, V][] {
    const entries: [K, V][] = [];
    for (const key of this.keys()) {
      const value = this.get(key);
      if (value !== undefined) entries.push([key, value]);
    }
    return entries;
  }

  /**
   * How many entries there are, of a hash map, without a call for each: under a
   * millisecond for 4,096, of which {@link keys} makes up to twenty.
   */
  count(): number {
    const size = Math.min(this.info.maxEntries, BATCH);
    const keys = Buffer.alloc(size * this.#key.size);
    const values = Buffer.alloc(size * this.#value.size);
    const place = Buffer.alloc(Math.max(4, this.#key.size));
    const got = Buffer.alloc(4);
    for (let sum = 0, from: Buffer | null = null; ; from = place) {
      got.writeUInt32LE(size);
      const result = libbpf().mapLookupBatch(this.#fd, from, place, keys, values, got, null);
      if (result !== ENOENT) checked(result, 'bpf_map_lookup_batch', this.name);
      sum += got.readUInt32LE();
      if (result === ENOENT) return sum;
    }
  }

  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    closeSync(this.#fd);
  }
}

/** `struct bpf_map_info` of <linux/bpf.h>: type, id, key_size, value_size, max_entries. */
export function mapInfo(fd: number, name: string): MapInfo {
  const info = Buffer.alloc(88);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(info.length);
  checked(libbpf().objGetInfo(fd, info, length), 'bpf_obj_get_info_by_fd', `the map ${name}`);
  return {
    id: info.readUInt32LE(4),
    keySize: info.readUInt32LE(8),
    valueSize: info.readUInt32LE(12),
    maxEntries: info.readUInt32LE(16),
  };
}
