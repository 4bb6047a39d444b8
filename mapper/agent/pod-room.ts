/**
 * Room for a pod's entries where the kernel's maps are full: who needs it more takes
 * it from who needs it less, and that pod is as unknown from then on.
 */
import { CgrouteError } from '../../native/error.ts';
import type { Decision } from '../decisions/decision.ts';
import { rankOf, yieldsTo } from '../maps/pod-rank.ts';
import type { CgroupLedger } from './cgroup-ledger.ts';
import type { PodWriter } from './pod-writer.ts';

export interface PodRoomOptions {
  readonly writer: Pick<PodWriter, 'remembers' | 'forget' | 'writeUnknown'>;
  readonly ledger: Pick<CgroupLedger, 'has' | 'of'>;
  /** The pods that there are, by key, each with what was decided of it last. */
  readonly pods: () => Iterable<readonly [string, { readonly decision: Decision | undefined }]>;
  readonly decisionOf: (podKey: string) => Decision | undefined;
  /** It has lost its entries. */
  readonly onDisplaced: (podKey: string) => void;
}

export class PodRoom {
  readonly #options: PodRoomOptions;
  /** Pods with an entry and without a cgroup. */
  readonly #awaited = new Set<string>();

  constructor(options: PodRoomOptions) {
    this.#options = options;
  }

  /** Has the pod written, over another's room if it takes that. @throws what `write` throws */
  write(podKey: string, decision: Decision, write: () => void): void {
    const { writer, ledger } = this.#options;
    try {
      write();
    } catch (error) {
      if (writer.remembers(podKey) || !isWithoutRoom(error) || !this.#make(podKey, decision)) throw error;
      write();
    }
    if (ledger.has(podKey)) this.#awaited.delete(podKey);
    else this.#awaited.add(podKey);
  }

  /** The pod has no entry any more. */
  released(podKey: string): void {
    this.#awaited.delete(podKey);
  }

  #make(podKey: string, decision: Decision): boolean {
    const { writer, ledger, onDisplaced } = this.#options;
    const rank = this.#rankOf(podKey, decision);
    let last = { key: '', rank: 0 };
    for (const [key, its] of this.#others(decision)) {
      const other = this.#rankOf(key, its);
      if (other > last.rank && yieldsTo(other, rank) && writer.remembers(key)) last = { key, rank: other };
    }
    if (last.rank === 0) return false;
    writer.forget(last.key);
    this.#awaited.delete(last.key);
    writer.writeUnknown(last.key, ledger.of(last.key));
    onDisplaced(last.key);
    return true;
  }

  /** Those that run give way to the proxy alone, so nobody else has to look at them all. */
  *#others({ proxy }: Decision): Generator<readonly [string, Decision | undefined]> {
    const { pods, decisionOf } = this.#options;
    if (proxy) for (const [key, { decision }] of pods()) yield [key, decision];
    else for (const key of this.#awaited) yield [key, decisionOf(key)];
  }

  #rankOf(podKey: string, decision: Decision | undefined): number {
    return rankOf({ decision, hasEnded: false, hasCgroup: this.#options.ledger.has(podKey) });
  }
}

const isWithoutRoom = (error: unknown): boolean =>
  error instanceof CgrouteError && (error.errno === 'E2BIG' || error.errno === 'ENOSPC');
