/**
 * `existingConnections: reset`: when a pod's verdict flips, the connections that the
 * flip concerns are reset, so that what is opened in their place goes the new way.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { CgrouteError, messageOf } from '../../native/error.ts';
import type { PodInfo } from '../../native/layout/layouts.ts';
import { effectiveCapabilities } from '../../native/boundary/privilege.ts';
import {
  isInboundFlip,
  isOutboundFlip,
  resetInbound,
  resetOutbound,
  type Flipped,
  type FlippedConnectionsOptions,
} from './flipped-connections.ts';
import type { Pod } from '../objects/pod.ts';
import { isInboundRedirected, isRedirected } from '../maps/pod-entry.ts';
import type { Decision } from '../decisions/decision.ts';

/** Of a connect() that was under way at the flip, the second look finds the socket. */
const LOOKS_MS: readonly number[] = [0, 150];
const NOT_READY_MS = 100;

/** A pod's entry was written. */
export interface Written extends Omit<Flipped, 'before'> {
  readonly pod: Pod;
  /** Undefined where the pod had none. */
  readonly before: PodInfo | undefined;
  readonly decision: Decision;
}

type Flip = Written & Flipped;

export interface ResetFigures {
  /** Connections that were reset, since the agent's start. */
  readonly outbound: number;
  readonly inbound: number;
  /** Flips after which that failed, by errno. */
  readonly failures: ReadonlyMap<string, number>;
}

export interface ConnectionResetOptions extends FlippedConnectionsOptions {
  readonly logger: Logger;
  /** Whether all cgroups have been seen and the programs are attached. */
  readonly isReady: () => boolean;
  /** Connections of the pod go on as they were, and why. */
  readonly onFailed: (pod: Pod, message: string) => void;
}

export class ConnectionReset implements Disposable {
  readonly #options: ConnectionResetOptions;
  /** The latest flip of each pod, by UID, while it is looked after. */
  readonly #outbound = new Map<string, Flip>();
  readonly #inbound = new Map<string, Flip>();
  readonly #closed = { outbound: 0, inbound: 0 };
  readonly #failures = new Map<string, number>();
  #isLookingInbound = false;
  #isStopped = false;

  constructor(options: ConnectionResetOptions) {
    this.#options = options;
    if (!effectiveCapabilities(options.procRoot).has('CAP_SYS_ADMIN')) {
      options.logger.warn(
        "existingConnections is reset, and the agent lacks CAP_SYS_ADMIN, which it takes to enter a pod's network namespace: open connections will go on as they are when a verdict changes",
      );
    }
  }

  /** Returns at once. A pod that is seen for the first time has nothing to reset. */
  written({ before, ...written }: Written): void {
    const { uid } = written.pod;
    if (before?.uid !== uid) return;
    const flip: Flip = { ...written, before };
    if (isOutboundFlip(flip)) {
      const isUnderWay = this.#outbound.has(uid);
      this.#outbound.set(uid, flip);
      if (!isUnderWay) void this.#lookAfterOutbound(uid);
    }
    if (isInboundFlip(flip)) {
      this.#inbound.set(uid, flip);
      void this.#lookAfterInbound();
    }
  }

  get figures(): ResetFigures {
    return { ...this.#closed, failures: this.#failures };
  }

  async #lookAfterOutbound(uid: string): Promise<void> {
    const { logger } = this.#options;
    let done: Flip | undefined;
    let closed = 0;
    // Two flips in a row: the second one is looked after from its beginning.
    for (
      let flip = this.#outbound.get(uid);
      flip !== done && flip !== undefined && !this.#isStopped;
      flip = this.#outbound.get(uid)
    ) {
      done = flip;
      closed = 0;
      try {
        for (const wait of LOOKS_MS) {
          await this.#wait(wait);
          if (this.#isStopped || this.#outbound.get(uid) !== flip) break;
          resetOutbound(flip, this.#options, () => {
            closed++;
            this.#closed.outbound++;
          });
        }
      } catch (error) {
        this.#failed([flip], error);
        done = undefined;
        if (this.#outbound.get(uid) === flip) break;
      }
    }
    this.#outbound.delete(uid);
    if (done !== undefined)
      logger.info(
        { podUid: uid, closed, redirected: isRedirected(done.entry) },
        `the verdict on pod ${nameOf(done)} changed: connections that it had open were reset`,
      );
  }

  /** All flips of one moment share their looks at the host. */
  async #lookAfterInbound(): Promise<void> {
    if (this.#isLookingInbound) return;
    this.#isLookingInbound = true;
    await this.#wait(0);
    while (this.#inbound.size > 0 && !this.#isStopped) {
      const flips = [...this.#inbound.values()];
      const closed = new Map<Flip, number>();
      // One that flips again meanwhile is looked after in the next round.
      const current = (): Flip[] => flips.filter((flip) => this.#inbound.get(flip.pod.uid) === flip);
      let isFailed = false;
      for (const wait of LOOKS_MS) {
        await this.#wait(wait);
        const still = current();
        if (this.#isStopped || isFailed || still.length === 0) break;
        try {
          resetInbound(still, this.#options, (flip) => {
            closed.set(flip, (closed.get(flip) ?? 0) + 1);
            this.#closed.inbound++;
          });
        } catch (error) {
          this.#failed(still, error);
          isFailed = true;
        }
      }
      for (const flip of current()) this.#inbound.delete(flip.pod.uid);
      for (const [flip, count] of closed) this.#saidInbound(flip, count);
    }
    this.#isLookingInbound = false;
  }

  #saidInbound(flip: Flip, closed: number): void {
    this.#options.logger.info(
      { podUid: flip.pod.uid, closed, redirected: isInboundRedirected(flip.entry) },
      `the verdict on pod ${nameOf(flip)} changed: connections that processes of the host had open to it were reset`,
    );
  }

  async #wait(ms: number): Promise<void> {
    await delay(ms, undefined, { ref: false });
    while (!this.#options.isReady() && !this.#isStopped) await delay(NOT_READY_MS, undefined, { ref: false });
  }

  #failed(flips: readonly Flip[], error: unknown): void {
    const { logger, onFailed } = this.#options;
    const errno = (error instanceof CgrouteError ? error.errno : undefined) ?? 'other';
    const message = messageOf(error);
    for (const flip of flips) {
      this.#failures.set(errno, (this.#failures.get(errno) ?? 0) + 1);
      logger.error(
        { err: error, podUid: flip.pod.uid },
        `connections that pod ${nameOf(flip)} had open could not be reset, and go on as they were: ${message}`,
      );
      onFailed(
        flip.pod,
        `connections of this pod that were open when its verdict changed could not all be reset, and go on as they were: ${message}`,
      );
    }
  }

  [Symbol.dispose](): void {
    this.#isStopped = true;
  }
}

function nameOf({ pod: { namespace, name } }: Written): string {
  return `${namespace}/${name}`;
}
