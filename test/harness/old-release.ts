/** Release 0.1 as it was: its commit out of this repository's history, built by its own script; kept until the checkout goes. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { must } from '../../deploy/stage/process.ts';

const root = resolve(import.meta.dirname, '../..');
const COMMIT = '56062d12a24aec9c1efcf27b0cc4d63aa1ecc430';
const directory = join(root, 'dist/test/release', COMMIT.slice(0, 7));

const isThere = (): boolean =>
  existsSync(directory) ||
  spawnSync('git', ['cat-file', '-e', `${COMMIT}^{commit}`], { cwd: root }).status === 0;

/** Why a test with 0.1 is skipped; false when it can run. */
export const OLD_MISSING: string | false = isThere()
  ? false
  : `no 0.1 to upgrade from: this clone has no history (${COMMIT})`;

export interface OldRelease {
  readonly program: string;
  readonly chart: string;
  /** Its compiled BPF objects. */
  readonly objects: readonly string[];
}

/** Builds it where it is not there yet. */
export async function oldRelease(say: (line: string) => void = () => {}): Promise<OldRelease> {
  if (!existsSync(directory)) {
    say('builds the commit of 0.1 by its own script: half a minute');
    await build(`${directory}.${process.pid}`);
  }
  const objects = readdirSync(join(directory, 'dist/bpf')).filter((name) => name.endsWith('.bpf.o'));
  return {
    program: join(directory, 'dist/cgroute'),
    chart: join(directory, 'deploy/chart'),
    objects: objects.map((name) => join(directory, 'dist/bpf', name)),
  };
}

async function build(unfinished: string): Promise<void> {
  mkdirSync(unfinished, { recursive: true });
  try {
    await must({
      cmd: 'sh',
      args: ['-c', 'git archive "$1" | tar -x -C "$2"', 'sh', COMMIT, unfinished],
      cwd: root,
    });
    // Its dependencies at run time are those of today.
    symlinkSync('../../../../node_modules', join(unfinished, 'node_modules'));
    const { scripts } = JSON.parse(readFileSync(join(unfinished, 'package.json'), 'utf8')) as {
      scripts: { build: string };
    };
    await must({ cmd: 'sh', args: ['-c', scripts.build], cwd: unfinished });
    renameSync(unfinished, directory);
  } finally {
    rmSync(unfinished, { recursive: true, force: true });
  }
}
