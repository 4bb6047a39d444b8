/** Details that travel with a {@link CgrouteError}. */
export interface ErrorDetails {
  readonly cause?: unknown;
  /** The libc, libbpf or Node call that failed, as in its man page. */
  readonly syscall?: string;
  /** The errno's name, `EPERM`. */
  readonly errno?: string;
}

/**
 * The one base class of errors that an operator may see.
 *
 * `code` is stable and goes to logs and metrics; `message` is one sentence that
 * names what was wrong, what was expected and what came.
 */
export class CgrouteError extends Error {
  readonly code: string;
  readonly syscall: string | undefined;
  readonly errno: string | undefined;

  constructor(code: string, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = 'CgrouteError';
    this.code = code;
    this.syscall = details.syscall;
    this.errno = details.errno;
  }
}

/** The text of anything that was thrown, for a log line or an error's sentence. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The system's name for what failed, `EACCES`; empty where it was nothing of the system's. */
export function errnoOf(error: unknown): string {
  if (error instanceof CgrouteError) return error.errno ?? errnoOf(error.cause);
  const { code } = (error ?? {}) as { readonly code?: unknown };
  return typeof code === 'string' ? code : '';
}

/** What was looked for is not there. */
export const isAbsent = (error: unknown): boolean => ['ENOENT', 'ENOTDIR'].includes(errnoOf(error));

/** It may be there or not: this process may not look, or may not do it. */
export const isForbidden = (error: unknown): boolean => ['EACCES', 'EPERM'].includes(errnoOf(error));

/** What it takes where the system refused a file; empty for other failures, a connect() that programs deny among them. */
function remedyOf(error: unknown): string {
  if (!(error instanceof Error && 'path' in error)) return '';
  if (isForbidden(error)) return ': run as root, or as a user who may';
  if (errnoOf(error) === 'EROFS') return ': it is mounted read-only here';
  return '';
}

/** What the system said, and what it takes where a right is missing. An error of ours has said it. */
export const refusalOf = (error: unknown): string =>
  error instanceof CgrouteError ? error.message : `${messageOf(error)}${remedyOf(error)}`;
