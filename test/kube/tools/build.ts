/**
 * Builds programs of Kubernetes from the modules in go.mod, once for a machine:
 * into the cache, where the tests find them from then on. What every test with an
 * API server needs is one set, and the controllers and the scheduler, which take
 * as long again and few tests want, are another.
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

async function build(
  name: string,
  title: string,
  programs: Readonly<Record<string, string>>,
  say: Say,
): Promise<string> {
  const version = requiredVersion(HERE, 'k8s.io/kubernetes');
  return goPrograms(
    {
      directory: HERE,
      name,
      title: `${title} of Kubernetes ${version}`,
      version,
      programs,
      linkerFlags: linkerFlags(version),
    },
    say,
  );
}

/** The directory with `etcd`, `kube-apiserver` and `kubectl`, see {@link goPrograms}. */
export function buildTools(say: Say = toStandardError): Promise<string> {
  const programs = {
    etcd: 'go.etcd.io/etcd/server/v3',
    kubectl: 'k8s.io/kubernetes/cmd/kubectl',
    'kube-apiserver': 'k8s.io/kubernetes/cmd/kube-apiserver',
  };
  return build('kube', 'etcd, kubectl and kube-apiserver', programs, say);
}

/** The directory with `kube-controller-manager` and `kube-scheduler`. */
export function buildControllers(say: Say = toStandardError): Promise<string> {
  const programs = {
    'kube-scheduler': 'k8s.io/kubernetes/cmd/kube-scheduler',
    'kube-controller-manager': 'k8s.io/kubernetes/cmd/kube-controller-manager',
  };
  return build('kube-controllers', 'kube-scheduler and kube-controller-manager', programs, say);
}

if (import.meta.main) console.log(`${await buildTools()}\n${await buildControllers()}`);
