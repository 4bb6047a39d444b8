/** What an object of the API says of when it was changed: pure functions of its metadata. */

import { ownersOf } from './field-owners.ts';

/**
 * `resourceVersion` as a number: a decimal integer of at most 128 bits since
 * Kubernetes 1.35, and in fact since ever. Undefined where there is none.
 */
export function versionOf(metadata: Readonly<Record<string, unknown>>): bigint | undefined {
  const version = metadata['resourceVersion'];
  return typeof version === 'string' && /^\d{1,39}$/.test(version) ? BigInt(version) : undefined;
}

/**
 * When a label got its value, milliseconds since the epoch by the API server's
 * clock, whole seconds; or later, where the same writer has changed more of the
 * object since. Of a label that is not there nothing says when it was removed.
 */
export function labelSetAt(metadata: Readonly<Record<string, unknown>>, label: string): number | undefined {
  const times = ownersOf(metadata, 'labels', label).flatMap(({ time }) => {
    const at = typeof time === 'string' ? Date.parse(time) : NaN;
    return Number.isNaN(at) ? [] : [at];
  });
  // Whoever says later what is so already owns the label, too.
  return times.length === 0 ? undefined : Math.min(...times);
}
