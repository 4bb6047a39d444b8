/** What can go wrong between the agent and the API server, with what follows from it. */
import { CgrouteError } from '../../native/error.ts';

/**
 * Also the label of the metric that counts why a source started anew.
 *
 * - `access`: there is nothing valid to log in with;
 * - `unreachable`: no connection, `cut`: one that broke in the middle;
 * - `idle`: silent for longer than a healthy server is;
 * - `refused`: an answer of the 400s, `server`: of the 500s;
 * - `expired`: the version that was asked for is no longer, or not yet, there (410), so only a fresh list helps;
 * - `garbage`: something that isn't the API's JSON;
 * - `ended`: a watch that was ended in order before it could be of any use.
 */
export type KubeFailure =
  | 'access'
  | 'unreachable'
  | 'cut'
  | 'idle'
  | 'refused'
  | 'server'
  | 'expired'
  | 'garbage'
  | 'ended';

export class KubeError extends CgrouteError {
  readonly failure: KubeFailure;
  /** HTTP status, where there was one. */
  readonly status: number | undefined;
  /** For how many milliseconds the server asks to be left alone. */
  readonly retryAfterMs: number;

  constructor(
    failure: KubeFailure,
    message: string,
    details: { readonly cause?: unknown; readonly status?: number; readonly retryAfterMs?: number } = {},
  ) {
    super('EKUBE', message, { cause: details.cause });
    this.name = 'KubeError';
    this.failure = failure;
    this.status = details.status;
    this.retryAfterMs = details.retryAfterMs ?? 0;
  }
}

/** `Status` of the API, https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/, as far as it matters. */
interface Status {
  readonly code?: unknown;
  readonly message?: unknown;
  readonly details?: { readonly causes?: unknown };
}

/**
 * The error that a `Status` stands for, whether it came as an answer or as an
 * `ERROR` event of a watch.
 * @param what the request, for the sentence
 * @param httpStatus of the answer; an event has its own code
 */
export function errorOfStatus(
  what: string,
  status: unknown,
  httpStatus?: number,
  retryAfterMs = 0,
): KubeError {
  const { code, message, details } = (typeof status === 'object' && status !== null ? status : {}) as Status;
  const number = typeof code === 'number' ? code : (httpStatus ?? 0);
  const text = typeof message === 'string' && message !== '' ? `: ${message.slice(0, 400)}` : '';
  // An etcd that was restored from a backup is behind what it said before.
  const causes: readonly unknown[] = Array.isArray(details?.causes) ? details.causes : [];
  const isAhead =
    causes.some((cause) => (cause as { reason?: unknown } | null)?.reason === 'ResourceVersionTooLarge') ||
    text.includes('Too large resource version');
  const failure =
    number === 410 || isAhead ? 'expired' : number >= 400 && number < 500 ? 'refused' : 'server';
  return new KubeError(failure, `${what}: the API server answered ${number}${text}${remedy(number)}`, {
    status: number,
    retryAfterMs,
  });
}

function remedy(status: number): string {
  if (status === 401) return '; is its token or certificate still good?';
  if (status === 403) return '; expected a role that may get, list and watch this';
  return '';
}
