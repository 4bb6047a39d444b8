/**
 * What becomes of connections for which the kernel's maps have no room: refused,
 * or without the destination that the proxy asks for. The programs count them; here
 * a pod that has such is told once, for as long as it goes on.
 */
import type { Logger } from 'pino';
import type { MapShares, PinnedMaps } from '../../native/data-plane/maps.ts';
import { branch } from '../../native/layout/layouts.ts';

/** The maps whose room can run out; those of arrays are always full, and behind the first 4,096 connections are the others. */
const FINITE = ['cgroups', 'pods', 'podAddresses', 'overflowConnections', 'originals'] as const;
export type RoomMaps = Pick<PinnedMaps, (typeof FINITE)[number] | 'overflowCount'>;

export interface MapRoom {
  readonly name: string;
  readonly entries: number;
  readonly capacity: number;
}

export function isFull({ entries, capacity }: MapRoom): boolean {
  return entries >= capacity;
}

/** How full they are. The kernel keeps count of the largest. */
export function mapRoom(maps: RoomMaps): MapRoom[] {
  return FINITE.map((key) => ({
    name: maps[key].name,
    entries: key === 'overflowConnections' ? overflowEntries(maps) : maps[key].count(),
    capacity: maps[key].info.maxEntries,
  }));
}

export function overflowEntries(maps: Pick<RoomMaps, 'overflowCount'>): number {
  return Number(BigInt.asIntN(64, maps.overflowCount.get(0) ?? 0n));
}

export interface ConnectionRoomOptions {
  readonly maps: Pick<
    PinnedMaps,
    'pods' | 'counters' | 'shares' | 'overflowConnections' | 'overflowCount' | 'originals'
  >;
  readonly shares: MapShares;
  readonly logger: Logger;
  /** Says it on the pod. */
  readonly tell: (uid: string, message: string) => void;
}

/** A pod's counters at the last look, and what it is being told of. */
interface Seen {
  readonly errorDenied: bigint;
  readonly handoffLost: bigint;
  readonly isRefused: boolean;
  readonly isLost: boolean;
}

export class ConnectionRoom {
  readonly #options: ConnectionRoomOptions;
  /** By UID. */
  #seen: ReadonlyMap<string, Seen> | undefined;

  /** What was counted before is not told: it is an earlier agent's. */
  constructor(options: ConnectionRoomOptions) {
    this.#options = options;
    this.look();
  }

  /** Compares with the last look. */
  look(): void {
    const { maps, logger, tell } = this.#options;
    const before = this.#seen;
    const seen = new Map<string, Seen>();
    for (const [, { uid, slot, podNamespace, podName }] of maps.pods.entries()) {
      const counts = maps.counters.get(slot)?.count ?? [];
      const [errorDenied, handoffLost] = [counts[branch.errorDenied] ?? 0n, counts[branch.handoffLost] ?? 0n];
      const last = before?.get(uid);
      // What a pod that is new has counted began with it.
      const isRefused = before !== undefined && errorDenied > (last?.errorDenied ?? 0n);
      const isLost = before !== undefined && handoffLost > (last?.handoffLost ?? 0n);
      seen.set(uid, { errorDenied, handoffLost, isRefused, isLost });
      const news = [
        ...(isRefused && last?.isRefused !== true
          ? [
              `connections of this pod, or from the host to it, are refused (errorDenied): ${this.#whyRefused(slot)}`,
            ]
          : []),
        ...(isLost && last?.isLost !== true
          ? [
              `connections of this pod reach the proxy without their destination (handoffLost): ${this.#whyLost(slot)}`,
            ]
          : []),
      ];
      for (const message of news) {
        logger.error(
          { podUid: uid, errorDenied: Number(errorDenied), handoffLost: Number(handoffLost) },
          `pod ${podNamespace}/${podName}: ${message}`,
        );
        tell(uid, message);
      }
    }
    this.#seen = seen;
  }

  /** As it is now, which may be after the worst. */
  #whyRefused(slot: number): string {
    const { maps, shares } = this.#options;
    const { maxEntries } = maps.overflowConnections.info;
    if (overflowEntries(maps) >= maxEntries)
      return `the node's map of open connections is full, which has room for ${maxEntries} (maxConnections)`;
    if ((maps.shares.get(slot)?.connections ?? 0n) >= BigInt(shares.connections))
      return `it has as many open as one pod may have, ${shares.connections} beside the node's first 4,096 (maxConnectionsPerPod)`;
    return 'there was no room to keep their destinations, no way yet to tell the proxy, or they went to addresses such as ::10.1.2.3, of which it would be told 10.1.2.3';
  }

  #whyLost(slot: number): string {
    const { maps, shares } = this.#options;
    const { maxEntries } = maps.originals.info;
    if ((maps.shares.get(slot)?.originals ?? 0n) >= BigInt(shares.originals))
      return `the proxy has not asked for ${shares.originals} others of this pod yet, which is what one pod may have`;
    if (maps.originals.count() >= maxEntries)
      return `the proxy has not asked for ${maxEntries} others of the node yet, for which there is room`;
    return 'the proxy was late to ask for others';
  }
}
