/** Work queued per pod: ten changes of one pod in a row are one piece of work. */
export class PodQueue {
  readonly #waiting = new Set<string>();
  readonly #work: (podKey: string) => void;
  readonly #onError: (podKey: string, error: unknown) => void;
  #running: Promise<void> | undefined;

  /** @param onError gets what `work` throws; the rest of the queue goes on */
  constructor(work: (podKey: string) => void, onError: (podKey: string, error: unknown) => void) {
    this.#work = work;
    this.#onError = onError;
  }

  /** A pod that waits already is not queued twice. Nothing is done before the caller is through. */
  add(podKey: string): void {
    this.#waiting.add(podKey);
    this.#running ??= this.#run();
  }

  async #run(): Promise<void> {
    await undefined;
    for (const podKey of this.#waiting) {
      // Before the work: a change that arrives in the middle of it queues it again, at the end of this very loop.
      this.#waiting.delete(podKey);
      try {
        this.#work(podKey);
      } catch (error) {
        this.#onError(podKey, error);
      }
    }
    this.#running = undefined;
  }

  get size(): number {
    return this.#waiting.size;
  }

  idle(): Promise<void> {
    return this.#running ?? Promise.resolve();
  }

  clear(): void {
    this.#waiting.clear();
  }
}
