/** Imports between the rooms point down; each rule is seen to fail once. */
import assert from 'node:assert/strict';
import { dirname } from 'node:path';
import { test } from 'node:test';
import { BPF_ROOMS, ROOMS } from '../../../deploy/build/rooms.ts';
import { sentenceOf } from '../../../deploy/build/rooms-document.ts';
import { circles, roomOf, violation } from './rooms.ts';
import { imports, read, sources, target } from './sources.ts';

const files = ['cgroute.ts', ...['mapper', 'watcher', 'native'].flatMap((room) => sources(room, /\.ts$/))];

const isThere = (text: string | undefined): text is string => text !== undefined;

/** The files of the project that a file imports. */
const targets = (path: string): string[] =>
  imports(read(path))
    .map((module) => target(path, module))
    .filter(isThere);

test('imports between the rooms point down, and each package stays in its room', () => {
  assert.ok(files.length > 100);
  assert.deepEqual(
    files.flatMap((path) => imports(read(path)).map((module) => violation(path, module))).filter(isThere),
    [],
  );
});

test('every file of the agent stands in a room, and no room is empty', () => {
  assert.deepEqual(
    files.filter((path) => roomOf(path) === undefined),
    [],
  );
  assert.deepEqual(
    ROOMS.filter(({ path }) => !files.some((file) => roomOf(file) === path)),
    [],
  );
  const folders = new Set(sources('bpf', /\.[ch]$/).map((path) => dirname(path)));
  assert.deepEqual(
    [...folders],
    BPF_ROOMS.map(({ path }) => path),
  );
});

test('no file imports itself by way of others', () => {
  assert.deepEqual(circles(files, targets), []);
});

test('what deploys, and the stage of demo and tests, know nothing of what is above them', () => {
  const found = [
    ...sources('deploy', /\.ts$/).map((path) => [path, /^test\//] as const),
    ...sources('deploy/stage', /\.ts$/).map(
      (path) => [path, /^(?:cgroute\.ts|mapper|watcher|native)/] as const,
    ),
    ...sources('test/harness', /\.ts$/).map(
      (path) => [path, /^(?:cgroute\.ts|mapper|watcher|native)/] as const,
    ),
  ].flatMap(([path, forbidden]) =>
    targets(path)
      .filter((to) => forbidden.test(to))
      .map((to) => `${path} imports ${to}`),
  );
  assert.deepEqual(found, []);
});

test('the check of the rooms sees each kind of violation', () => {
  const rows: readonly (readonly [path: string, module: string, found: RegExp | undefined])[] = [
    ['watcher/host.ts', '../mapper/decisions/verdict.ts', /up from watcher to mapper\/decisions/],
    ['native/bpf/bpf-map.ts', '../../cgroute.ts', /up from native\/bpf to cgroute\.ts/],
    ['mapper/maps/pod-entry.ts', '../agent/reconciler.ts', /up from mapper\/maps to mapper\/agent/],
    ['native/layout/foreign-codec.ts', '../bpf/bpf-map.ts', /up from native\/layout to native\/bpf/],
    ['mapper/agent/reconciler.ts', '../../test/harness/runc.ts', /no room/],
    ['mapper/agent/reconciler.ts', '../loose.ts', /no room/],
    ['mapper/loose.ts', './config/config.ts', /loose\.ts stands in no room/],
    ['mapper/decisions/verdict.ts', '../../native/layout/layouts.ts', /nothing of native\/ or watcher\//],
    ['mapper/objects/pod.ts', '../../watcher/proc.ts', /nothing of native\/ or watcher\//],
    ['mapper/config/config.ts', 'node:fs', /does no I\/O/],
    ['mapper/pacing/backoff.ts', 'node:timers/promises', /does no I\/O/],
    ['native/bpf/ring-buffer.ts', 'koffi', /only native\/boundary\/ may/],
    ['watcher/host.ts', 'koffi', /only native\/boundary\/ may/],
    ['cgroute.ts', '@kubernetes/client-node/dist/x.js', /only mapper\/ may/],
    ['mapper/kube/kube-client.ts', '@parcel/watcher', /only watcher\/ may/],
    ['mapper/objects/pod.ts', 'left-pad', /not among the packages/],
    ['mapper/kube/kube-client.ts', 'fs', /without node:/],
    ['mapper/decisions/verdict.ts', '../../native/error.ts', undefined],
    ['mapper/agent/reconciler.ts', '../decisions/verdict.ts', undefined],
    ['mapper/decisions/cgroup-path.ts', 'node:net', undefined],
    ['native/boundary/libc.ts', 'koffi', undefined],
  ];
  for (const [path, module, found] of rows) {
    const what = violation(path, module);
    if (found === undefined) assert.equal(what, undefined);
    else assert.match(what ?? '', found, `${path} imports ${module}`);
  }
});

test('the check of circles sees one, also through files', () => {
  const graph: Readonly<Record<string, readonly string[]>> = {
    a: ['b'],
    b: ['c', 'd'],
    c: ['a'],
    d: [],
    e: ['d'],
  };
  assert.deepEqual(
    circles(Object.keys(graph), (path) => graph[path] ?? []),
    ['a -> b -> c -> a'],
  );
  assert.deepEqual(
    circles(['a', 'b'], (path) => (path === 'a' ? ['b'] : [])),
    [],
  );
});

test('imports are found in every form', () => {
  const text = `import type { A } from './a.ts';\nimport {\n  b,\n} from "b";\nimport 'c';\nexport * from './d.ts';\nawait import('e');\nrequire('f');`;
  assert.deepEqual(imports(text).toSorted(), ['./a.ts', './d.ts', 'b', 'c', 'e', 'f']);
});

test('a file is told by the first sentence of its own comment', () => {
  assert.equal(
    sentenceOf('a.ts', '/**\n * Reads a thing:\n * all of it. And more.\n */\n'),
    'Reads a thing: all of it',
  );
  assert.equal(sentenceOf('a.c', '// SPDX-License-Identifier: X\n/* One. Two. */\n'), 'One');
  assert.equal(sentenceOf('a.ts', '// Generated from b; do not edit.\n'), 'Generated from b; do not edit');
  assert.throws(() => sentenceOf('a.ts', "import 'b';\n"), /a\.ts does not begin with a comment/);
});
