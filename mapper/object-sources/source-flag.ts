/** Which source `--source` names: the API server, or a manifest file. */
import type { Logger } from 'pino';
import { CgrouteError } from '../../native/error.ts';
import type { Config } from '../config/config.ts';
import { kubeAccess } from '../kube/kube-access.ts';
import { openKubeClient } from '../kube/kube-client.ts';
import { kubeSource } from './kube-source.ts';
import { followManifest, type ManifestSource } from './manifest-source.ts';
import type { ObjectSource } from './object-source.ts';

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
