/** The rules of the house, kept by the machine. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { builtinModules } from 'node:module';
import { basename, dirname, join, normalize, resolve } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';

const root = resolve(import.meta.dirname, '../../..');

/** The rooms of the agent; a file imports from its own room or from a later one. */
const ROOMS = ['cgroute.ts', 'mapper', 'watcher', 'native'];

/** Packages that only one room may know. */
const PACKAGE_ROOM: Readonly<Record<string, string>> = {
  koffi: 'native',
  '@kubernetes/client-node': 'mapper',
  'prom-client': 'mapper',
};

/** What the agent may use at run time. */
const PACKAGES = new Set([
  'koffi',
  '@parcel/watcher',
  'pino',
  'p-queue',
  'yaml',
  '@kubernetes/client-node',
  'prom-client',
]);

const BANNED_NAMES = /(^|[-.])(utils?|helpers?|common|managers?)([-.]|$)/;

/** Source files below a directory, relative to the project. */
function sources(directory: string, extensions: RegExp): string[] {
  if (!existsSync(join(root, directory))) return [];
  return readdirSync(join(root, directory), { withFileTypes: true }).flatMap((entry) => {
    const path = join(directory, entry.name);
    return entry.isDirectory() ? sources(path, extensions) : extensions.test(path) ? [path] : [];
  });
}

function read(path: string): string {
  return readFileSync(join(root, path), 'utf8');
}

const agentFiles = [
  ...(existsSync(join(root, 'cgroute.ts')) ? ['cgroute.ts'] : []),
  ...ROOMS.slice(1).flatMap((room) => sources(room, /\.ts$/)),
];
const typescript = [...agentFiles, ...sources('deploy', /\.ts$/), ...sources('test', /\.ts$/)];
const c = [...sources('bpf', /\.[ch]$/), ...sources('deploy', /\.[ch]$/), ...sources('test', /\.[ch]$/)];

function roomOf(path: string): string {
  return path.split('/')[0] ?? '';
}

/** The modules that a TypeScript file imports, in any way. */
function imports(text: string): string[] {
  const statements =
    /(?:^|\n)\s*(?:import|export)\b[^;'"]*?\bfrom\s*['"]([^'"]+)['"]|(?:^|\n)\s*import\s*['"]([^'"]+)['"]|\bimport\(\s*['"]([^'"]+)['"]|\brequire\(\s*['"]([^'"]+)['"]/g;
  return [...text.matchAll(statements)].map(
    (match) => match.slice(1).find((module) => module !== undefined) ?? '',
  );
}

/** What is wrong with a file of the agent importing a module; undefined when nothing is. */
function violation(path: string, module: string): string | undefined {
  const room = roomOf(path);
  if (module.startsWith('.')) {
    const target = roomOf(normalize(join(dirname(path), module)));
    if (!ROOMS.includes(target)) return `${path} imports ${module}, which is no room of the agent`;
    if (ROOMS.indexOf(target) < ROOMS.indexOf(room))
      return `${path} imports ${module}, back from ${room} to ${target}`;
    return undefined;
  }
  if (module.startsWith('node:')) return undefined;
  if (builtinModules.includes(module)) return `${path} imports ${module} without node:`;
  const name = module
    .split('/')
    .slice(0, module.startsWith('@') ? 2 : 1)
    .join('/');
  const only = PACKAGE_ROOM[name];
  if (only !== undefined && room !== only) return `${path} imports ${name}, which only ${only}/ may`;
  if (!PACKAGES.has(name)) return `${path} imports ${name}, which is not among the packages of the agent`;
  return undefined;
}

test('imports between the rooms point one way, and each package stays in its room', () => {
  const found = agentFiles.flatMap((path) => imports(read(path)).map((module) => violation(path, module)));
  assert.deepEqual(
    found.filter((text) => text !== undefined),
    [],
  );
});

test('the check of the rooms sees each kind of violation', () => {
  assert.match(violation('watcher/host.ts', '../mapper/verdict.ts') ?? '', /back from watcher to mapper/);
  assert.match(violation('native/error.ts', '../cgroute.ts') ?? '', /back from native to cgroute.ts/);
  assert.match(violation('mapper/pod.ts', '../test/harness/netns.ts') ?? '', /no room/);
  assert.match(violation('watcher/host.ts', 'koffi') ?? '', /only native\/ may/);
  assert.match(violation('cgroute.ts', '@kubernetes/client-node/dist/x.js') ?? '', /only mapper\/ may/);
  assert.match(violation('mapper/pod.ts', 'left-pad') ?? '', /not among the packages/);
  assert.match(violation('mapper/pod.ts', 'fs') ?? '', /without node:/);
  assert.equal(violation('mapper/pod.ts', '../native/error.ts'), undefined);
  const text = `import type { A } from './a.ts';\nimport {\n  b,\n} from "b";\nimport 'c';\nexport * from './d.ts';\nawait import('e');`;
  assert.deepEqual(imports(text), ['./a.ts', 'b', 'c', './d.ts', 'e']);
});

/** Imports of a room's files from places that it must not know, as sentences. */
function importsFrom(
  path: string,
  modules: readonly string[],
  isForbidden: (room: string) => boolean,
): string[] {
  return modules
    .filter((module) => module.startsWith('.') && isForbidden(roomOf(normalize(join(dirname(path), module)))))
    .map((module) => `${path} imports ${module}`);
}

test('the harness knows nothing of the agent', () => {
  const isAgent = (room: string): boolean => ROOMS.includes(room);
  const files = [...sources('deploy/stage', /\.ts$/), ...sources('test/harness', /\.ts$/)];
  assert.ok(files.length > 20);
  assert.deepEqual(
    files.flatMap((path) => importsFrom(path, imports(read(path)), isAgent)),
    [],
  );
  assert.equal(
    importsFrom('deploy/stage/agent.ts', ['../../native/error.ts', '../../cgroute.ts'], isAgent).length,
    2,
  );
});

test('deploy/ imports nothing of test/', () => {
  const isTest = (room: string): boolean => room === 'test';
  const files = sources('deploy', /\.ts$/);
  assert.ok(files.length > 20);
  assert.deepEqual(
    files.flatMap((path) => importsFrom(path, imports(read(path)), isTest)),
    [],
  );
  assert.equal(importsFrom('deploy/demo/demo.ts', ['../../test/harness/node.ts'], isTest).length, 1);
});

test('no file is longer than 550 lines, or named after nothing in particular', () => {
  const found = [...typescript, ...c].flatMap((path) => {
    const text = read(path);
    const lines = text.split('\n').length - 1;
    const generated = /generated/i.test(text.slice(0, text.indexOf('\n')));
    return [
      ...(lines > 550 && !generated ? [`${path} has ${lines} lines`] : []),
      ...(BANNED_NAMES.test(basename(path)) ? [`${path} has a name that says nothing`] : []),
    ];
  });
  assert.deepEqual(found, []);
});

test('TypeScript has no default export, no any, no suppressed error', () => {
  const rules: readonly [RegExp, string][] = [
    [/^export default\b/m, 'a default export'],
    [/(?::|<|\bas|[,|&(]) *any\b(?! [a-z])/m, 'an any'],
    [/@ts-(?:ignore|expect-error|nocheck)\b/, 'a suppressed error'],
  ];
  const code = (path: string): string =>
    read(path).replaceAll(/\/\*[^]*?\*\/|(?<=^|\s)\/\/(?! @ts-).*$|'[^'\n]*'/gm, '');
  const found = typescript
    .filter((path) => !path.endsWith('house.test.ts'))
    .flatMap((path) =>
      rules.filter(([rule]) => rule.test(code(path))).map(([, what]) => `${path} has ${what}`),
    );
  assert.deepEqual(found, []);
});

test('every C file starts with its licence', () => {
  const found = c.filter(
    (path) => !/^(?:\/\/|\/\*) SPDX-License-Identifier: GPL-2\.0-only OR BSD-2-Clause/.test(read(path)),
  );
  assert.deepEqual(found, []);
});

test('the lock file names no registry', () => {
  const lock = JSON.parse(read('package-lock.json')) as { packages: Record<string, { resolved?: string }> };
  const found = Object.values(lock.packages)
    .map(({ resolved }) => resolved)
    .filter((url) => url !== undefined);
  assert.deepEqual(found, []);
});

test('the TypeScript compiler has nothing to say', async () => {
  const tsc = join(root, 'node_modules/.bin/tsc');
  const { stdout } = await promisify(execFile)(tsc, ['--noEmit', '--pretty', 'false'], { cwd: root }).catch(
    (error: { stdout: string; message: string }) => ({ stdout: error.stdout || error.message }),
  );
  assert.equal(stdout, '');
});
