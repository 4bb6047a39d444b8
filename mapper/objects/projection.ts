/**
 * What every projection is made of: reading one field of an object whose shape
 * nobody guarantees, and one problem, in words, for the first that cannot be read.
 */

import { shown } from './shown.ts';

/** Keys and indices, from the object's top. */
export type Path = readonly (string | number)[];

/** What is wrong with an object, in words that follow a file and line, and where in the object that is. */
export interface Problem {
  readonly problem: string;
  readonly at: Path;
}

/**
 * - `api`: the API server validated the object, so a value of a form that is not
 *   known here is a newer server's, and is left out rather than refused. A pod
 *   without conditions has just been made and is not ready.
 * - `manifest`: a person wrote it. A value that cannot be read is a mistake to
 *   name; a pod without a phase runs, and without conditions it is ready.
 */
export type Origin = 'api' | 'manifest';

/** Whether a projection gave up. */
export function isProblem(value: object): value is Problem {
  return 'problem' in value;
}

/** Gives up the projection that it is called in. */
export type Refuse = (at: Path, expected: string, came: unknown) => never;

/** Carries one problem from the depth of a projection to its top, and no further. */
const REFUSED = Symbol('refused');

/** What `project` makes, or the first thing that it refused. Never throws. */
export function projected<T extends object>(project: (refuse: Refuse) => T): T | Problem {
  let found: Problem = { problem: 'expected an object that can be read', at: [] };
  const refuse: Refuse = (at, expected, came) => {
    found = { problem: `${dotted(at)}: expected ${expected}, got ${shown(came)}`, at };
    throw REFUSED;
  };
  try {
    return project(refuse);
  } catch {
    // REFUSED; or a getter of the raw value that threw, which is as unreadable.
    return found;
  }
}

function dotted(at: Path): string {
  let text = '';
  for (const step of at) {
    if (typeof step === 'number') text += `[${step}]`;
    else if (/^\w+$/.test(step)) text += text === '' ? step : `.${step}`;
    else text += `[${JSON.stringify(step)}]`;
  }
  return text === '' ? 'object' : text;
}

/** A mapping. */
export function record(value: unknown, at: Path, refuse: Refuse): Readonly<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    return refuse(at, 'a mapping', value);
  return value as Readonly<Record<string, unknown>>;
}

/** A mapping; an empty one where there is none. */
export function optionalRecord(value: unknown, at: Path, refuse: Refuse): Readonly<Record<string, unknown>> {
  return value === undefined || value === null ? {} : record(value, at, refuse);
}

/** A text that is not empty. */
export function requiredText(value: unknown, at: Path, refuse: Refuse): string {
  return optionalText(value, at, refuse) ?? refuse(at, 'a text', value);
}

/** A text; undefined where there is none, or an empty one. */
export function optionalText(value: unknown, at: Path, refuse: Refuse): string | undefined {
  if (value === undefined || value === null || value === '') return undefined;
  return typeof value === 'string'
    ? value
    : refuse(at, 'a text (in quotes, if YAML takes it for something else)', value);
}

/** True or false; false where there is none. */
export function flag(value: unknown, at: Path, refuse: Refuse): boolean {
  if (value === undefined || value === null) return false;
  return typeof value === 'boolean' ? value : refuse(at, 'true or false', value);
}

/** Of `metadata.creationTimestamp`: milliseconds since the epoch; 0 when there is none, or none that is known. */
export function timeOf(value: unknown, strict: boolean, refuse: Refuse): number {
  if (value === undefined || value === null) return 0;
  // `Date.parse` takes a lot of things for a date; the API writes RFC 3339 only.
  const time = typeof value === 'string' && /^\d{4}-\d\d-\d\d/.test(value) ? Date.parse(value) : NaN;
  if (!Number.isNaN(time)) return time;
  return strict ? refuse(['metadata', 'creationTimestamp'], 'a time such as 2026-01-31T12:00:00Z', value) : 0;
}
