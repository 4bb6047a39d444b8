/**
 * Whether something is there, told apart from whether this process may look: a
 * missing right is an error, and never an absence.
 */
import { readFileSync, statSync } from 'node:fs';
import { CgrouteError, errnoOf, isAbsent, refusalOf } from '../error.ts';

/** For what could not be looked at. */
function unseen(path: string, cause: unknown): CgrouteError {
  return new CgrouteError('EUNSEEN', `${path} cannot be looked at: ${refusalOf(cause)}`, {
    cause,
    errno: errnoOf(cause),
  });
}

/** `look` at a path, undefined where nothing is. @throws CgrouteError `EUNSEEN` where that cannot be told */
function ifThere<T>(path: string, look: (path: string) => T): T | undefined {
  try {
    return look(path);
  } catch (cause) {
    if (isAbsent(cause)) return undefined;
    throw unseen(path, cause);
  }
}

/** Whether the path leads to something. @throws CgrouteError `EUNSEEN` where that cannot be told */
export const isThere = (path: string): boolean => ifThere(path, (at) => statSync(at)) !== undefined;

/** A file's text, undefined where there is none. @throws CgrouteError `EUNSEEN` where it cannot be read */
export const readIfThere = (path: string): string | undefined =>
  ifThere(path, (at) => readFileSync(at, 'utf8'));
