/** Events on pods, for `kubectl describe pod`: few, each once in a while, and never in anybody's way. */
import { createHash } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import PQueue from 'p-queue';
import type { Logger } from 'pino';
import { messageOf } from '../../native/error.ts';
import { makeBackoff } from '../pacing/backoff.ts';
import { makeTokenBucket } from '../pacing/token-bucket.ts';
import type { KubeClient } from '../kube/kube-client.ts';
import { KubeError } from '../kube/kube-error.ts';
import type { FailureReason } from '../connections/connection-failures.ts';
import { FIELD_MANAGER } from '../objects/field-owners.ts';
import type { Pod } from '../objects/pod.ts';
import type { Note } from '../decisions/decision.ts';

export type EventReason =
  | 'MeshEnrolled'
  | 'MeshRemoved'
  | 'BypassRefused'
  | 'LabelNotUnderstood'
  | 'AnnotationNotUnderstood'
  | 'SidecarStays'
  | 'NotRedirected'
  | 'ConnectionsNotReset'
  | 'KnownLate'
  | 'OtherMesh'
  | FailureReason;

/** Which notes become Events, and under which reason. */
export const NOTE_REASONS: Readonly<Partial<Record<Note['code'], EventReason>>> = {
  'bypass-refused': 'BypassRefused',
  'unknown-mode': 'LabelNotUnderstood',
  'unknown-bypass': 'LabelNotUnderstood',
  'sidecar-stays': 'SidecarStays',
  'other-mesh': 'OtherMesh',
  'traffic-annotation': 'AnnotationNotUnderstood',
};

export interface PodEvents extends Disposable {
  /** Returns at once. What is over the limit, or was said within ten minutes, is dropped. */
  report(pod: Pod, reason: EventReason, message: string): void;
  /** Resolves when nothing is on its way. */
  idle(): Promise<void>;
  /** Left out because of the limits so far. */
  readonly dropped: number;
}

export interface PodEventsOptions {
  readonly client: Pick<KubeClient, 'json'>;
  readonly node: string;
  readonly logger: Logger;
  /** Milliseconds since the epoch, and of a clock that nobody sets. */
  readonly now?: () => number;
  readonly monotonic?: () => number;
  /** First and longest wait before another try, milliseconds. */
  readonly backoffMs?: readonly [number, number];
}

const REPEAT_MS = 600_000;
const LIMITS = { most: 25, perSecond: 5 };
/** So many wait at most while the API server is slow or away. */
const MOST_WAITING = 100;
const TRIES = 3;
/** The API's limits, https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/ */
const LONGEST_MESSAGE = 1024;
const LONGEST_NAME = 253;

export function makePodEvents(options: PodEventsOptions): PodEvents {
  const {
    client,
    node,
    logger,
    now = Date.now,
    monotonic = () => performance.now(),
    backoffMs = [500, 5000],
  } = options;
  const closing = new AbortController();
  const queue = new PQueue({ concurrency: 2 });
  /** When each was said last. */
  const said = new Map<string, number>();
  const takeToken = makeTokenBucket(LIMITS, monotonic);
  let dropped = 0;

  const send = async (pod: Pod, body: object): Promise<void> => {
    const backoff = makeBackoff(...backoffMs);
    const request = {
      method: 'POST',
      path: `/api/v1/namespaces/${encodeURIComponent(pod.namespace)}/events`,
      query: { fieldManager: FIELD_MANAGER },
      body: { type: 'application/json', text: JSON.stringify(body) },
      signal: closing.signal,
    } as const;
    for (;;) {
      try {
        await client.json(request);
        return;
      } catch (error) {
        if (closing.signal.aborted) return;
        const status = error instanceof KubeError ? error.status : undefined;
        // The same Event, from before a restart.
        if (status === 409) return;
        const isLasting = status !== undefined && status >= 400 && status < 500 && status !== 429;
        if (isLasting || backoff.failures >= TRIES - 1) {
          logger.debug({ err: error, podUid: pod.uid }, `an Event could not be written: ${messageOf(error)}`);
          return;
        }
        await delay(backoff.next(error instanceof KubeError ? error.retryAfterMs : 0), undefined, {
          ref: false,
          signal: closing.signal,
        }).catch(() => undefined);
      }
    }
  };

  return {
    get dropped() {
      return dropped;
    },
    report(pod, reason, message) {
      if (closing.signal.aborted) return;
      const at = monotonic();
      for (const [key, time] of said) {
        if (at - time < REPEAT_MS) break;
        said.delete(key);
      }
      const key = `${pod.uid} ${reason} ${message}`;
      if (said.has(key)) return;
      if (queue.size >= MOST_WAITING || !takeToken()) {
        dropped++;
        logger.debug({ podUid: pod.uid, reason }, `an Event was left out, as there are too many: ${message}`);
        return;
      }
      said.set(key, at);
      const event = eventObject(pod, reason, message, node, now());
      void queue.add(() => send(pod, event));
    },
    idle: () => queue.onIdle(),
    [Symbol.dispose]() {
      closing.abort();
      queue.clear();
    },
  };
}

/** Its name is made of what it says and when, so an agent that starts again finds that it has been said. */
function eventObject(pod: Pod, reason: EventReason, message: string, node: string, nowMs: number): object {
  const hash = createHash('sha256')
    .update(`${pod.uid} ${reason} ${message} ${Math.floor(nowMs / REPEAT_MS)}`)
    .digest('hex')
    .slice(0, 16);
  const time = new Date(nowMs).toISOString().replace(/\.\d+Z$/, 'Z');
  return {
    apiVersion: 'v1',
    kind: 'Event',
    // Cut before the dot: a name must not have ".." or "-." in it.
    metadata: {
      namespace: pod.namespace,
      name: `${pod.name.slice(0, LONGEST_NAME - hash.length - 1).replace(/[-.]+$/, '')}.${hash}`,
    },
    involvedObject: { apiVersion: 'v1', kind: 'Pod', namespace: pod.namespace, name: pod.name, uid: pod.uid },
    type: reason === 'MeshEnrolled' || reason === 'MeshRemoved' ? 'Normal' : 'Warning',
    reason,
    message: message.length > LONGEST_MESSAGE ? `${message.slice(0, LONGEST_MESSAGE - 3)}...` : message,
    source: { component: 'cgroute', host: node },
    reportingComponent: 'cgroute',
    reportingInstance: node,
    firstTimestamp: time,
    lastTimestamp: time,
    count: 1,
  };
}
