/** What a source of pods and namespaces is: what it tells, and what can be asked of it. */
import { setTimeout as delay } from 'node:timers/promises';
import type { SourceState } from '../../watcher/source-state.ts';
import type { KubeClient } from '../kube/kube-client.ts';
import type { Namespace } from '../objects/namespace.ts';
import type { Objects, Pod } from '../objects/pod.ts';

export interface ObjectHandlers {
  /** All pods and namespaces as they are now. */
  readonly onObjects: (objects: Objects) => void;
  /** One came or differs. After the first {@link onObjects} only. */
  readonly onPod: (pod: Pod) => void;
  readonly onPodGone: (uid: string) => void;
  readonly onNamespace: (namespace: Namespace) => void;
  readonly onNamespaceGone: (name: string) => void;
}

/** For metrics, by the name of what is followed (`pods`). */
export interface SourceFigures {
  /** Sent to the API server so far. */
  readonly requests: number;
  /** How often it began anew, by reason. */
  readonly restarts: Readonly<Record<string, Readonly<Record<string, number>>>>;
  /** Milliseconds since anything was heard; absent where nothing ever was. */
  readonly lastEventAgeMs: Readonly<Record<string, number>>;
}

export interface Following extends AsyncDisposable {
  /** Resolves once all objects were given for the first time, which may take as long as the API server is away. */
  readonly synced: Promise<void>;
}

export interface ObjectSource {
  /** @throws CgrouteError when that can never be, whatever happens later */
  follow(handlers: ObjectHandlers): Promise<Following>;
  states(): SourceState[];
  figures(): SourceFigures;
  /** The API server, where that is the source, for what is written back to it. Closed with {@link follow}. */
  readonly client?: KubeClient;
}

/** Whether it is settled by then; it may be later. */
export async function settlesWithin(promise: Promise<void>, ms: number): Promise<boolean> {
  const late = new AbortController();
  try {
    return await Promise.race([promise.then(() => true), delay(ms, false, { signal: late.signal })]);
  } finally {
    late.abort();
  }
}
