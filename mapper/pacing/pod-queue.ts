/** Work queued per pod: ten changes of one pod in a row are one piece of work. */
export class PodQueue {
  readonly #waiting = new Set<string>();
  readonly #work: (podKey: string) => void;
  readonly #onError: (podKey: string, error: unknown) => void;
  readonly #rankOf: ((podKey: string) => number) | undefined;
  #hasBegun = false;
  #running: Promise<void> | undefined;

  /**
   * Nothing is done before {@link begin}.
   * @param onError gets what `work` throws; the rest of the queue goes on
   * @param rankOf of those that wait together, who has a lower one goes first
   */
  constructor(
    work: (podKey: string) => void,
    onError: (podKey: string, error: unknown) => void,
    rankOf?: (podKey: string) => number,
  ) {
    this.#work = work;
    this.#onError = onError;
    this.#rankOf = rankOf;
  }

  /** A pod that waits already is not queued twice. Nothing is done before the caller is through. */
  add(podKey: string): void {
    this.#waiting.add(podKey);
    if (this.#hasBegun) this.#running ??= this.#run();
  }

  /** What waits is done from now on. */
  begin(): void {
    this.#hasBegun = true;
    if (this.#waiting.size > 0) this.#running ??= this.#run();
  }

  async #run(): Promise<void> {
    await undefined;
    while (this.#waiting.size > 0) {
      for (const podKey of this.#inOrder()) {
        // Before the work: a change that arrives in the middle of it queues it again, for the next round.
        if (!this.#waiting.delete(podKey)) continue;
        try {
          this.#work(podKey);
        } catch (error) {
          this.#onError(podKey, error);
        }
      }
    }
    this.#running = undefined;
  }

  #inOrder(): readonly string[] {
    const all = [...this.#waiting];
    const rankOf = this.#rankOf;
    if (rankOf === undefined || all.length === 1) return all;
    return all
      .map((podKey) => ({ podKey, rank: rankOf(podKey) }))
      .sort((a, b) => a.rank - b.rank)
      .map(({ podKey }) => podKey);
  }

  get size(): number {
    return this.#waiting.size;
  }

  /** Resolves when nothing waits that may be done. */
  idle(): Promise<void> {
    return this.#running ?? Promise.resolve();
  }

  clear(): void {
    this.#waiting.clear();
  }
}
