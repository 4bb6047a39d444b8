/**
 * How one source of facts is doing, for `status` and `/metrics`.
 *
 * A source is anything that can fail by itself while the others carry on: the
 * cgroup watch, process events, the sweep, the manifest file.
 */
export interface SourceState {
  /** Stable and short, `cgroup-watch`. */
  readonly name: string;
  /**
   * - `ok`: works;
   * - `degraded`: what it told before still stands, but it is late or repeats old facts;
   * - `failed`: tells nothing;
   * - `off`: not wanted, or closed.
   */
  readonly state: 'ok' | 'degraded' | 'failed' | 'off';
  /** One sentence: what it does now, or what is wrong and how to mend it. */
  readonly detail: string;
}
