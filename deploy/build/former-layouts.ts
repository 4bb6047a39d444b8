/**
 * Writes native/layout/former-layouts.ts: the layouts of a released version's maps,
 * from its compiled objects. To be run once, when the layout of a map changes and
 * PIN_VERSION with it, on the objects of the last release:
 *
 *     node deploy/build/former-layouts.ts v1 OBJECT...
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { closeObject, libbpf, openObject } from '../../native/boundary/libbpf.ts';
import { parseBtf } from '../../native/layout/btf.ts';
import { shapeOf, type Shape } from '../../native/layout/btf-shape.ts';
import { readElf } from '../../native/layout/elf.ts';
import { formerLayouts, type FormerMap, type FormerShape } from '../../native/layout/former-layouts.ts';

const FILE = resolve(import.meta.dirname, '../../native/layout/former-layouts.ts');

const compact = ({ size, leaves }: Shape): FormerShape => [
  size,
  ...leaves.map(
    ({ path, offset, size: bytes, count, isText }): string =>
      `${path} ${offset} ${bytes} ${count}${isText ? ' text' : ''}`,
  ),
];

/** The maps of compiled objects, by name; those whose entries have no types are left out. */
export function mapsOfObjects(objects: readonly string[]): Record<string, FormerMap> {
  const lib = libbpf();
  const maps: Record<string, FormerMap> = {};
  for (const file of objects) {
    const types = parseBtf(readElf(readFileSync(file), file).section('.BTF'), file);
    const open = openObject(file);
    try {
      for (let map = lib.nextMap(open.object, null); map !== null; map = lib.nextMap(open.object, map)) {
        if (lib.mapIsInternal(map)) continue;
        const [key, value] = [lib.mapKeyTypeId(map), lib.mapValueTypeId(map)].map((id) =>
          id === 0 ? undefined : shapeOf(types, id),
        );
        if (key !== undefined && value !== undefined)
          maps[lib.mapName(map)] = { key: compact(key), value: compact(value) };
      }
    } finally {
      closeObject(open);
    }
  }
  return Object.fromEntries(Object.entries(maps).sort(([a], [b]) => (a < b ? -1 : 1)));
}

function main(version: string, objects: readonly string[]): void {
  const all = { ...formerLayouts, [version]: mapsOfObjects(objects) };
  const text = readFileSync(FILE, 'utf8');
  const table = `export const formerLayouts: FormerLayouts = ${JSON.stringify(all, null, 2)};`;
  writeFileSync(FILE, text.replace(/export const formerLayouts: FormerLayouts = [^]*?;\n/, `${table}\n`));
}

if (import.meta.main) {
  const [version = '', ...objects] = process.argv.slice(2);
  if (!/^v\d+$/.test(version) || objects.length === 0) {
    console.error('usage: node deploy/build/former-layouts.ts VERSION OBJECT..., and `npm run format`');
    process.exitCode = 2;
  } else main(version, objects);
}
