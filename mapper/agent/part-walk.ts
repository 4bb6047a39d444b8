/**
 * The walk over the agent's parts, moment by moment and fact by fact. What one part
 * throws keeps no other from its turn, but at the start, which it ends.
 */
import type { Logger } from 'pino';
import { messageOf } from '../../native/error.ts';
import type { HostProcess } from '../../watcher/host-watch.ts';
import type { SourceState } from '../../watcher/source-state.ts';
import type { Written } from '../connections/connection-reset.ts';
import type { OwnedCgroup } from '../inventory/owned-cgroup.ts';
import type { MetricSource } from '../reports/metric-source.ts';
import type { AgentPart } from './agent-part.ts';

export interface PartWalkOptions {
  readonly logger: Logger;
  /** Counts what a part has thrown. */
  readonly onFailed: (error: unknown) => void;
}

const CHECK = 'the periodic check failed';
const EVENT = 'a handler of events failed, and the others go on';

export class PartWalk implements Disposable {
  readonly #options: PartWalkOptions;
  #parts: readonly AgentPart[] = [];

  constructor(options: PartWalkOptions) {
    this.#options = options;
  }

  /** From now on these are told; before, nobody is. */
  wire(parts: readonly AgentPart[]): void {
    this.#parts = parts;
  }

  /** @throws what a part throws */
  start(): void {
    for (const part of this.#parts) part.start?.();
  }

  /** Returns the number of entries. @throws what a part throws */
  takeOver(): number {
    return this.#parts.reduce((sum, part) => sum + (part.takeOver?.() ?? 0), 0);
  }

  /** @throws what a part throws */
  attach(): void {
    for (const part of this.#parts) part.attach?.();
  }

  ready(): void {
    this.#each('a part could not begin its work', (part) => part.ready?.());
  }

  look(): void {
    this.#each(CHECK, (part) => part.look?.());
  }

  /** Returns the number of entries that were put back. */
  repair(): number {
    let entries = 0;
    for (const part of this.#parts) {
      for (const repair of part.repairs ?? [])
        this.#attempt(part, CHECK, () => {
          entries += repair();
        });
    }
    return entries;
  }

  sources(): SourceState[] {
    return this.#parts.flatMap((part) => part.source?.() ?? []);
  }

  metrics(): MetricSource[] {
    return this.#parts.flatMap(({ metrics = [] }) => metrics);
  }

  /** Returns what was thrown, when all had their turn. */
  leave(): unknown[] {
    return this.#parts
      .toReversed()
      .flatMap((part) => this.#attempt(part, 'a part could not leave as it should', () => part.leave?.()));
  }

  /** Resolves to what was thrown, when all had their turn. */
  async withdraw(): Promise<unknown[]> {
    const thrown: unknown[] = [];
    for (const part of this.#parts.toReversed()) {
      try {
        await part.withdraw?.();
      } catch (error) {
        thrown.push(this.#failed(part, 'a part could not withdraw as it should', error));
      }
    }
    return thrown;
  }

  /** Resolves to a sentence for each place where something may be left, when all had their turn. */
  async clear(): Promise<string[]> {
    const left: string[] = [];
    for (const part of this.#parts.toReversed()) {
      try {
        left.push(...((await part.clear?.()) ?? []));
      } catch (error) {
        this.#failed(part, 'a part could not remove what it did', error);
        left.push(`something may be left of ${part.name}: ${messageOf(error)}`);
      }
    }
    return left;
  }

  [Symbol.dispose](): void {
    for (const part of this.#parts.toReversed())
      this.#attempt(part, 'a part could not be ended', () => part[Symbol.dispose]?.());
  }

  cgroupAppeared(owned: OwnedCgroup): void {
    this.#each(EVENT, (part) => part.cgroupAppeared?.(owned), aboutCgroup(owned));
  }

  cgroupGone(owned: OwnedCgroup): void {
    this.#each(EVENT, (part) => part.cgroupGone?.(owned), aboutCgroup(owned));
  }

  wantsProcess(cgroupId: bigint): boolean {
    let isWanted = false;
    this.#each(EVENT, (part) => {
      isWanted ||= part.wantsProcess?.(cgroupId) === true;
    });
    return isWanted;
  }

  processSeen(process: HostProcess): void {
    this.#each(EVENT, (part) => part.processSeen?.(process));
  }

  /** Goes through those that hold back, each handing on to the next; who is through is told to all. */
  podsChanged(uids: Iterable<string>): void {
    const holders = this.#parts.filter(({ holdBack }) => holdBack !== undefined);
    const handOn = (at: number, changed: readonly string[]): void => {
      const holder = holders[at];
      if (holder === undefined) {
        this.#each(EVENT, (part) => part.podsChanged?.(changed));
        return;
      }
      const thrown = this.#attempt(holder, EVENT, () =>
        holder.holdBack?.(changed, (some) => handOn(at + 1, [...some])),
      );
      if (thrown.length > 0) handOn(at + 1, changed);
    };
    handOn(0, [...uids]);
  }

  podWritten(written: Written): void {
    this.#each(EVENT, (part) => part.podWritten?.(written), { podUid: written.pod.uid });
  }

  proxyMoved(): void {
    this.#each(EVENT, (part) => part.proxyMoved?.());
  }

  reconciled(): void {
    this.#each(EVENT, (part) => part.reconciled?.());
  }

  #each(what: string, visit: (part: AgentPart) => void, about: object = {}): void {
    for (const part of this.#parts) this.#attempt(part, what, () => visit(part), about);
  }

  /** Returns what was thrown, if anything was. */
  #attempt(part: AgentPart, what: string, work: () => void, about: object = {}): unknown[] {
    try {
      work();
      return [];
    } catch (error) {
      return [this.#failed(part, what, error, about)];
    }
  }

  #failed(part: AgentPart, what: string, error: unknown, about: object = {}): unknown {
    const { logger, onFailed } = this.#options;
    onFailed(error);
    logger.error({ err: error, part: part.name, ...about }, `${what}: ${messageOf(error)}`);
    return error;
  }
}

function aboutCgroup({ cgroup: { id, path } }: OwnedCgroup): object {
  return { cgroupId: String(id), path };
}
