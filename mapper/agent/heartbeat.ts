/** The agent's beat: what nobody tells it about, it looks at from time to time. */
import type { Logger } from 'pino';
import type { DirectoryLock } from '../../native/boundary/lock.ts';
import { trimMemory } from '../../native/boundary/memory.ts';
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import type { PartWalk } from './part-walk.ts';

export interface HeartbeatOptions {
  readonly everyMs: number;
  readonly walk: Pick<PartWalk, 'look' | 'repair'>;
  readonly dataPlane: Pick<DataPlane, 'repairLinks'>;
  /** On the pins' directory. */
  readonly lock: Pick<DirectoryLock, 'renew'>;
  readonly logger: Logger;
  /** Counts and logs. */
  readonly failed: (error: unknown, what: string) => void;
}

export class Heartbeat implements Disposable {
  readonly #options: HeartbeatOptions;
  #timer: NodeJS.Timeout | undefined;
  #driftRepaired = 0;
  #before = 0;

  constructor(options: HeartbeatOptions) {
    this.#options = options;
  }

  start(): void {
    this.#timer ??= setInterval(() => this.beat(), this.#options.everyMs).unref();
  }

  /** One beat. What fails keeps nothing else from its turn. */
  beat(): void {
    const { walk, logger } = this.#options;
    walk.look();
    this.#before = this.#driftRepaired;
    const entries = walk.repair();
    this.#driftRepaired += entries;
    if (entries > 0)
      logger.warn(
        { entries },
        'entries of the maps had been altered by somebody else, and are as they should be again',
      );
    this.#repairLinks();
    trimMemory();
  }

  /** Where another agent has the pins by now, links are not ours to repair. */
  #repairLinks(): void {
    const { dataPlane, lock, logger } = this.#options;
    const failed = (error: unknown): void => this.#options.failed(error, 'the periodic check failed');
    try {
      lock.renew();
    } catch (error) {
      failed(error);
      return;
    }
    const links = dataPlane.repairLinks(failed);
    this.#driftRepaired += links.length;
    if (links.length > 0)
      logger.warn({ links }, 'programs had been detached by somebody else, and are attached again');
  }

  /** Links and entries put back so far. */
  get driftRepaired(): number {
    return this.#driftRepaired;
  }

  /** Those of the last beat. */
  get lastRepaired(): number {
    return this.#driftRepaired - this.#before;
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}
