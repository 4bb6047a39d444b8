/** Pods' traffic options in the kernel's maps. */
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import { CgrouteError } from '../../native/error.ts';
import {
  optionFlag,
  portList,
  rangeList,
  type PodOptions as OptionsEntry,
  type PortKey,
  type RangeKey,
} from '../../native/layout/layouts.ts';
import { MapMirror } from './map-mirror.ts';
import { SHARED_SLOT } from './pod-slots.ts';
import type { Range, TrafficOptions } from '../decisions/traffic-options.ts';

/** What a pod of this slot should have. */
interface Wanted {
  readonly entry: OptionsEntry;
  readonly ports: readonly PortKey[];
  readonly ranges: readonly RangeKey[];
}

const HERE = 1;
/** Bits of the key that stand before the address and always count: slot and list. */
const HEAD_BITS = 64;
const NOTHING: Wanted = { entry: { flags: 0, exemptUser: 0 }, ports: [], ranges: [] };

const portText = ({ slot, list, port }: PortKey): string => `${slot} ${list} ${port}`;
const rangeText = ({ slot, list, prefixLength, address }: RangeKey): string =>
  `${slot} ${list} ${prefixLength} ${Buffer.from(address.word).toString('hex')}`;

export class PodOptions {
  readonly #options;
  readonly #ports;
  readonly #ranges;
  /** What each slot has of the two lists, as their texts. */
  readonly #slots = new Map<
    number,
    { readonly ports: Map<string, PortKey>; readonly ranges: Map<string, RangeKey> }
  >();

  constructor(maps: DataPlane['maps']) {
    this.#options = new MapMirror(maps.podOptions, String, NOTHING.entry);
    this.#ports = new MapMirror(maps.podPorts, portText);
    this.#ranges = new MapMirror(maps.podRanges, rangeText);
    for (const { key } of this.#ports.entries()) this.#slot(key.slot).ports.set(portText(key), key);
    for (const { key } of this.#ranges.entries()) this.#slot(key.slot).ranges.set(rangeText(key), key);
  }

  /**
   * Writes what differs. Lists that grow are there before they count, and those
   * that shrink count for a moment longer.
   * @param exemptUser user id whose connections are left alone; undefined is none
   * @throws CgrouteError `EBPF`, errno `ENOSPC` or `E2BIG` when a map is full
   */
  set(slot: number, traffic: TrafficOptions | undefined, exemptUser: number | undefined): void {
    // One that has no slot of its own shares it with all others.
    const wanted = slot === SHARED_SLOT ? NOTHING : wantedOf(slot, traffic, exemptUser);
    if (wanted === NOTHING && !this.#slots.has(slot)) return void this.#options.delete(slot);
    const { ports, ranges } = this.#slot(slot);
    const newPorts = new Map(wanted.ports.map((key) => [portText(key), key]));
    const newRanges = new Map(wanted.ranges.map((key) => [rangeText(key), key]));
    for (const [text, key] of newPorts) {
      this.#ports.set(key, HERE);
      ports.set(text, key);
    }
    for (const [text, key] of newRanges) {
      this.#ranges.set(key, HERE);
      ranges.set(text, key);
    }
    if (wanted === NOTHING) this.#options.delete(slot);
    else this.#options.set(slot, wanted.entry);
    for (const [text, key] of ports) if (!newPorts.has(text) && ports.delete(text)) this.#ports.delete(key);
    for (const [text, key] of ranges)
      if (!newRanges.has(text) && ranges.delete(text)) this.#ranges.delete(key);
    if (ports.size + ranges.size === 0) this.#slots.delete(slot);
  }

  /**
   * As {@link set}; lists that find no room count as absent, as a pod must not stay
   * without a verdict for them. Gives the error then.
   */
  setAsFits(
    slot: number,
    traffic: TrafficOptions | undefined,
    exemptUser: number | undefined,
  ): CgrouteError | undefined {
    try {
      this.set(slot, traffic, exemptUser);
      return undefined;
    } catch (error) {
      if (!(error instanceof CgrouteError) || traffic === undefined) throw error;
      this.set(slot, undefined, exemptUser);
      return error;
    }
  }

  /** The slot is nobody's any more. */
  clear(slot: number): void {
    this.set(slot, undefined, undefined);
  }

  /** Slots that have options, left by an earlier agent. */
  slots(): ReadonlySet<number> {
    return new Set([...this.#slots.keys(), ...this.#options.entries().map(({ key }) => key)]);
  }

  /** Undoes what others did to the maps. Returns the number of entries. */
  repair(): number {
    return this.#options.repair() + this.#ports.repair() + this.#ranges.repair();
  }

  #slot(slot: number): { readonly ports: Map<string, PortKey>; readonly ranges: Map<string, RangeKey> } {
    const known = this.#slots.get(slot) ?? { ports: new Map(), ranges: new Map() };
    this.#slots.set(slot, known);
    return known;
  }
}

function wantedOf(slot: number, traffic: TrafficOptions | undefined, exemptUser: number | undefined): Wanted {
  if (traffic === undefined && exemptUser === undefined) return NOTHING;
  const ports: PortKey[] = [];
  const ranges: RangeKey[] = [];
  let flags = exemptUser === undefined ? 0 : optionFlag.exemptUser;
  const listPorts = (list: number, numbers: readonly number[]): void =>
    void ports.push(...numbers.map((port) => ({ slot, list, port })));
  const listRanges = (lists: Readonly<Record<Range['family'], number>>, of: readonly Range[]): void =>
    void ranges.push(
      ...of.map(({ family, address, prefix }) => ({
        prefixLength: HEAD_BITS + (family === 4 ? 96 : 0) + prefix,
        slot,
        list: lists[family],
        address: { word: address },
      })),
    );
  if (traffic !== undefined) {
    const { excludedPorts, excludedRanges, includedPorts, includedRanges, excludedInbound, includedInbound } =
      traffic;
    if (excludedPorts === 'all' || excludedRanges === 'all') flags |= optionFlag.nothingOutbound;
    if (Array.isArray(excludedPorts) && excludedPorts.length > 0) {
      flags |= optionFlag.excludedPorts;
      listPorts(portList.excludedOutbound, excludedPorts);
    }
    if (Array.isArray(excludedRanges) && excludedRanges.length > 0) {
      flags |= optionFlag.excludedRanges;
      listRanges({ 4: rangeList.excludedIp4, 6: rangeList.excludedIp6 }, excludedRanges);
    }
    // Every port is included: then the ranges have nothing to say.
    if (Array.isArray(includedRanges) && includedPorts !== 'all') {
      flags |= optionFlag.includedRanges;
      listRanges({ 4: rangeList.includedIp4, 6: rangeList.includedIp6 }, includedRanges);
      if (Array.isArray(includedPorts) && includedPorts.length > 0) {
        flags |= optionFlag.includedPorts;
        listPorts(portList.includedOutbound, includedPorts);
      }
    }
    if (Array.isArray(includedInbound)) {
      flags |= optionFlag.includedInbound;
      listPorts(portList.includedInbound, includedInbound);
    } else if (excludedInbound === 'all') {
      flags |= optionFlag.nothingInbound;
    } else if (Array.isArray(excludedInbound) && excludedInbound.length > 0) {
      flags |= optionFlag.excludedInbound;
      listPorts(portList.excludedInbound, excludedInbound);
    }
  }
  return { entry: { flags, exemptUser: exemptUser ?? 0 }, ports, ranges };
}
