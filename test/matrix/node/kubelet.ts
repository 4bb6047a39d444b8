/** The kubelet, built from its Go module in kubelet/go.mod, once for a machine. */
import { join } from 'node:path';
import { goPrograms, requiredVersion, type Say, toStandardError } from '../../../deploy/build/go-programs.ts';
import { linkerFlags } from '../../kube/tools/build.ts';

const HERE = join(import.meta.dirname, 'kubelet');
export const KUBELET_VERSION = requiredVersion(HERE, 'k8s.io/kubernetes');

/** Its path; a static program, as the guest's C library is another than this machine's. */
export async function buildKubelet(say: Say = toStandardError): Promise<string> {
  const directory = await goPrograms(
    {
      directory: HERE,
      name: 'kubelet',
      title: `kubelet of Kubernetes ${KUBELET_VERSION}`,
      version: KUBELET_VERSION,
      programs: { kubelet: 'k8s.io/kubernetes/cmd/kubelet' },
      linkerFlags: linkerFlags(KUBELET_VERSION),
      isStatic: true,
    },
    say,
  );
  return join(directory, 'kubelet');
}

if (import.meta.main) console.log(await buildKubelet());
