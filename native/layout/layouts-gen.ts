/**
 * Writes native/layout/layouts.ts from the BTF of the compiled objects.
 *
 *     node native/layout/layouts-gen.ts OBJECT...            prints it
 *     node native/layout/layouts-gen.ts --write OBJECT...    replaces native/layout/layouts.ts
 *     node native/layout/layouts-gen.ts --check OBJECT...    exits 1 when that file is out of date
 *
 * Naming rules: `snake_case` becomes `camelCase`; a field that ends in `_be` is
 * in network order in memory, loses the suffix, and is a number (u16) or bytes
 * here; `reserved...` is left out and written as zero.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import {
  readObjectTypes,
  type FieldKind,
  type ObjectTypes,
  type StructField,
  type StructLayout,
} from './btf.ts';

const header = ['cgroute.h', 'connection.h']
  .map((name) => readFileSync(new URL(`../../bpf/${name}`, import.meta.url), 'utf8'))
  .join('');
const target = new URL('./layouts.ts', import.meta.url);

/** The names of the shared headers, in their order. */
function declared(keyword: 'struct' | 'enum'): string[] {
  return [...header.matchAll(new RegExp(`^${keyword} (\\w+) \\{`, 'gm'))].map((match) => match[1] ?? '');
}

const camel = (name: string): string =>
  name.replace(/_be$/, '').replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
const pascal = (name: string): string => camel(`_${name}`);

const sizes = { u8: 1, u16: 2, u32: 4, u64: 8, char: 1 } as const;

interface Code {
  readonly type: string;
  readonly encode: string;
  readonly decode: string;
}

function code(field: StructField): Code {
  const at = `at + ${field.offset}`;
  const value = `value.${camel(field.name)}`;
  if (typeof field.kind === 'object') {
    if ('enum' in field.kind) return numeric('UInt32LE', at, value);
    const layout = camel(field.kind.struct);
    if (field.count !== 1) throw new Error(`${field.name}: arrays of structs are not supported`);
    return {
      type: pascal(field.kind.struct),
      encode: `${layout}.encode(${value}, buffer, ${at})`,
      decode: `${layout}.decode(buffer, ${at})`,
    };
  }
  const bytes = sizes[field.kind] * field.count;
  if (field.kind === 'char')
    return {
      type: 'string',
      encode: `writeText(${value}, buffer, ${at}, ${bytes})`,
      decode: `readText(buffer, ${at}, ${bytes})`,
    };
  if (field.count > 1 && (field.kind === 'u8' || field.name.endsWith('_be'))) {
    return {
      type: 'Uint8Array',
      encode: `buffer.set(${value}, ${at})`,
      decode: `Uint8Array.from(buffer.subarray(${at}, ${at} + ${bytes}))`,
    };
  }
  if (field.count > 1) {
    if (field.kind !== 'u64') throw new Error(`${field.name}: arrays of ${field.kind} are not supported`);
    return {
      type: 'readonly bigint[]',
      encode: `writeWords(${value}, buffer, ${at}, ${field.count})`,
      decode: `readWords(buffer, ${at}, ${field.count})`,
    };
  }
  if (field.kind === 'u64')
    return {
      type: 'bigint',
      encode: `buffer.writeBigUInt64LE(${value}, ${at})`,
      decode: `buffer.readBigUInt64LE(${at})`,
    };
  if (field.kind === 'u8') return numeric('UInt8', at, value);
  const bits = field.kind === 'u16' ? '16' : '32';
  return numeric(`UInt${bits}${field.name.endsWith('_be') ? 'BE' : 'LE'}`, at, value);
}

function numeric(method: string, at: string, value: string): Code {
  return {
    type: 'number',
    encode: `buffer.write${method}(${value}, ${at})`,
    decode: `buffer.read${method}(${at})`,
  };
}

function structCode(layout: StructLayout): string {
  const named = layout.fields.filter((field) => !field.name.startsWith('reserved'));
  const fields = named.map((field) => ({ name: camel(field.name), ...code(field) }));
  return [
    `export interface ${pascal(layout.name)} {`,
    ...fields.map((field) => `  readonly ${field.name}: ${field.type};`),
    '}',
    '',
    `export const ${camel(layout.name)}: Layout<${pascal(layout.name)}> = {`,
    `  name: '${layout.name}',`,
    `  size: ${layout.size},`,
    '  fields: [',
    ...layout.fields.map(
      (field) =>
        `    { name: '${field.name}', offset: ${field.offset}, kind: ${kindCode(field.kind)}, count: ${field.count} },`,
    ),
    '  ],',
    '  encode(value, buffer, at = 0) {',
    ...(named.length === layout.fields.length ? [] : [`    buffer.fill(0, at, at + ${layout.size});`]),
    ...fields.map((field) => `    ${field.encode};`),
    '  },',
    '  decode(buffer, at = 0) {',
    '    return {',
    ...fields.map((field) => `      ${field.name}: ${field.decode},`),
    '    };',
    '  },',
    '};',
  ].join('\n');
}

function kindCode(kind: FieldKind): string {
  if (typeof kind === 'string') return `'${kind}'`;
  return 'struct' in kind ? `{ struct: '${kind.struct}' }` : `{ enum: '${kind.enum}' }`;
}

/** Structs that embed others come after them. */
function ordered(layouts: readonly StructLayout[]): StructLayout[] {
  const done: StructLayout[] = [];
  const visit = (layout: StructLayout): void => {
    if (done.includes(layout)) return;
    for (const { kind } of layout.fields) {
      const inner =
        typeof kind === 'object' && 'struct' in kind
          ? layouts.find((other) => other.name === kind.struct)
          : undefined;
      if (inner !== undefined) visit(inner);
    }
    done.push(layout);
  };
  for (const layout of layouts) visit(layout);
  return done;
}

function enumCode(name: string, values: ReadonlyMap<string, number>): string {
  const prefix = new RegExp(`^${name.split('_')[0]?.toUpperCase() ?? ''}_`);
  return [
    `export const ${camel(name)} = {`,
    ...[...values].map(([key, value]) => `  ${camel(key.replace(prefix, '').toLowerCase())}: ${value},`),
    '} as const;',
  ].join('\n');
}

function generate(objects: readonly ObjectTypes[]): string {
  const find = <T>(
    name: string,
    kind: 'structs' | 'enums',
    pick: (types: ObjectTypes) => T | undefined,
  ): T => {
    for (const types of objects) {
      const found = pick(types);
      if (found !== undefined) return found;
    }
    throw new Error(
      `a header of bpf/ declares ${name}, but no object's BTF has it among its ${kind}: use it in a map or in struct vocabulary`,
    );
  };
  const structs = declared('struct').map((name) => find(name, 'structs', (types) => types.structs.get(name)));
  const enums = declared('enum').map((name) =>
    enumCode(
      name,
      find(name, 'enums', (types) => types.enums.get(name)),
    ),
  );
  return [
    '// Generated from the BTF of bpf/*.bpf.c by native/layout/layouts-gen.ts; do not edit.',
    "import { readText, readWords, writeText, writeWords, type Layout } from './layout.ts';",
    '',
    ...enums.flatMap((text) => [text, '']),
    ...ordered(structs).flatMap((layout) => [structCode(layout), '']),
    `export const layouts = [${structs.map((layout) => camel(layout.name)).join(', ')}] as const;`,
    '',
  ].join('\n');
}

const args = process.argv.slice(2);
const mode = args[0]?.startsWith('--') === true ? args.shift() : undefined;
const text = generate(args.map((file) => readObjectTypes(readFileSync(file), file)));
if (mode === '--write') {
  writeFileSync(target, text);
} else if (mode === '--check') {
  if (readFileSync(target, 'utf8') !== text) {
    process.stderr.write(
      'native/layout/layouts.ts does not match the compiled objects; run `npm run layouts`\n',
    );
    process.exitCode = 1;
  }
} else {
  process.stdout.write(text);
}
