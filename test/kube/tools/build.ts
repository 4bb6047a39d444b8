/**
 * Builds etcd, kube-apiserver and kubectl from the modules in go.mod, once for a
 * machine: into the cache, where the tests find them from then on.
 *
 * `node test/kube/tools/build.ts` does it by hand; `npm test` when it needs them.
 */
import { goPrograms, requiredVersion, type Say, toStandardError } from '../../../deploy/build/go-programs.ts';

const HERE = import.meta.dirname;

/** Without these it calls itself `v0.0.0-master+$Format:%H$`, which clients cannot read. */
export function linkerFlags(version: string): string {
  const [, major = '', minor = ''] = /^v(\d+)\.(\d+)/.exec(version) ?? [];
  const facts = { gitVersion: version, gitMajor: major, gitMinor: minor, gitCommit: 'unknown' };
  return [
    '-s -w',
    ...Object.entries(facts).map(([name, value]) => `-X k8s.io/component-base/version.${name}=${value}`),
  ].join(' ');
}

/** The directory with `etcd`, `kube-apiserver` and `kubectl`, see {@link goPrograms}. */
export async function buildTools(say: Say = toStandardError): Promise<string> {
  const version = requiredVersion(HERE, 'k8s.io/kubernetes');
  return goPrograms(
    {
      directory: HERE,
      name: 'kube',
      title: `etcd, kubectl and kube-apiserver of Kubernetes ${version}`,
      version,
      programs: {
        etcd: 'go.etcd.io/etcd/server/v3',
        kubectl: 'k8s.io/kubernetes/cmd/kubectl',
        'kube-apiserver': 'k8s.io/kubernetes/cmd/kube-apiserver',
      },
      linkerFlags: linkerFlags(version),
    },
    say,
  );
}

if (import.meta.main) console.log(await buildTools());
