/**
 * Reads struct and enum layouts out of a compiled object's BTF.
 *
 * Format: Documentation/bpf/btf.rst of the kernel. Only what the shared header uses is understood; anything else in there is passed over.
 */
import { cString, readElf } from './elf.ts';
import { CgrouteError } from '../error.ts';

export type FieldKind =
  | 'u8'
  | 'u16'
  | 'u32'
  | 'u64'
  | 'char'
  | { readonly struct: string }
  | { readonly enum: string };

export interface StructField {
  readonly name: string;
  /** Bytes from the start of the struct. */
  readonly offset: number;
  readonly kind: FieldKind;
  /** Elements of an array; 1 for a plain field. */
  readonly count: number;
}

export interface StructLayout {
  readonly name: string;
  /** Bytes, padding included. */
  readonly size: number;
  readonly fields: readonly StructField[];
}

export interface ObjectTypes {
  readonly structs: ReadonlyMap<string, StructLayout>;
  /** Enumerators with their values, by the enum's name. */
  readonly enums: ReadonlyMap<string, ReadonlyMap<string, number>>;
}

export const KIND_INT = 1;
export const KIND_ARRAY = 3;
export const KIND_STRUCT = 4;
const KIND_UNION = 5;
export const KIND_ENUM = 6;
const KIND_FUNC_PROTO = 13;
const KIND_VAR = 14;
const KIND_DATASEC = 15;
const KIND_DECL_TAG = 17;
export const KIND_ENUM64 = 19;
/** typedef, volatile, const, restrict, type_tag: a name or a qualifier for another type. */
const KIND_ALIASES = new Set([8, 9, 10, 11, 18]);

export interface RawType {
  readonly name: string;
  readonly kind: number;
  readonly vlen: number;
  /** Bytes for int, struct and enum; a type id for the rest. */
  readonly sizeOrType: number;
  /** Offset of what follows the common header. */
  readonly body: number;
}

/**
 * @param object the bytes of a `.bpf.o`
 * @throws CgrouteError `EBTF` when it is no little-endian ELF-64 object with BTF
 */
export function readObjectTypes(object: Buffer, file: string): ObjectTypes {
  const types = parseBtf(readElf(object, file).section('.BTF'), file);
  const structs = new Map<string, StructLayout>();
  const enums = new Map<string, ReadonlyMap<string, number>>();
  for (const type of types.list) {
    if (type.kind === KIND_STRUCT && type.name !== '') {
      const layout = structLayout(types, type);
      if (layout !== undefined) structs.set(type.name, layout);
    } else if (type.kind === KIND_ENUM && type.name !== '') {
      enums.set(type.name, enumerators(types, type));
    }
  }
  return { structs, enums };
}

/** BTF as it is in an object's section, or as the kernel gives it. @throws CgrouteError `EBTF` */
export function parseBtf(btf: Buffer, file: string): Types {
  if (btf.length < 24 || btf.readUInt16LE(0) !== 0xeb9f)
    throw malformed(file, 'its .BTF section has no BTF header');
  const header = btf.readUInt32LE(4);
  return readTypes(
    btf.subarray(header + btf.readUInt32LE(8), header + btf.readUInt32LE(8) + btf.readUInt32LE(12)),
    btf.subarray(header + btf.readUInt32LE(16), header + btf.readUInt32LE(16) + btf.readUInt32LE(20)),
    file,
  );
}

function malformed(file: string, why: string): CgrouteError {
  return new CgrouteError('EBTF', `${file} is not a BPF object that cgroute can use: ${why}`);
}

export interface Types {
  readonly data: Buffer;
  readonly strings: Buffer;
  /** By type id; id 0 is void. */
  readonly list: readonly RawType[];
}

function readTypes(data: Buffer, strings: Buffer, file: string): Types {
  const list: RawType[] = [{ name: 'void', kind: 0, vlen: 0, sizeOrType: 0, body: 0 }];
  for (let at = 0; at + 12 <= data.length; ) {
    const info = data.readUInt32LE(at + 4);
    const type: RawType = {
      name: cString(strings, data.readUInt32LE(at)),
      kind: (info >>> 24) & 0x1f,
      vlen: info & 0xffff,
      sizeOrType: data.readUInt32LE(at + 8),
      body: at + 12,
    };
    list.push(type);
    at = type.body + bodySize(type, file);
  }
  return { data, strings, list };
}

function bodySize(type: RawType, file: string): number {
  switch (type.kind) {
    case KIND_INT:
    case KIND_VAR:
    case KIND_DECL_TAG:
      return 4;
    case KIND_ARRAY:
      return 12;
    case KIND_STRUCT:
    case KIND_UNION:
    case KIND_DATASEC:
    case KIND_ENUM64:
      return 12 * type.vlen;
    case KIND_ENUM:
    case KIND_FUNC_PROTO:
      return 8 * type.vlen;
    default:
      if (type.kind > KIND_ENUM64)
        throw malformed(file, `its BTF has a kind ${type.kind} that is not known here`);
      return 0;
  }
}

/** The type itself, without names and qualifiers for it. */
export function resolve(types: Types, id: number): RawType | undefined {
  let type = types.list[id];
  while (type !== undefined && KIND_ALIASES.has(type.kind)) type = types.list[type.sizeOrType];
  return type;
}

/** Undefined for a struct with members that no map value has: bit fields, pointers, unions. */
function structLayout(types: Types, type: RawType): StructLayout | undefined {
  const fields: StructField[] = [];
  for (let i = 0; i < type.vlen; i++) {
    const at = type.body + 12 * i;
    const bits = types.data.readUInt32LE(at + 8);
    const shape = fieldShape(types, types.data.readUInt32LE(at + 4));
    if (shape === undefined || bits % 8 !== 0) return undefined;
    fields.push({ name: cString(types.strings, types.data.readUInt32LE(at)), offset: bits / 8, ...shape });
  }
  return { name: type.name, size: type.sizeOrType, fields };
}

function fieldShape(types: Types, id: number): Pick<StructField, 'kind' | 'count'> | undefined {
  const type = resolve(types, id);
  if (type === undefined) return undefined;
  if (type.kind === KIND_ARRAY) {
    const element = fieldShape(types, types.data.readUInt32LE(type.body));
    return element?.count === 1
      ? { kind: element.kind, count: types.data.readUInt32LE(type.body + 8) }
      : undefined;
  }
  if (type.kind === KIND_STRUCT && type.name !== '') return { kind: { struct: type.name }, count: 1 };
  if (type.kind === KIND_ENUM && type.sizeOrType === 4) return { kind: { enum: type.name }, count: 1 };
  if (type.kind !== KIND_INT) return undefined;
  switch (type.sizeOrType) {
    case 1:
      return { kind: type.name === 'char' ? 'char' : 'u8', count: 1 };
    case 2:
      return { kind: 'u16', count: 1 };
    case 4:
      return { kind: 'u32', count: 1 };
    case 8:
      return { kind: 'u64', count: 1 };
    default:
      return undefined;
  }
}

function enumerators(types: Types, type: RawType): ReadonlyMap<string, number> {
  const values = new Map<string, number>();
  for (let i = 0; i < type.vlen; i++) {
    const at = type.body + 8 * i;
    values.set(cString(types.strings, types.data.readUInt32LE(at)), types.data.readInt32LE(at + 4));
  }
  return values;
}
