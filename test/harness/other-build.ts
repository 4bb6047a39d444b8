/** Another build of this project, in a directory of its own: the same sources with some changed, compiled; kept until they change. */
import { createHash } from 'node:crypto';
import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join, relative, resolve } from 'node:path';
import { must } from '../../deploy/stage/process.ts';

const root = resolve(import.meta.dirname, '../..');
const PARTS = ['bpf', 'native', 'watcher', 'mapper', 'deploy', 'cgroute.ts', 'package.json'];

/** Replacements by file; each must be found. */
export type Changes = Readonly<Record<string, readonly (readonly [from: string | RegExp, to: string])[]>>;

/** Where builds are kept, each under a hash of what it is made of. */
const KEPT = join(root, 'dist/test/other');

/** Files that go into it, without the tools of the tests, which it has not. */
function sources(): string[] {
  return PARTS.flatMap((part) =>
    statSync(join(root, part)).isDirectory()
      ? readdirSync(join(root, part), { recursive: true, withFileTypes: true })
          .filter((entry) => entry.isFile())
          .map((entry) => relative(root, join(entry.parentPath, entry.name)))
      : [part],
  )
    .filter((path) => !path.startsWith('deploy/stage/'))
    .sort();
}

function directoryOf(changes: Changes, files: readonly string[]): string {
  const hash = createHash('sha256');
  for (const edits of Object.values(changes).flat()) hash.update(edits.map(String).join('\0'));
  for (const file of files) hash.update(file).update(readFileSync(join(root, file)));
  return join(KEPT, hash.digest('hex').slice(0, 16));
}

/** Builds it where it is not there yet, see {@link otherBuild}; forgets those of other sources. */
export async function prepareOther(changes: Changes, say: (line: string) => void): Promise<void> {
  const directory = directoryOf(changes, sources());
  if (existsSync(directory)) return;
  say('copies the sources, changes some of them, and builds all: half a minute');
  rmSync(KEPT, { recursive: true, force: true });
  await otherBuild(changes);
}

/** Builds it, or finds it built before. Returns the path of its program. */
export async function otherBuild(changes: Changes): Promise<string> {
  const files = sources();
  const directory = directoryOf(changes, files);
  if (!existsSync(directory)) {
    const unfinished = `${directory}.${process.pid}`;
    await build(unfinished, changes, files);
    renameSync(unfinished, directory);
  }
  return join(directory, 'dist/cgroute');
}

async function build(directory: string, changes: Changes, files: readonly string[]): Promise<void> {
  for (const tools of ['deploy/stage/ground', 'test/harness'])
    mkdirSync(join(directory, tools), { recursive: true });
  for (const file of files) cpSync(join(root, file), join(directory, file));
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
}
