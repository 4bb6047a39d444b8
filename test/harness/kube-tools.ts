/** Where a real kube-apiserver, etcd and kubectl come from: KUBEBUILDER_ASSETS, else built from test/kube/tools. */
import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';
import { buildTools } from '../kube/tools/build.ts';
import { hasGo, type Say } from '../../deploy/build/go-programs.ts';

export interface KubeTools {
  /** The directory of the three, fit for KUBEBUILDER_ASSETS. */
  readonly directory: string;
  readonly etcd: string;
  readonly apiServer: string;
  readonly kubectl: string;
}

const ASSETS = process.env['KUBEBUILDER_ASSETS'] ?? '';
const MISSING =
  'no API server to test with: set KUBEBUILDER_ASSETS to a directory with etcd, kube-apiserver and kubectl, or install Go';

/**
 * Why a test with an API server is skipped on this machine, for the option
 * `skip`; false when it can run. In CI nothing is skipped: it fails instead.
 */
export const KUBE_MISSING: string | false = ASSETS !== '' || hasGo() || process.env['CI'] ? false : MISSING;

/** The programs; builds them on the first call on a machine without KUBEBUILDER_ASSETS. */
export async function kubeTools(say?: Say): Promise<KubeTools> {
  if (ASSETS === '' && !hasGo()) throw new Error(MISSING);
  const directory = ASSETS === '' ? await buildTools(say) : ASSETS;
  const program = (name: string): string => {
    const path = join(directory, name);
    try {
      accessSync(path, constants.X_OK);
    } catch (error) {
      const source = ASSETS === '' ? 'the cache of built tools' : 'KUBEBUILDER_ASSETS';
      throw new Error(`${source} is ${directory}, and there is no program ${name} in it`, { cause: error });
    }
    return path;
  };
  return {
    directory,
    etcd: program('etcd'),
    apiServer: program('kube-apiserver'),
    kubectl: program('kubectl'),
  };
}
