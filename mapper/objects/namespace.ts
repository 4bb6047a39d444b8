/** A namespace, in the only shape in which the agent keeps it. */

import { MODE_LABEL } from './label-names.ts';
import { labelsOf, type Labels } from './labels.ts';
import { labelSetAt, versionOf } from './object-age.ts';
import { projected, record, requiredText, type Problem } from './projection.ts';

export interface Namespace {
  readonly name: string;
  readonly labels: Labels;
  /** Of the API, as {@link Pod.version}. */
  readonly version?: bigint;
  /** When the label {@link MODE_LABEL} got its value, as {@link labelSetAt} has it. */
  readonly modeSetAt?: number;
}

/** Projects a raw Namespace. Never throws. */
export function namespaceOf(value: unknown): Namespace | Problem {
  return projected((refuse) => {
    const metadata = record(record(value, [], refuse)['metadata'], ['metadata'], refuse);
    const name = requiredText(metadata['name'], ['metadata', 'name'], refuse);
    const [version, modeSetAt] = [versionOf(metadata), labelSetAt(metadata, MODE_LABEL)];
    return {
      name,
      labels: labelsOf(metadata['labels'], ['metadata', 'labels'], refuse),
      ...(version === undefined ? {} : { version }),
      ...(modeSetAt === undefined ? {} : { modeSetAt }),
    };
  });
}
