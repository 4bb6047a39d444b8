/** The table of maps says what the compiled objects hold. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { allMaps, handedOver, mapNamed, maps, mapTypes } from '../../../../native/programs/maps.ts';
import { lossOf, objects, type ObjectName } from '../../../../native/programs/programs.ts';
import { compiledObjects, root } from './compiled.ts';

const compiled = compiledObjects();

test('every map of every object is in the table, with its type and its sizes, and no other', () => {
  const declared = new Map(compiled.flatMap(({ maps: own }) => own.map((map) => [map.name, map] as const)));
  assert.deepEqual(allMaps.map(({ name }) => name).sort(), [...declared.keys()].sort());
  for (const { name, type, key, value, record } of allMaps) {
    const map = declared.get(name);
    assert.equal(map?.type, mapTypes[type].id, name);
    if (type === 'ringbuf') assert.deepEqual([map?.keySize, record !== undefined], [undefined, true], name);
    if (key !== undefined) assert.equal(key.size, map?.keySize, name);
    if (value !== undefined) assert.equal(value.size, map?.valueSize, name);
    assert.equal(key === undefined, value === undefined, name);
  }
});

test('every object that uses a map has the same', () => {
  for (const { name } of allMaps) {
    const found = compiled.flatMap(({ maps: own }) => own.filter((map) => map.name === name));
    assert.deepEqual(found.slice(1), found.slice(0, -1), name);
  }
});

test('a map is named as of one object where it is used by that alone, and cgroute can do without it', () => {
  for (const { name, only } of allMaps) {
    const users = compiled.filter(({ maps: own }) => own.some((map) => map.name === name));
    const [user] = users.length === 1 ? users.map((object) => object.name as ObjectName) : [];
    assert.equal(only, user !== undefined && lossOf(user) !== undefined ? user : undefined, name);
  }
});

test('a map that counts another, and a map that all pods share, name what there is', () => {
  const tunables: readonly string[] = Object.values(objects).flatMap((object) => object.tunables);
  for (const { counts, share } of allMaps) {
    if (counts !== undefined) assert.ok(mapNamed(counts) !== undefined, counts);
    if (share !== undefined) assert.ok(tunables.includes(share), share);
  }
});

test('the ways from version to version', () => {
  assert.deepEqual(handedOver('connections'), [maps.connections.name, maps.overflowConnections.name]);
  assert.deepEqual(handedOver('answers'), ['original_dst_map', 'accepted_map']);
  assert.deepEqual(handedOver('counted'), ['pod_counters_map']);
  assert.deepEqual(handedOver('fresh'), ['handoff_map', 'seen_branch_map', 'cgroup_event_map']);
  assert.deepEqual(handedOver('shared'), [
    'overflow_count_map',
    'original_count_map',
    'pod_share_map',
    'handled_map',
    'bypass_filter_map',
    'bypass_filter6_map',
  ]);
});

test("a map's name stands in the table alone of all that is native", () => {
  const files = readdirSync(join(root, 'native'), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .map((name) => `native/${name}`);
  assert.ok(files.length > 30);
  for (const file of files) {
    if (file === 'native/programs/maps.ts') continue;
    const code = readFileSync(join(root, file), 'utf8').replace(/\/\*[^]*?\*\/|^\s*\/\/.*$|\s\/\/ .*$/gm, '');
    const found = allMaps.filter(({ name }) => new RegExp(`['"\`/]${name}\\b`).test(code));
    assert.deepEqual(
      found.map(({ name }) => name),
      [],
      file,
    );
  }
});
