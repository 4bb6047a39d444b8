/** Writes the annotation of Istio that says that a pod's connections are redirected. */
import PQueue from 'p-queue';
import type { Logger } from 'pino';
import { messageOf } from '../../native/error.ts';
import { makeBackoff, type Backoff } from '../pacing/backoff.ts';
import type { KubeClient } from '../kube/kube-client.ts';
import { KubeError } from '../kube/kube-error.ts';
import { REDIRECTION } from '../objects/label-names.ts';
import type { Pod } from '../objects/pod.ts';

const ENABLED = 'enabled';

/** What the API's object says. */
export const isAnnotated = (pod: Pod): boolean => pod.annotations[REDIRECTION] === ENABLED;

export interface PodAnnotator extends Disposable {
  /** The annotation as it should be; returns at once. What the API says already is not written. */
  want(pod: Pod, enabled: boolean): void;
  forget(uid: string): void;
  /** Resolves once these pods are as they should be, or it has failed once. */
  settled(uids: Iterable<string>): Promise<void>;
}

export interface PodAnnotatorOptions {
  readonly client: Pick<KubeClient, 'json'>;
  readonly logger: Logger;
  /** First and longest wait before another try, milliseconds. */
  readonly backoffMs?: readonly [number, number];
}

interface Written {
  pod: Pod;
  wanted: boolean;
  /** What the API's object said when it was last looked at, and what it must say by now. */
  projected: boolean;
  said: boolean;
  running: Promise<void> | undefined;
  retry: NodeJS.Timeout | undefined;
  readonly backoff: Backoff;
}

export function makePodAnnotator({
  client,
  logger,
  backoffMs = [500, 120_000],
}: PodAnnotatorOptions): PodAnnotator {
  const pods = new Map<string, Written>();
  const queue = new PQueue({ concurrency: 8 });
  const closing = new AbortController();

  const patch = async (each: Written): Promise<void> => {
    const {
      pod: { namespace, name, uid },
      wanted,
    } = each;
    if (wanted === each.said || pods.get(uid) !== each) return;
    const path = `/api/v1/namespaces/${encodeURIComponent(namespace)}/pods/${encodeURIComponent(name)}/status`;
    // With the UID in it the patch is refused where another pod has taken the name.
    const text = JSON.stringify({
      metadata: { uid, annotations: { [REDIRECTION]: wanted ? ENABLED : null } },
    });
    try {
      await client.json({
        method: 'PATCH',
        path,
        query: { fieldManager: 'cgroute' },
        body: { type: 'application/merge-patch+json', text },
        signal: closing.signal,
      });
      each.said = wanted;
      each.backoff.reset();
    } catch (error) {
      if (closing.signal.aborted) return;
      if (isAnotherPod(error)) {
        // Until the source tells of a change, there is nothing to write to.
        each.said = wanted;
        return;
      }
      const isFirst = each.backoff.failures === 0;
      logger[isFirst ? 'warn' : 'debug'](
        { err: error, podUid: uid },
        `the annotation of pod ${namespace}/${name} could not be written, and is tried again: ${messageOf(error)}`,
      );
      const wait = each.backoff.next(error instanceof KubeError ? error.retryAfterMs : 0);
      each.retry = setTimeout(() => {
        each.retry = undefined;
        go(each);
      }, wait).unref();
    }
  };

  /** One request per pod at a time; what is wanted meanwhile is looked at when it is through. */
  const go = (each: Written): void => {
    if (
      closing.signal.aborted ||
      each.running !== undefined ||
      each.retry !== undefined ||
      each.wanted === each.said
    )
      return;
    each.running = queue
      .add(() => patch(each))
      .then(() => {
        each.running = undefined;
        if (pods.get(each.pod.uid) === each) go(each);
      });
  };

  return {
    want(pod, wanted) {
      const projected = isAnnotated(pod);
      const each = pods.get(pod.uid) ?? {
        pod,
        wanted,
        projected,
        said: projected,
        running: undefined,
        retry: undefined,
        backoff: makeBackoff(...backoffMs),
      };
      pods.set(pod.uid, each);
      // An event from before our own write says nothing new.
      if (projected !== each.projected) each.said = each.projected = projected;
      each.pod = pod;
      each.wanted = wanted;
      go(each);
    },
    forget(uid) {
      clearTimeout(pods.get(uid)?.retry);
      pods.delete(uid);
    },
    async settled(uids) {
      await Promise.all(
        [...uids].map(async (uid) => {
          for (let each = pods.get(uid); each?.running !== undefined; each = pods.get(uid))
            await each.running;
        }),
      );
    },
    [Symbol.dispose]() {
      closing.abort();
      queue.clear();
      for (const { retry } of pods.values()) clearTimeout(retry);
      pods.clear();
    },
  };
}

/** Gone, or another one under its name. A conflict of versions looks similar, and is worth another try. */
function isAnotherPod(error: unknown): boolean {
  if (!(error instanceof KubeError)) return false;
  return (
    error.status === 404 || error.status === 422 || (error.status === 409 && /\buid\b/i.test(error.message))
  );
}
