/** The documents say what is there: links, scripts, files, flags, counters, programs and maps. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { parse } from 'yaml';
import { anchorsOf } from '../../harness/markdown.ts';

const root = resolve(import.meta.dirname, '../../..');
const read = (path: string): string => readFileSync(join(root, path), 'utf8');
const documents = [
  'README.md',
  'CHANGELOG.md',
  'deploy/README.md',
  ...readdirSync(join(root, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name}`),
];

/** Relative links and images of a document, without titles. */
function linksOf(text: string): string[] {
  return [...text.matchAll(/\]\(([^)\s]+)[^)]*\)/g)]
    .map(([, link]) => link ?? '')
    .filter((link) => !/^[a-z]+:/.test(link));
}

/** What is wrong with a link of a document; undefined when nothing is. */
function broken(document: string, link: string): string | undefined {
  const [path = '', anchor] = link.split('#');
  const target = path === '' ? document : join(dirname(document), path);
  if (!existsSync(join(root, target))) return `${document} links to ${link}, which is not there`;
  if (anchor !== undefined && !anchorsOf(read(target)).includes(anchor))
    return `${document} links to ${link}, which has no such heading`;
  return undefined;
}

/** All that follow the same pattern, each once. */
function named(text: string, pattern: RegExp): string[] {
  return [...new Set([...text.matchAll(pattern)].map((match) => match[1] ?? ''))];
}

test('what is generated of the documents is what the generator writes today', async () => {
  const run = promisify(execFile)(process.execPath, ['deploy/build/docs.ts', '--check'], { cwd: root });
  const { stderr } = await run.catch((error: { stderr: string }) => error);
  assert.equal(stderr, '');
});

test('every relative link leads somewhere', () => {
  const links = documents.flatMap((document) =>
    linksOf(read(document)).map((link) => [document, link] as const),
  );
  assert.ok(links.length > 5);
  assert.deepEqual(
    links.map(([document, link]) => broken(document, link)).filter((text) => text !== undefined),
    [],
  );
});

test('the check of links sees what is missing', () => {
  assert.match(broken('docs/architecture.md', 'nowhere.md') ?? '', /not there/);
  assert.match(broken('README.md', 'docs/operations.md#nowhere') ?? '', /no such heading/);
  assert.equal(broken('README.md', 'docs/operations.md#exit-codes'), undefined);
});

test('every npm script that is named exists', () => {
  const { scripts } = JSON.parse(read('package.json')) as { scripts: Readonly<Record<string, string>> };
  const found = documents.flatMap((document) =>
    named(read(document), /\bnpm (?:run ([\w:-]+))/g)
      .concat(named(read(document), /\bnpm (test|start)\b/g))
      .filter((script) => !Object.hasOwn(scripts, script))
      .map((script) => `${document} names npm run ${script}`),
  );
  assert.deepEqual(found, []);
});

test('every file of the project that is named exists', () => {
  const found = documents.flatMap((document) =>
    named(read(document), /`((?:bpf|native|watcher|mapper|deploy|test|docs|\.ci)\/[\w./-]*|[\w-]+\.ts)`/g)
      .filter((path) => !existsSync(join(root, path)))
      .map((path) => `${document} names ${path}`),
  );
  assert.deepEqual(found, []);
});

test('docs/rooms.md has a line for each file of the rooms', () => {
  const text = read('docs/rooms.md');
  const files = ['bpf', 'native', 'watcher', 'mapper'].flatMap((room) =>
    readdirSync(join(root, room), { recursive: true, encoding: 'utf8' })
      .map((name) => `${room}/${name}`)
      .filter((path) => /\.(?:ts|c|h)$/.test(path)),
  );
  assert.ok(files.length > 100);
  assert.deepEqual(
    files.filter((path) => !text.includes(`| \`${path}\` |`)),
    [],
  );
});

test('docs/architecture.md names every program and every map', () => {
  const text = read('docs/architecture.md');
  const sources = readdirSync(join(root, 'bpf'), { recursive: true, encoding: 'utf8' })
    .filter((name) => /\.[ch]$/.test(name))
    .map((name) => read(`bpf/${name}`))
    .join('\n');
  const programs = named(sources, /^SEC\("[^"]+"\)\nint (?:BPF_PROG\()?(\w+)/gm);
  const maps = named(sources, /^\} (\w+) SEC\("\.maps"\)/gm);
  assert.ok(programs.length >= 10 && maps.length > 10);
  assert.deepEqual(
    [...programs, ...maps].filter((name) => !text.includes(`\`${name}\``)),
    [],
  );
});

test('docs/operations.md explains every counter of status, and no other', () => {
  const branches = named(read('bpf/cgroute.h'), /^\tBRANCH_(\w+),/gm)
    .filter((name) => name !== 'COUNT')
    .map((name) => name.toLowerCase().replaceAll(/_(\w)/g, (_, letter: string) => letter.toUpperCase()));
  const table = /\| counter \|[^]*?\n\n/.exec(read('docs/operations.md'))?.[0] ?? '';
  assert.deepEqual(named(table, /^\| `(\w+)` \|/gm).sort(), branches.sort());
});

test('docs/operations.md explains every reason of a verdict that leaves a pod out or bypassed', () => {
  const reasons = named(
    /export const REASONS =[^;]*;/.exec(read('mapper/decisions/decision.ts'))?.[0] ?? '',
    /'([\w-]+)'/g,
  );
  const text = read('docs/operations.md');
  const inTheMesh = ['pod-label', 'namespace-label', 'sidecar-short-circuited'];
  assert.deepEqual(
    reasons.filter((reason) => !inTheMesh.includes(reason) && !text.includes(`\`${reason}\``)),
    [],
  );
  assert.ok(reasons.length > inTheMesh.length);
});

test('every long flag that a document gives to cgroute is one of its own', () => {
  const own = named(read('docs/configuration.md'), /(--[a-z-]+)/g);
  const found = documents.flatMap((document) =>
    // Beside a command of cgroute there may be one of kubectl.
    read(document)
      .split('\n')
      .filter((line) => /\bcgroute (?:run|status|doctor|cleanup)\b|npm start --silent --/.test(line))
      .flatMap((line) => line.split('`'))
      .filter((piece) => /^--|\bcgroute [a-z]+|npm start/.test(piece))
      .flatMap((piece) => named(` ${piece.replaceAll('--silent', '')}`, /(?<=\s)(--[a-z-]+)/g))
      .filter((flag) => !own.includes(flag))
      .map((flag) => `${document} names ${flag}`),
  );
  assert.deepEqual(found, []);
});

/** `a.b` of `--set a.b=value` on the command lines of a document. */
function setKeys(text: string): string[] {
  return named(text, /--set '?([\w.]+)=/g);
}

test('every value that deploy/README.md sets is one of the chart, and every setting below config one of the agent', () => {
  const values = parse(read('deploy/chart/values.yaml')) as Readonly<Record<string, unknown>>;
  const settings = named(read('docs/configuration.md'), /^\| `([\w.]+)` \|/gm);
  const isThere = (key: string): boolean =>
    key.startsWith('config.')
      ? settings.includes(key.slice('config.'.length))
      : key
          .split('.')
          .reduce<unknown>(
            (at, part) => (at as Readonly<Record<string, unknown>> | undefined)?.[part],
            values,
          ) !== undefined;
  const keys = ['deploy/README.md', 'deploy/examples/haproxy.yaml'].flatMap((document) =>
    setKeys(read(document)),
  );
  assert.ok(keys.length > 5);
  assert.deepEqual(
    keys.filter((key) => !isThere(key)),
    [],
  );
  assert.deepEqual(setKeys("--set 'config.nothing={a}' --set http.nothing=1").filter(isThere), []);
});
