/** Where pods and namespaces come from. A manifest file now; the API server is the other one, to come. */
import type { Logger } from 'pino';
import { CgrouteError } from '../native/error.ts';
import type { SourceState } from '../watcher/source-state.ts';
import { followManifest, type ManifestSource } from './manifest-source.ts';
import type { Objects } from './objects.ts';

export interface ObjectHandlers {
  /** All pods and namespaces as they are now. */
  readonly onObjects: (objects: Objects) => void;
}

export interface ObjectSource {
  /** Resolves once the objects were given for the first time. @throws CgrouteError when that cannot be */
  follow(handlers: ObjectHandlers): Promise<AsyncDisposable>;
  state(): SourceState;
}

/**
 * The source that `--source` names: `file:PATH`, or `kube`.
 * @throws CgrouteError `EUSAGE` for anything else
 */
export function objectSource(flag: string, logger: Logger): ObjectSource {
  if (flag.startsWith('file:') && flag.length > 5) return manifestFile(flag.slice(5), logger);
  if (flag === 'kube') throw new CgrouteError('EUSAGE', '--source kube is not there yet: expected file:PATH, a YAML file with Namespace and Pod objects');
  throw new CgrouteError('EUSAGE', `--source expects kube or file:PATH, got "${flag}"`);
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
      return { [Symbol.asyncDispose]: async () => opened[Symbol.dispose]() };
    },
    state: () => source?.state() ?? { name: 'manifest', state: 'off', detail: `${path} has not been read` },
  };
}
