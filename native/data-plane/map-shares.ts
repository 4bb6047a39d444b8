/**
 * What each slot has of the maps that all share. The kernel counts; what is
 * dropped from outside, or was there before it counted, is counted anew here.
 */
import type { BpfMap } from '../bpf/bpf-map.ts';
import { freePart, type Connection, type OriginalDst, type PodShare, type Tuple } from '../layout/layouts.ts';

export interface SharedMaps {
  readonly shares: BpfMap<number, PodShare>;
  readonly originalCount: BpfMap<number, bigint>;
  readonly originals: BpfMap<Tuple, OriginalDst>;
  readonly overflowConnections: BpfMap<bigint, Connection>;
}

function tally(slots: Iterable<number>): Map<number, bigint> {
  const counts = new Map<number, bigint>();
  for (const slot of slots) counts.set(slot, (counts.get(slot) ?? 0n) + 1n);
  return counts;
}

function update(shares: SharedMaps['shares'], slot: number, change: Partial<PodShare>): void {
  const now = shares.get(slot);
  if (now !== undefined) shares.set(slot, { ...now, ...change });
}

/** A connection in this very moment may be counted wrongly, until the next time. */
export function recountOriginals(
  { shares, originals, originalCount }: Pick<SharedMaps, 'shares' | 'originals' | 'originalCount'>,
  slots: Iterable<number>,
): void {
  const entries = originals.entries();
  const counts = tally(entries.map(([, { slot }]) => slot));
  for (const slot of slots) update(shares, slot, { originals: counts.get(slot) ?? 0n });
  originalCount.set(0, BigInt(entries.length));
}

/** Whether somebody else has taken entries out, so that all together seem to have more than they have, or less. */
export function isFarOff({
  originals,
  originalCount,
}: Pick<SharedMaps, 'originals' | 'originalCount'>): boolean {
  const off = Number(BigInt.asIntN(64, originalCount.get(0) ?? 0n)) - originals.count();
  return Math.abs(off) * freePart.originals > originals.info.maxEntries;
}

/** All slots, both maps: where an earlier version had connections that were not counted. */
export function recountShares(maps: SharedMaps): void {
  const connections = tally(maps.overflowConnections.entries().map(([, { original }]) => original.slot));
  const originals = tally(maps.originals.entries().map(([, { slot }]) => slot));
  for (const [slot, before] of maps.shares.entries()) {
    const [now, waiting] = [connections.get(slot) ?? 0n, originals.get(slot) ?? 0n];
    if (before.connections !== now || before.originals !== waiting)
      maps.shares.set(slot, { connections: now, originals: waiting });
  }
  maps.originalCount.set(
    0,
    [...originals.values()].reduce((all, count) => all + count, 0n),
  );
}
