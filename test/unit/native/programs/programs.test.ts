/** The table of programs says what the compiled objects hold, and nothing else says it. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { alwaysThere, helperIds, type Helper } from '../../../../native/programs/kernel-functions.ts';
import { hooks } from '../../../../native/programs/hooks.ts';
import {
  isLinked,
  isOurName,
  keepsConnections,
  lossOf,
  objects,
  programOf,
  programs,
  programsOf,
  redirects,
  type Place,
} from '../../../../native/programs/programs.ts';
import { compiledObjects, root } from './compiled.ts';

const compiled = compiledObjects();
const sorted = (values: Iterable<string>): string[] => [...values].sort();
const helperName = (id: number): string =>
  (Object.keys(helperIds) as Helper[]).find((name) => helperIds[name] === id) ?? `helper ${id}`;

test('every object, and every program of it with its section, is in the table, and no other', () => {
  assert.ok(compiled.length >= 5);
  assert.deepEqual(sorted(compiled.map(({ name }) => name)), sorted(Object.keys(objects)));
  assert.deepEqual(
    sorted(
      programs.flatMap(({ object, name, hook }) =>
        object === undefined ? [] : [`${object} ${name} ${hooks[hook].section}`],
      ),
    ),
    sorted(
      compiled.flatMap((object) =>
        [...object.programs].map(([name, section]) => `${object.name} ${name} ${section}`),
      ),
    ),
  );
});

test('the helpers that are tried for a program are those that it calls', () => {
  let calls = 0;
  for (const { name, object, helpers } of programs) {
    // That one is written in instructions, in native/bpf/cgroup-level.ts.
    if (object === undefined) continue;
    const called = compiled.find((each) => each.name === object)?.helpers.get(name);
    assert.ok(called !== undefined, name);
    calls += called.size;
    assert.deepEqual(
      sorted(Object.keys(helpers)),
      sorted([...called].filter((id) => !alwaysThere.has(id)).map(helperName)),
      name,
    );
  }
  assert.ok(calls > 20);
  assert.deepEqual(
    compiled.flatMap(({ helpers }) => sorted(helpers.keys())).filter((name) => !hasRow(name)),
    [],
    'code that belongs to no program',
  );
});

const hasRow = (name: string): boolean => programs.some((program) => program.name === name);

test('the tunables are those of the objects', () => {
  for (const [name, { tunables }] of Object.entries(objects)) {
    const elf = compiled.find((object) => object.name === name)?.elf;
    for (const tunable of tunables) assert.equal(elf?.symbol(tunable)?.section, '.rodata', tunable);
  }
});

test('a name is given once, and the kernel tells the whole of it', () => {
  assert.equal(new Set(programs.map(({ name }) => name)).size, programs.length);
  for (const { name } of programs) assert.ok(name.length <= 15, name);
});

test('each kind of place has its programs, and what is asked for alone is alone', () => {
  const places = new Set(programs.map(({ place }) => place));
  for (const place of ['root', 'sockets', 'podTree', 'handoff', 'proxy', 'tracepoint'] satisfies Place[])
    assert.ok(places.has(place) && programsOf(place).every(isLinked), place);
  for (const place of ['execFilter', 'bypassFilter', 'agent'] satisfies Place[]) {
    assert.equal(programsOf(place).length, 1, place);
    assert.ok(!isLinked(programOf(place)), place);
  }
});

test('what redirects is known by its pin, and what was put by does not', () => {
  const name = programOf('podTree');
  assert.ok(redirects(`/sys/fs/bpf/cgroute/v1/links/${name}@4711`) && redirects(`${name}@4711`));
  for (const pin of [`${name}@4711_v1`, name, `${name}@`, `x${name}@4711`, `${programOf('proxy')}@4711`])
    assert.ok(!redirects(pin), pin);
  assert.deepEqual(
    programs.filter(({ name: each }) => redirects(`${each}@1`)).map(({ name: each }) => each),
    ['root_connect4', 'root_connect6', 'pod_connect4', 'pod_connect6'],
  );
  assert.deepEqual(
    programs.filter(({ name: each }) => keepsConnections(`${each}@1`)).map(({ name: each }) => each),
    ['sock_release'],
  );
});

test('a program of others is not taken for ours because of a name that anybody might choose', () => {
  assert.ok(isOurName('pod_connect4') && isOurName('original_dst') && isOurName('getpeername6'));
  for (const name of ['sock_ops', 'sock_release', 'cgroup_mkdir', 'exec_filter', 'lb4', ''])
    assert.ok(!isOurName(name), name);
});

test('an object is one that cgroute can do without where all its programs are', () => {
  assert.deepEqual(
    (Object.keys(objects) as (keyof typeof objects)[]).filter((name) => lossOf(name) !== undefined),
    ['execs', 'cgroups'],
  );
});

/** TypeScript without its comments. */
function codeOf(path: string): string {
  return readFileSync(join(root, path), 'utf8').replace(/\/\*[^]*?\*\/|^\s*\/\/.*$|\s\/\/ .*$/gm, '');
}

test("a program's name stands in the table alone; a hook's or a tracepoint's of that name where hooks are", () => {
  const files = ['native', 'watcher', 'mapper'].flatMap((room) =>
    readdirSync(join(root, room), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.ts'))
      .map((name) => `${room}/${name}`)
      // Structs are named there, and one of them as a program is.
      .filter((path) => path !== 'native/layout/layouts.ts'),
  );
  assert.ok(files.length > 80);
  const home = 'native/programs/programs.ts';
  assert.match(codeOf(home), /'root_connect4'/);
  for (const file of files) {
    const code = codeOf(file);
    const found = programs
      .filter(({ name }) => new RegExp(`\\b${name}\\b`).test(code))
      .filter(({ name }) => file !== home && !(file === 'native/programs/hooks.ts' && name in hooks));
    assert.deepEqual(
      found.map(({ name }) => name),
      [],
      file,
    );
  }
});
