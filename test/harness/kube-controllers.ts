/** A real kube-controller-manager and kube-scheduler for a cluster, built as the API server is. */
import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';
import { hasGo, type Say } from '../../deploy/build/go-programs.ts';
import type { Running } from '../../deploy/stage/process.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';
import { buildControllers } from '../kube/tools/build.ts';
import { keepLog } from './kube-server.ts';
import type { Cluster } from './kube.ts';

const GIVEN = process.env['KUBE_CONTROLLERS'] ?? '';
const MISSING =
  'no controllers to test with: set KUBE_CONTROLLERS to a directory with kube-controller-manager and kube-scheduler, or install Go';

/** As KUBE_MISSING of kube-tools.ts. */
export const CONTROLLERS_MISSING: string | false =
  GIVEN !== '' || hasGo() || process.env['CI'] ? false : MISSING;

/** The directory of the two; builds them on the first call. */
export async function kubeControllers(say?: Say): Promise<string> {
  if (GIVEN === '' && !hasGo()) throw new Error(MISSING);
  const directory = GIVEN === '' ? await buildControllers(say) : GIVEN;
  for (const name of ['kube-controller-manager', 'kube-scheduler'])
    accessSync(join(directory, name), constants.X_OK);
  return directory;
}

/** Starts both, with the rights of the admin; they go with the sandbox. @param names of the controllers that run */
export async function startControllers(
  sandbox: Sandbox,
  cluster: Cluster,
  names: readonly string[],
): Promise<void> {
  const directory = await kubeControllers();
  const start = (name: string, ...args: readonly string[]): Running => {
    const running = sandbox.spawn({
      cmd: join(directory, name),
      args: ['--kubeconfig', cluster.kubeconfig, '--leader-elect=false', '--secure-port=0', ...args],
      cgroup: sandbox.cgroup('cluster'),
    });
    keepLog(name, running);
    return running;
  };
  start('kube-controller-manager', `--controllers=${names.join()}`);
  start('kube-scheduler');
}
