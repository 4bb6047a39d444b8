/** The shape of a map's key or value: its plain fields by name, however deep they lie. */
import { KIND_ARRAY, KIND_ENUM, KIND_ENUM64, KIND_INT, KIND_STRUCT, resolve, type Types } from './btf.ts';
import { cString } from './elf.ts';

/** A number, or an array of numbers. */
export interface Leaf {
  /** `original.address.word_be`; empty where the whole is one number. */
  readonly path: string;
  /** Bytes from the start of the whole. */
  readonly offset: number;
  /** Bytes of one element. */
  readonly size: number;
  /** Elements of an array; 1 for a plain field. */
  readonly count: number;
  readonly isText: boolean;
}

export interface Shape {
  /** Bytes, padding included. */
  readonly size: number;
  readonly leaves: readonly Leaf[];
}

/** Undefined for what no map of cgroute has: pointers, unions, bit fields. */
export function shapeOf(types: Types, id: number): Shape | undefined {
  const leaves: Leaf[] = [];
  const size = collect(types, id, '', 0, leaves);
  return size === undefined ? undefined : { size, leaves };
}

export function sameShape(a: Shape, b: Shape): boolean {
  const text = ({ size, leaves }: Shape): string =>
    [
      size,
      ...leaves.map((leaf) => `${leaf.path} ${leaf.offset} ${leaf.size} ${leaf.count} ${leaf.isText}`),
    ].join();
  return text(a) === text(b);
}

/** Adds the leaves of one type. Returns its size in bytes. */
function collect(types: Types, id: number, path: string, offset: number, leaves: Leaf[]): number | undefined {
  const type = resolve(types, id);
  switch (type?.kind) {
    case KIND_INT:
    case KIND_ENUM:
    case KIND_ENUM64:
      leaves.push({ path, offset, size: type.sizeOrType, count: 1, isText: type.name === 'char' });
      return type.sizeOrType;
    case KIND_ARRAY:
      return collectArray(types, type.body, path, offset, leaves);
    case KIND_STRUCT:
      for (let at = type.body; at < type.body + 12 * type.vlen; at += 12) {
        // With bit fields, the upper eight bits say how wide.
        const bits = types.data.readUInt32LE(at + 8);
        if (bits > 0xffffff || bits % 8 !== 0) return undefined;
        const name = cString(types.strings, types.data.readUInt32LE(at));
        const within = path === '' ? name : `${path}.${name}`;
        if (collect(types, types.data.readUInt32LE(at + 4), within, offset + bits / 8, leaves) === undefined)
          return undefined;
      }
      return type.sizeOrType;
    default:
      return undefined;
  }
}

function collectArray(
  types: Types,
  body: number,
  path: string,
  offset: number,
  leaves: Leaf[],
): number | undefined {
  const element = types.data.readUInt32LE(body);
  const count = types.data.readUInt32LE(body + 8);
  const own: Leaf[] = [];
  const size = collect(types, element, path, offset, own);
  if (size === undefined) return undefined;
  const [only] = own;
  if (own.length === 1 && only?.count === 1 && only.path === path) {
    leaves.push({ ...only, count });
    return size * count;
  }
  for (let i = 0; i < count; i++) collect(types, element, `${path}[${i}]`, offset + i * size, leaves);
  return size * count;
}
