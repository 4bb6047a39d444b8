/** Labels, and annotations, which have the same shape. */

import { optionalRecord, type Path, type Refuse } from './projection.ts';

/** Label or annotation values by key. Made without a prototype, so that a label named `constructor` is only a label. */
export type Labels = Readonly<Record<string, string>>;

/** Projects labels, or annotations that are kept; none where there is no mapping of them. */
export function labelsOf(
  value: unknown,
  at: Path,
  refuse: Refuse,
  keep: (key: string) => boolean = () => true,
): Labels {
  const labels: Record<string, string> = Object.create(null) as Record<string, string>;
  for (const [key, text] of Object.entries(optionalRecord(value, at, refuse))) {
    if (!keep(key)) continue;
    labels[key] =
      typeof text === 'string'
        ? text
        : refuse([...at, key], 'a text (in quotes, if YAML takes it for something else)', text);
  }
  return labels;
}

/** A value, undefined for what is not there; also for labels that have a prototype. */
export function labelValue(labels: Labels, key: string): string | undefined {
  return Object.hasOwn(labels, key) ? labels[key] : undefined;
}
