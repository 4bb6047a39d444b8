/** The real Helm: $HELM, else built from helm/. */
import { join, resolve } from 'node:path';
import { parseAllDocuments } from 'yaml';
import { goPrograms, hasGo, requiredVersion, type Say } from './go-programs.ts';
import type { KubeObject } from '../../test/harness/kube-objects.ts';
import { type Finished, run } from '../stage/process.ts';

const root = resolve(import.meta.dirname, '../..');
const MODULE = join(root, 'deploy/build/helm');
export const CHART = join(root, 'deploy/chart');

const GIVEN = process.env['HELM'] ?? '';
const MISSING = 'no Helm to test with: set HELM to the program, or install Go';

/** Why a test with Helm is skipped on this machine; false when it can run. In CI it fails instead. */
export const HELM_MISSING: string | false = GIVEN !== '' || hasGo() || process.env['CI'] ? false : MISSING;

/** The program's path; builds it on the first call on a machine without $HELM. */
export async function helmProgram(say?: Say): Promise<string> {
  if (GIVEN !== '') return GIVEN;
  if (!hasGo()) throw new Error(MISSING);
  const version = requiredVersion(MODULE, 'helm.sh/helm/v4');
  const linkerFlags = `-s -w -X helm.sh/helm/v4/internal/version.version=${version}`;
  const programs = { helm: 'helm.sh/helm/v4/cmd/helm' };
  return join(
    await goPrograms(
      { directory: MODULE, name: 'helm', title: `Helm ${version}`, version, programs, linkerFlags },
      say,
    ),
    'helm',
  );
}

/** Runs Helm, without what the user has configured. */
export async function helm(
  args: readonly string[],
  options: { readonly kubeconfig?: string; readonly home?: string; readonly stdin?: string } = {},
): Promise<Finished> {
  const { kubeconfig = '/dev/null', home = '/nonexistent', stdin = '' } = options;
  const env = {
    KUBECONFIG: kubeconfig,
    HELM_CACHE_HOME: `${home}/cache`,
    HELM_CONFIG_HOME: `${home}/config`,
    HELM_DATA_HOME: `${home}/data`,
  };
  return run({ cmd: await helmProgram(), args, env, stdin });
}

/** The Kubernetes that `helm template` takes for granted, as it asks none. */
const KUBERNETES = '1.36.0';

/** `helm template` of the chart as release `cgroute` in `kube-system`: what it prints, and what went wrong. */
export function template(...args: readonly string[]): Promise<Finished> {
  return helm([
    'template',
    'cgroute',
    CHART,
    '--namespace',
    'kube-system',
    '--kube-version',
    KUBERNETES,
    ...args,
  ]);
}

/** The objects that it renders, hooks among them; an error where it doesn't. */
export async function chartObjects(...args: readonly string[]): Promise<readonly KubeObject[]> {
  const { code, stdout, stderr } = await template(...args);
  if (code !== 0) throw new Error(`helm template exited with ${code}: ${stderr.trim()}`);
  return parseAllDocuments(stdout)
    .map((document) => document.toJS() as KubeObject | null)
    .filter((object) => object !== null);
}
