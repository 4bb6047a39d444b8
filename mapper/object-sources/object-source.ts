/** Where pods and namespaces come from: the API server, or a manifest file. */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { CgrouteError } from '../../native/error.ts';
import type { SourceState } from '../../watcher/source-state.ts';
import type { Config } from '../config/config.ts';
import { kubeAccess } from '../kube/kube-access.ts';
import { openKubeClient, type KubeClient } from '../kube/kube-client.ts';
import { kubeSource } from './kube-source.ts';
import { followManifest, type ManifestSource } from './manifest-source.ts';
import type { Objects, Pod } from '../objects/pod.ts';
import type { Namespace } from '../objects/namespace.ts';

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

export interface ObjectSourceOptions {
  readonly node: string;
  readonly version: string;
  readonly config: Pick<Config, 'relistSeconds'>;
  readonly logger: Logger;
}

/**
 * The source that `--source` names: `file:PATH`, or `kube`.
 * @throws CgrouteError `EUSAGE` for anything else; `EKUBECONFIG` when nothing tells where the API server is
 */
export function objectSource(
  flag: string,
  { node, version, config, logger }: ObjectSourceOptions,
): ObjectSource {
  if (flag.startsWith('file:') && flag.length > 5) return manifestFile(flag.slice(5), logger);
  if (flag !== 'kube') throw new CgrouteError('EUSAGE', `--source expects kube or file:PATH, got "${flag}"`);
  const client = openKubeClient({ access: kubeAccess(), userAgent: `cgroute/${version}` });
  return kubeSource({ client, node, logger, timing: { relistMs: config.relistSeconds * 1000 } });
}

function manifestFile(path: string, logger: Logger): ObjectSource {
  let source: ManifestSource | undefined;
  return {
    async follow({ onObjects }) {
      source = followManifest(path, {
        onChange(manifest) {
          for (const note of manifest.notes) logger.info(note);
          onObjects(manifest);
        },
        onError: (error) => logger.error({ err: error }, `${error.message}; what stood before goes on`),
      });
      const opened = source;
      return { synced: Promise.resolve(), [Symbol.asyncDispose]: async () => opened[Symbol.dispose]() };
    },
    states: () => [
      source?.state() ?? { name: 'manifest', state: 'off', detail: `${path} has not been read` },
    ],
    figures: () => ({ requests: 0, restarts: {}, lastEventAgeMs: {} }),
  };
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
