/**
 * What tests need that takes its time to make, and is kept from then on: made before
 * any file's clock runs, and only when a file that is wanted needs it. Which do,
 * their imports tell.
 */
import { KUBE_MISSING, kubeTools } from '../harness/kube-tools.ts';
import { CONTROLLERS_MISSING, kubeControllers } from '../harness/kube-controllers.ts';
import { OLD_MISSING, oldRelease } from '../harness/old-release.ts';
import { IMAGE_MISSING, prepareImage } from '../harness/image.ts';
import { prepareOther } from '../harness/other-build.ts';
import { LAYOUTS } from '../e2e/other-layouts.ts';
import { promtool } from '../harness/promtool.ts';
import { HELM_MISSING, helmProgram } from '../../deploy/build/helm.ts';
import type { Say } from '../../deploy/build/go-programs.ts';
import { messageOf } from '../../native/error.ts';
import { importsOf } from './imports.ts';
import type { Wanted } from './parts.ts';

export interface Preparation {
  /** What it makes, for people. */
  readonly name: string;
  /** The file that hands it to tests, from the project's root: whoever imports that needs it. */
  readonly module: string;
  /** In whose files it is used; elsewhere a file may import its module for something else. */
  readonly parts: readonly string[];
  /** Why it cannot be made on this machine, where tests are skipped for it. */
  readonly missing: string | false;
  /** Makes it where it is not there yet; gives the variables that tell tests where it is. */
  make(say: Say): Promise<Readonly<Record<string, string>>>;
}

export const PREPARATIONS: readonly Preparation[] = [
  {
    name: 'etcd, kube-apiserver and kubectl',
    module: 'test/harness/kube-tools.ts',
    parts: ['kube'],
    missing: KUBE_MISSING,
    make: async (say) => ({ KUBEBUILDER_ASSETS: (await kubeTools(say)).directory }),
  },
  {
    name: 'kube-controller-manager and kube-scheduler',
    module: 'test/harness/kube-controllers.ts',
    parts: ['kube'],
    missing: CONTROLLERS_MISSING,
    make: async (say) => ({ KUBE_CONTROLLERS: await kubeControllers(say) }),
  },
  {
    name: 'Helm',
    module: 'deploy/build/helm.ts',
    parts: ['kernel', 'kube'],
    missing: HELM_MISSING,
    make: async (say) => ({ HELM: await helmProgram(say) }),
  },
  {
    name: 'promtool',
    module: 'test/harness/promtool.ts',
    parts: ['unit', 'kube'],
    missing: false,
    // Those who use it say what that means where it cannot be had.
    make: (say) =>
      promtool().then(
        (path) => ({ PROMTOOL: path }),
        (error: unknown) => {
          say(messageOf(error));
          return {};
        },
      ),
  },
  {
    name: 'the container image',
    module: 'test/harness/image.ts',
    parts: ['kernel'],
    missing: IMAGE_MISSING,
    make: async (say) => {
      await prepareImage(say);
      return {};
    },
  },
  {
    name: 'release 0.1 of cgroute',
    module: 'test/harness/old-release.ts',
    parts: ['kernel', 'kube'],
    missing: OLD_MISSING,
    make: async (say) => {
      await oldRelease(say);
      return {};
    },
  },
  {
    name: 'another version of cgroute',
    module: 'test/harness/other-build.ts',
    parts: ['e2e'],
    missing: false,
    make: async (say) => {
      await prepareOther(LAYOUTS, say);
      return {};
    },
  },
];

/** Those that files need, each with the files that need it. */
export function neededBy(
  wanted: readonly Wanted[],
  preparations: readonly Preparation[] = PREPARATIONS,
): { readonly preparation: Preparation; readonly files: readonly string[] }[] {
  return preparations
    .map((preparation) => ({
      preparation,
      files: wanted
        .filter(({ part }) => preparation.parts.includes(part.name))
        .flatMap(({ files }) => files)
        .filter((file) => importsOf(file).has(preparation.module)),
    }))
    .filter(({ files }) => files.length > 0);
}
