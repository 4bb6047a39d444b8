/**
 * Gathers what the image takes into dist/image, the context of deploy/Containerfile:
 * the bundle, the BPF objects, the two packages with native addons, and Node.
 *
 * All of it for the processor of this machine: an image for arm64 is made on arm64.
 */
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  realpathSync,
  rmSync,
} from 'node:fs';
import { basename, dirname, join, relative, resolve } from 'node:path';

const root = resolve(import.meta.dirname, '../..');
const context = join(root, 'dist/image');
const target = join(context, 'opt/cgroute');

/** Loaded at run time; everything else is in the bundle, see deploy/build/build.ts. */
const PACKAGES = ['koffi', '@parcel/watcher'];
/** Headers to compile an addon with. */
const FOR_COMPILING = new Set(['node-addon-api']);

interface PackageFile {
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
}

/** The directories of the packages and of what they need, addons for this machine included. */
function packageDirectories(names: readonly string[], found = new Set<string>()): ReadonlySet<string> {
  for (const name of names) {
    const directory = join(root, 'node_modules', name);
    if (found.has(directory) || FOR_COMPILING.has(name)) continue;
    const { dependencies = {}, optionalDependencies = {} } = JSON.parse(
      readFileSync(join(directory, 'package.json'), 'utf8'),
    ) as PackageFile;
    found.add(directory);
    // npm installs the addons of this processor alone.
    const addons = Object.keys(optionalDependencies).filter((each) =>
      existsSync(join(root, 'node_modules', each)),
    );
    packageDirectories([...Object.keys(dependencies), ...addons], found);
  }
  return found;
}

/** What is loaded, and the licences; no sources, no documentation, nothing for musl. */
function isTaken(path: string): boolean {
  const name = basename(path);
  return /\.(js|cjs|mjs|node)$/.test(name) || name === 'package.json' || /^licen[cs]e/i.test(name);
}

const UNUSED = /^(doc|vendor|scripts|musl_\w+)\/|^cnoke\.cjs$/;

function copyPackage(directory: string): void {
  for (const entry of readdirSync(directory, { withFileTypes: true, recursive: true })) {
    const source = join(entry.parentPath, entry.name);
    if (!entry.isFile() || !isTaken(source) || UNUSED.test(relative(directory, source))) continue;
    copy(source, relative(root, source));
  }
}

function copy(source: string, place: string, mode = 0o644): void {
  const to = join(target, place);
  mkdirSync(dirname(to), { recursive: true });
  copyFileSync(source, to);
  chmodSync(to, mode);
}

/** Node without its symbols, a fifth of it. */
function copyNode(): void {
  const node = realpathSync(join(root, 'node_modules/.bin/node'));
  copy(node, 'node_modules/.bin/node', 0o755);
  execFileSync('llvm-strip', ['--strip-all', join(target, 'node_modules/.bin/node')]);
  copy(join(dirname(dirname(node)), 'LICENSE'), 'node_modules/.bin/LICENSE');
}

function main(): void {
  const objects = join(root, 'dist/bpf');
  const names = existsSync(objects)
    ? readdirSync(objects).filter((name) => /^[^.].*\.bpf\.o$/.test(name))
    : [];
  if (names.length === 0 || !existsSync(join(root, 'dist/cgroute.mjs'))) {
    console.error('dist/ has no bundle or no BPF objects: run `npm run setup` first');
    process.exitCode = 1;
    return;
  }
  rmSync(context, { recursive: true, force: true });
  copy(join(root, 'dist/cgroute'), 'dist/cgroute', 0o755);
  for (const file of [
    'LICENSE',
    'dist/cgroute.mjs',
    'dist/probe.mjs',
    ...names.map((name) => `dist/bpf/${name}`),
  ])
    copy(join(root, file), file);
  for (const directory of packageDirectories(PACKAGES)) copyPackage(directory);
  copyNode();
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string };
  console.log(
    `gathered dist/image for ${process.arch}; next: buildah build -f deploy/Containerfile -t cgroute:${version} dist/image`,
  );
}

main();
