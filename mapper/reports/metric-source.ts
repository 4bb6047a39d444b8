/**
 * What a feature hands in to have figures of its own in `/metrics`: a table of metrics
 * that says what there is without an agent, and with somebody to ask becomes sources.
 */
import { CgrouteError } from '../../native/error.ts';

/** A metric as docs/metrics.md tells of it. */
export interface Metric {
  /** `cgroute_`, in base units; `_total` at the end of a counter. */
  readonly name: string;
  readonly type: 'gauge' | 'counter';
  /** None that names a pod. */
  readonly labels: readonly string[];
  readonly help: string;
}

export interface Sample {
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/** One that is read off figures of type `F`. */
export interface MetricOf<F> extends Metric {
  readonly samples: (figures: F) => Iterable<Sample>;
}

/** One that can be asked. What several sources of one counter say is added up. */
export interface MetricSource extends Metric {
  /** @throws CgrouteError `EBPF` when a map cannot be read */
  readonly collect: () => Iterable<Sample>;
}

/** @param figures asked anew for each metric of the table, at each scrape */
export function metricSources<F>(table: readonly MetricOf<F>[], figures: () => F): MetricSource[] {
  return table.map(({ samples, ...metric }) => ({ ...metric, collect: () => samples(figures()) }));
}

/** Of a metric without labels. */
export const one = (value: number | boolean): Sample[] => [{ labels: {}, value: Number(value) }];

/** Of a metric with one label. */
export const by = (label: string, values: Iterable<readonly [string, number]>): Sample[] =>
  [...values].map(([text, value]) => ({ labels: { [label]: text }, value }));

/** In the place of an errno, for an error without. */
export const OTHER_ERRNO = 'other';

export const errnoOf = (error: unknown): string =>
  (error instanceof CgrouteError ? error.errno : undefined) ?? OTHER_ERRNO;
