/** What runs in a guest: all test files of test/kernel, but for those that say nothing of a kernel. */
import { readdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { GUEST_PROJECT } from './image.ts';

const directory = resolve(import.meta.dirname, '../kernel');

export interface LeftOut {
  readonly file: string;
  readonly why: string;
}

/** File to the reason, for people. */
const LEFT_OUT: Readonly<Record<string, string>> = {
  'image.test.ts': "it builds a container image, of Debian's packages; no kernel has a part in it",
  'image-sidecar.test.ts':
    'it builds that image, too; what the image calls is tried by bypass.test.ts and pod-netns.test.ts',
  'harness.test.ts': 'it tests the tools of the tests, which the others use here, too',
};

/** So many new cgroups the short leak test makes, at least. */
export const LEAK_CGROUPS = 150;

/** An emulated machine beside another on two processors. */
const SLOWDOWN = 20;

export interface Selection {
  /** From test/: `kernel/connect.test.ts`. */
  readonly files: readonly string[];
  readonly leftOut: readonly LeftOut[];
  /** Whether the leak test is to run. */
  readonly leak: boolean;
}

/** @param words parts of files' names, or `leak`; undefined for all */
export function selectFiles(words?: readonly string[]): Selection {
  const all = readdirSync(directory)
    .filter((name) => name.endsWith('.test.ts'))
    .sort();
  const wanted = all.filter((name) => words?.some((word) => name.includes(word)) ?? true);
  const leftOut = wanted.flatMap((file) => {
    const why = LEFT_OUT[file];
    return why === undefined ? [] : [{ file: `kernel/${file}`, why }];
  });
  return {
    files: wanted.filter((name) => LEFT_OUT[name] === undefined).map((name) => `kernel/${name}`),
    leftOut,
    leak: words?.includes('leak') ?? true,
  };
}

/** What the guest's init runs. */
export function guestScript(files: readonly string[], leakCgroups: number | undefined): string {
  return `export TERM=dumb CGROUTE_TEST_SLOWDOWN=${SLOWDOWN} NODE_OPTIONS=--import=/guest/ready-made.mjs PATH=${GUEST_PROJECT}/node_modules/.bin:$PATH
cd ${GUEST_PROJECT}
exec node test/matrix/inside.ts ${leakCgroups === undefined ? '' : `--leak ${leakCgroups} `}${files.join(' ')}
`;
}
