/** What came of a run: counts, what was skipped and what has failed, file by file. */
import type { Outcome } from './test-file.ts';

export class Sums {
  passed = 0;
  failed = 0;
  skipped = 0;
  readonly #skips: string[] = [];
  readonly #failures: string[] = [];

  /** @param where the file, as people name it */
  add(where: string, { passed, failures, skips }: Pick<Outcome, 'passed' | 'failures' | 'skips'>): void {
    this.passed += passed;
    this.failed += failures.length;
    this.skipped += skips.length;
    this.#skips.push(...skips.map(({ name, why }) => `${where}: ${name}${why === '' ? '' : ` (${why})`}`));
    this.#failures.push(
      ...failures.map(({ name, message }) => `${where}: ${name}: ${message.split('\n', 1)[0]}`),
    );
  }

  get isEmpty(): boolean {
    return this.passed + this.failed + this.skipped === 0;
  }

  /** What was skipped, what has failed, and as the last line the counts. */
  text(isCi: boolean): string {
    const list = (title: string, lines: readonly string[]): string[] =>
      lines.length === 0 ? [] : ['', title, ...lines.map((line) => `  ${line}`)];
    return [
      ...list(isCi ? '!!! SKIPPED, so not tested on this machine !!!' : 'skipped:', this.#skips),
      ...list('failed:', this.#failures),
      '',
      `${this.passed} passed, ${this.failed} failed, ${this.skipped} skipped`,
    ].join('\n');
  }
}
