/** Who has written a label or an annotation, by what the API server keeps of it: pure functions of an object's metadata. */

/** As whom the agent writes, in this version and in every one before it. */
export const FIELD_MANAGER = 'cgroute';

/** What the server calls those who wrote before it kept account, or after the account was thrown away. */
const NOBODY = 'before-first-apply';

interface FieldOwner {
  readonly name: string;
  /** When it last changed what it owns of the object, as it is written. */
  readonly time: unknown;
}

/**
 * Who owns it; several do where the second said what was so already. Empty where
 * that is not known: in a manifest, and where somebody emptied the account.
 *
 * Read from `managedFields`,
 * https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/object-meta/
 */
export function ownersOf(
  metadata: Readonly<Record<string, unknown>>,
  what: 'labels' | 'annotations',
  key: string,
): readonly FieldOwner[] {
  const writers = metadata['managedFields'];
  if (!Array.isArray(writers)) return [];
  return writers.flatMap((writer: unknown) => {
    const owned = child(child(child(child(writer, 'fieldsV1'), 'f:metadata'), `f:${what}`), `f:${key}`);
    const name = child(writer, 'manager');
    return owned === undefined || typeof name !== 'string' || name === '' || name === NOBODY
      ? []
      : [{ name, time: child(writer, 'time') }];
  });
}

function child(value: unknown, key: string): unknown {
  return typeof value === 'object' && value !== null && Object.hasOwn(value, key)
    ? (value as Readonly<Record<string, unknown>>)[key]
    : undefined;
}
