/** What could not be written to the kernel's maps: counted, said once for each pod and cause, and tried again. */
import type { Logger } from 'pino';
import { CgrouteError, messageOf } from '../../native/error.ts';

/** Of no pod. */
const NOBODY = '';

export class WriteFailures {
  readonly #logger: Logger;
  readonly #pods = new Set<string>();
  readonly #said = new Map<string, string>();
  readonly #errnos = new Map<string, number>();
  #total = 0;

  constructor(logger: Logger) {
    this.#logger = logger;
  }

  /** By pod's key. */
  get pods(): ReadonlySet<string> {
    return this.#pods;
  }

  get byErrno(): ReadonlyMap<string, number> {
    return this.#errnos;
  }

  get total(): number {
    return this.#total;
  }

  attempt(work: () => unknown): void {
    try {
      work();
    } catch (error) {
      this.failed(NOBODY, error);
    }
  }

  failed(podKey: string, error: unknown): void {
    this.#total++;
    const errno = (error instanceof CgrouteError ? error.errno : undefined) ?? 'other';
    this.#errnos.set(errno, (this.#errnos.get(errno) ?? 0) + 1);
    const message = messageOf(error);
    const isNews = podKey === NOBODY || this.#said.get(podKey) !== message;
    if (podKey !== NOBODY) {
      this.#pods.add(podKey);
      this.#said.set(podKey, message);
    }
    this.#logger[isNews ? 'error' : 'debug'](
      { err: error, podUid: podKey },
      `the maps could not be brought up to date: ${message}`,
    );
  }

  /** The pod is tried again: what fails from now on counts. */
  retried(podKey: string): void {
    this.#pods.delete(podKey);
  }

  /** All of the pod is written, or nothing has to be any more. */
  over(podKey: string): void {
    this.#pods.delete(podKey);
    this.#said.delete(podKey);
  }
}
