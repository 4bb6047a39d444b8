/** What the compiled objects hold, for comparison with the tables: by the readers of native/layout, and by llvm-objdump. */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { shapeOf } from '../../../../native/layout/btf-shape.ts';
import { parseBtf, resolve as resolveType, type RawType, type Types } from '../../../../native/layout/btf.ts';
import { cString, readElf, type Elf } from '../../../../native/layout/elf.ts';

export const root = resolve(import.meta.dirname, '../../../..');

/** Documentation/bpf/btf.rst of the kernel. */
const KIND_FUNC = 12;
const KIND_DATASEC = 15;
const GLOBAL = 1;

export interface CompiledMap {
  readonly name: string;
  readonly type: number;
  readonly keySize: number | undefined;
  readonly valueSize: number | undefined;
}

export interface CompiledObject {
  readonly name: string;
  readonly elf: Elf;
  /** By name, with the section. */
  readonly programs: ReadonlyMap<string, string>;
  readonly maps: readonly CompiledMap[];
  /** Numbers of the helpers that each program calls. */
  readonly helpers: ReadonlyMap<string, ReadonlySet<number>>;
}

/** Of a map's definition, `int (*type)[1]` is a number, and `__u32 *key` is a type. */
function readMap(types: Types, variable: RawType): CompiledMap {
  const definition = resolveType(types, variable.sizeOrType);
  const members = new Map<string, number>();
  for (let i = 0; i < (definition?.vlen ?? 0); i++) {
    const at = (definition?.body ?? 0) + 12 * i;
    const pointer = resolveType(types, types.data.readUInt32LE(at + 4));
    members.set(cString(types.strings, types.data.readUInt32LE(at)), pointer?.sizeOrType ?? 0);
  }
  const number = (member: string): number => {
    const array = resolveType(types, members.get(member) ?? 0);
    return array === undefined ? 0 : types.data.readUInt32LE(array.body + 8);
  };
  const size = (member: string): number | undefined => {
    const id = members.get(member);
    return id === undefined ? undefined : shapeOf(types, id)?.size;
  };
  return { name: variable.name, type: number('type'), keySize: size('key'), valueSize: size('value') };
}

function readMaps(types: Types): CompiledMap[] {
  const section = types.list.find(({ kind, name }) => kind === KIND_DATASEC && name === '.maps');
  return Array.from({ length: section?.vlen ?? 0 }, (_, i) => {
    const variable = types.list[types.data.readUInt32LE((section?.body ?? 0) + 12 * i)];
    if (variable === undefined) throw new Error('a map of no type');
    return readMap(types, variable);
  });
}

function readHelpers(file: string): Map<string, Set<number>> {
  const called = new Map<string, Set<number>>();
  let helpers = new Set<number>();
  for (const line of execFileSync('llvm-objdump', ['-d', file], { encoding: 'utf8' }).split('\n')) {
    const label = /^[0-9a-f]+ <(\w+)>:$/.exec(line)?.[1];
    // Those within a program are called LBB and a number.
    if (label !== undefined && !label.startsWith('LBB')) called.set(label, (helpers = new Set()));
    const helper = /^.*\bcall (0x[0-9a-f]+|\d+)$/.exec(line)?.[1];
    if (helper !== undefined) helpers.add(Number(helper));
  }
  return called;
}

/** All in dist/bpf. */
export function compiledObjects(): readonly CompiledObject[] {
  const directory = join(root, 'dist/bpf');
  const files = readdirSync(directory).filter((name) => /^[^.].*\.bpf\.o$/.test(name));
  return files.map((name) => {
    const file = join(directory, name);
    const elf = readElf(readFileSync(file), file);
    const types = parseBtf(elf.section('.BTF'), file);
    const functions = types.list.filter(({ kind, vlen }) => kind === KIND_FUNC && vlen === GLOBAL);
    return {
      name: name.replace(/\.bpf\.o$/, ''),
      elf,
      programs: new Map(functions.map((each) => [each.name, elf.symbol(each.name)?.section ?? ''])),
      maps: readMaps(types),
      helpers: readHelpers(file),
    };
  });
}
