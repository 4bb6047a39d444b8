/**
 * Writes the annotation of Istio that says that a pod's connections are redirected.
 * What somebody else has to say in it stays as it is.
 */
import PQueue from 'p-queue';
import type { Logger } from 'pino';
import { messageOf } from '../../native/error.ts';
import { makeBackoff, type Backoff } from '../pacing/backoff.ts';
import type { KubeClient } from '../kube/kube-client.ts';
import { KubeError } from '../kube/kube-error.ts';
import { ENABLED, isAnnotated, isOursToWrite } from '../decisions/redirection-annotation.ts';
import { FIELD_MANAGER } from '../objects/field-owners.ts';
import { REDIRECTION } from '../objects/label-names.ts';
import { versionOf } from '../objects/object-age.ts';
import { podOf, type Pod } from '../objects/pod.ts';
import { isProblem } from '../objects/projection.ts';

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
  /** Whether the annotation is cgroute's to write where another mesh has written it. @default false */
  readonly takeOver?: boolean;
  /** First and longest wait before another try, milliseconds. */
  readonly backoffMs?: readonly [number, number];
}

interface Written {
  pod: Pod;
  wanted: boolean;
  /** `resourceVersion` of what {@link pod} was made of, as long as nothing says that there is a newer one. */
  version: bigint | undefined;
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
  takeOver = false,
  backoffMs = [500, 120_000],
}: PodAnnotatorOptions): PodAnnotator {
  const pods = new Map<string, Written>();
  const queue = new PQueue({ concurrency: 8 });
  const closing = new AbortController();

  const isDone = ({ wanted, said, pod }: Written): boolean =>
    wanted === said || !isOursToWrite(pod, takeOver);

  const patch = async (each: Written): Promise<void> => {
    const {
      pod: { namespace, name, uid },
      wanted,
      version,
    } = each;
    if (isDone(each) || pods.get(uid) !== each) return;
    const path = `${pathOf(each.pod)}/${encodeURIComponent(name)}/status`;
    // With the UID in it the patch is refused where another pod has taken the name,
    // with the version where somebody has written to the pod since it was looked at.
    const text = JSON.stringify({
      metadata: {
        uid,
        ...(version === undefined ? {} : { resourceVersion: String(version) }),
        annotations: { [REDIRECTION]: wanted ? ENABLED : null },
      },
    });
    try {
      const written = await client.json({
        method: 'PATCH',
        path,
        query: { fieldManager: FIELD_MANAGER },
        body: { type: 'application/merge-patch+json', text },
        signal: closing.signal,
      });
      each.said = wanted;
      // Until the source tells of this or of something newer.
      if (each.version === version)
        each.version = versionOf((written as { metadata?: Record<string, unknown> }).metadata ?? {});
      each.backoff.reset();
    } catch (error) {
      if (closing.signal.aborted) return;
      if (isAnotherPod(error)) {
        // Until the source tells of a change, there is nothing to write to.
        each.said = wanted;
        return;
      }
      if (version !== undefined && isConflict(error) && (await lookAgain(each, version))) return;
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

  /** Somebody has written to the pod: what it says by now counts, and the patch is made anew. Whether that could be told. */
  const lookAgain = async (each: Written, refused: bigint): Promise<boolean> => {
    const { name, uid } = each.pod;
    try {
      // The right to list is what the agent has.
      const list = (await client.json({
        path: pathOf(each.pod),
        query: { fieldSelector: `metadata.name=${name}` },
        signal: closing.signal,
      })) as { readonly items?: readonly unknown[] } | undefined;
      const [item] = list?.items ?? [];
      const now = item === undefined ? undefined : podOf(item);
      // A source that tells meanwhile knows no less.
      if (each.version !== refused) return true;
      if (now !== undefined && (isProblem(now) || now.version === refused)) return false;
      if (now?.uid === uid) see(each, now);
      else each.said = each.wanted;
      return true;
    } catch {
      return false;
    }
  };

  const see = (each: Written, pod: Pod): void => {
    const projected = isAnnotated(pod);
    // An event from before our own write says nothing new.
    if (projected !== each.projected) each.said = each.projected = projected;
    each.pod = pod;
    each.version = pod.version;
  };

  /** One request per pod at a time; what is wanted meanwhile is looked at when it is through. */
  const go = (each: Written): void => {
    if (closing.signal.aborted || each.running !== undefined || each.retry !== undefined || isDone(each))
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
        version: pod.version,
        projected,
        said: projected,
        running: undefined,
        retry: undefined,
        backoff: makeBackoff(...backoffMs),
      };
      pods.set(pod.uid, each);
      see(each, pod);
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

const pathOf = ({ namespace }: Pod): string => `/api/v1/namespaces/${encodeURIComponent(namespace)}/pods`;

const isConflict = (error: unknown): boolean => error instanceof KubeError && error.status === 409;

/** Gone, or another one under its name. A conflict of versions looks similar, and is worth another try. */
function isAnotherPod(error: unknown): boolean {
  if (!(error instanceof KubeError)) return false;
  return (
    error.status === 404 || error.status === 422 || (error.status === 409 && /\buid\b/i.test(error.message))
  );
}
