/** Work queued per pod: ten changes of one pod in a row are one piece of work. */
import PQueue from 'p-queue';

export class PodQueue {
  readonly #queue = new PQueue({ concurrency: 1 });
  readonly #waiting = new Set<string>();
  readonly #work: (podKey: string) => void;
  readonly #onError: (podKey: string, error: unknown) => void;

  /** @param onError gets what `work` throws; the rest of the queue goes on */
  constructor(work: (podKey: string) => void, onError: (podKey: string, error: unknown) => void) {
    this.#work = work;
    this.#onError = onError;
  }

  /** A pod that waits already is not queued twice. */
  add(podKey: string): void {
    if (this.#waiting.has(podKey)) return;
    this.#waiting.add(podKey);
    void this.#queue.add(() => this.#run(podKey));
  }

  #run(podKey: string): void {
    // Before the work: a change that arrives in the middle of it queues it again.
    this.#waiting.delete(podKey);
    try {
      this.#work(podKey);
    } catch (error) {
      this.#onError(podKey, error);
    }
  }

  get size(): number {
    return this.#waiting.size;
  }

  idle(): Promise<void> {
    return this.#queue.onIdle();
  }

  clear(): void {
    this.#queue.clear();
    this.#waiting.clear();
  }
}
