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
