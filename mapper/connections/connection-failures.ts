/**
 * Connections that fail, or pass the mesh by, for want of a proxy or of room in the
 * kernel's maps. The programs count them; here a pod that has such is told once, for
 * as long as it goes on.
 */
import type { Logger } from 'pino';
import type { MapShares, PinnedMaps } from '../../native/data-plane/maps.ts';
import { branch } from '../../native/layout/layouts.ts';
import { mayHave } from '../maps/map-sizes.ts';
import { isFull, overflowEntries, type MapRoom } from './connection-room.ts';

/** Why, as an Event has it. */
export type FailureReason = 'NoRoom' | 'NoProxy';

type Counter = 'errorDenied' | 'handoffLost' | 'noProxyDenied' | 'noProxyAllowed';

const REASONS: Readonly<Record<Counter, FailureReason>> = {
  errorDenied: 'NoRoom',
  handoffLost: 'NoRoom',
  noProxyDenied: 'NoProxy',
  noProxyAllowed: 'NoProxy',
};
const COUNTERS = Object.keys(REASONS) as Counter[];

export interface ConnectionFailuresOptions {
  readonly maps: Pick<
    PinnedMaps,
    'pods' | 'counters' | 'shares' | 'overflowConnections' | 'overflowCount' | 'originals'
  >;
  readonly shares: MapShares;
  readonly logger: Logger;
  /** Says it on the pod. */
  readonly tell: (uid: string, reason: FailureReason, message: string) => void;
}

/** Why a pod may have no more than that. */
function which(
  of: keyof MapShares,
  has: number,
  shares: MapShares,
  { entries, capacity }: Omit<MapRoom, 'name'>,
): string {
  return has >= shares[of]
    ? `what one pod may have${of === 'connections' ? ' (maxConnectionsPerPod)' : ''}`
    : `what one pod may have while the node has ${entries} of the ${capacity} for which there is room (maxConnections)`;
}

/** A pod's counters at the last look, and which of them were rising. */
interface Seen {
  readonly counts: Readonly<Record<Counter, bigint>>;
  readonly rising: ReadonlySet<Counter>;
}

export class ConnectionFailures {
  readonly #options: ConnectionFailuresOptions;
  /** By UID. */
  #seen: ReadonlyMap<string, Seen> | undefined;

  /** What was counted before is not told: it is an earlier agent's. */
  constructor(options: ConnectionFailuresOptions) {
    this.#options = options;
    this.look();
  }

  /** Compares with the last look. */
  look(): void {
    const { maps, logger, tell } = this.#options;
    const before = this.#seen;
    const seen = new Map<string, Seen>();
    for (const [, { uid, slot, podNamespace, podName }] of maps.pods.entries()) {
      const all = maps.counters.get(slot)?.count ?? [];
      const counts = {
        errorDenied: all[branch.errorDenied] ?? 0n,
        handoffLost: all[branch.handoffLost] ?? 0n,
        noProxyDenied: all[branch.noProxyDenied] ?? 0n,
        noProxyAllowed: all[branch.noProxyAllowed] ?? 0n,
      };
      const last = before?.get(uid);
      // What a pod that is new has counted began with it.
      const rising = COUNTERS.filter(
        (name) => before !== undefined && counts[name] > (last?.counts[name] ?? 0n),
      );
      seen.set(uid, { counts, rising: new Set(rising) });
      for (const name of rising.filter((each) => last?.rising.has(each) !== true)) {
        const message = this.#words(name, slot);
        const about = {
          podUid: uid,
          ...Object.fromEntries(rising.map((each) => [each, Number(counts[each])])),
        };
        logger.error(about, `pod ${podNamespace}/${podName}: ${message}`);
        tell(uid, REASONS[name], message);
      }
    }
    this.#seen = seen;
  }

  /** Pods whose connections failed, by the last look, for want of room: a pod may have its share of a map that is not full. */
  get withoutRoom(): number {
    return [...(this.#seen?.values() ?? [])].filter(({ rising }) =>
      [...rising].some((name) => REASONS[name] === 'NoRoom'),
    ).length;
  }

  #words(name: Counter, slot: number): string {
    switch (name) {
      case 'errorDenied':
        return `connections of this pod, or from the host to it, are refused (errorDenied): ${this.#whyRefused(slot)}`;
      case 'handoffLost':
        return `connections of this pod reach the proxy without their destination (handoffLost): ${this.#whyLost(slot)}`;
      case 'noProxyDenied':
        return 'connections of this pod, or from the host to it, are refused (noProxyDenied): no proxy of this node is known';
      case 'noProxyAllowed':
        return 'connections of this pod, or from the host to it, pass the mesh by (noProxyAllowed): no proxy of this node is known, and whenProxyDown is allow';
    }
  }

  /** As it is now, which may be after the worst. */
  #whyRefused(slot: number): string {
    const { maps, shares } = this.#options;
    const room = { entries: overflowEntries(maps), capacity: maps.overflowConnections.info.maxEntries };
    if (isFull(room))
      return `the node's map of open connections is full, which has room for ${room.capacity} (maxConnections)`;
    const has = Number(maps.shares.get(slot)?.connections ?? 0n);
    if (has >= mayHave('connections', shares, room))
      return `it has ${has} open beside the node's first 4,096, which is ${which('connections', has, shares, room)}`;
    return 'there was no room to keep their destinations, no way yet to tell the proxy, or they went to addresses such as ::10.1.2.3, of which it would be told 10.1.2.3';
  }

  #whyLost(slot: number): string {
    const { maps, shares } = this.#options;
    const room = { entries: maps.originals.count(), capacity: maps.originals.info.maxEntries };
    if (isFull(room))
      return `the proxy has not asked for ${room.capacity} others of the node yet, for which there is room`;
    const has = Number(maps.shares.get(slot)?.originals ?? 0n);
    if (has >= mayHave('originals', shares, room))
      return `the proxy has not asked for ${has} others of this pod yet, which is ${which('originals', has, shares, room)}`;
    return 'the proxy was late to ask for others, or they went to a listener with its address in a network namespace that is not its own';
  }
}
