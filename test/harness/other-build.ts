/** Another build of this project, in a directory of its own: the same sources with some changed, compiled. */
import { cpSync, mkdirSync, readFileSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { must } from '../../deploy/stage/process.ts';

const root = resolve(import.meta.dirname, '../..');
const PARTS = ['bpf', 'native', 'watcher', 'mapper', 'deploy', 'cgroute.ts', 'package.json'];

/** Replacements by file; each must be found. */
export type Changes = Readonly<Record<string, readonly (readonly [from: string | RegExp, to: string])[]>>;

/** Builds it below `directory`. Returns the path of its program. */
export async function buildOther(directory: string, changes: Changes): Promise<string> {
  for (const tools of ['deploy/stage', 'test/harness'])
    mkdirSync(join(directory, tools), { recursive: true });
  const isStage = (path: string): boolean => path.startsWith(join(root, 'deploy/stage'));
  for (const part of PARTS)
    cpSync(join(root, part), join(directory, part), { recursive: true, filter: (path) => !isStage(path) });
  symlinkSync(join(root, 'node_modules'), join(directory, 'node_modules'));
  for (const [file, edits] of Object.entries(changes)) {
    let text = readFileSync(join(directory, file), 'utf8');
    for (const [from, to] of edits) {
      const changed = text.replace(from, to);
      if (changed === text) throw new Error(`${file} has no ${String(from)} to be changed`);
      text = changed;
    }
    writeFileSync(join(directory, file), text);
  }
  const node = (...args: readonly string[]): Promise<string> =>
    must({ cmd: process.execPath, args, cwd: directory });
  await node('deploy/build/build.ts');
  const objects = readdirSync(join(directory, 'dist/bpf'))
    .filter((name) => name.endsWith('.bpf.o'))
    .map((name) => `dist/bpf/${name}`);
  await node('native/layout/layouts-gen.ts', '--write', ...objects);
  await node('deploy/build/build.ts');
  return join(directory, 'dist/cgroute');
}
