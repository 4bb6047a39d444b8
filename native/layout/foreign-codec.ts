/** Reads and writes the maps of another version as if they had this one's layouts. */
import type { Leaf, Shape } from './btf-shape.ts';
import type { StructLayout } from './btf.ts';
import type { Codec } from './codec.ts';
import { CgrouteError } from '../error.ts';
import { layouts } from './layouts.ts';
import { structCopy } from './struct-copy.ts';

const SIZES = { u8: 1, u16: 2, u32: 4, u64: 8, char: 1 } as const;

/** The shape of what a codec encodes: of a struct that was generated, or of one number. */
export function shapeOfCodec({ name, size }: Codec<unknown>): Shape {
  const layout = (layouts as readonly StructLayout[]).find((each) => each.name === name);
  if (layout === undefined) return { size, leaves: [{ path: '', offset: 0, size, count: 1, isText: false }] };
  return { size, leaves: leavesOf(layout, '', 0) };
}

function leavesOf({ fields }: StructLayout, within: string, base: number): Leaf[] {
  return fields.flatMap(({ name, offset, kind, count }): Leaf[] => {
    const path = `${within}${name}`;
    const at = base + offset;
    if (typeof kind === 'string')
      return [{ path, offset: at, size: SIZES[kind], count, isText: kind === 'char' }];
    if ('enum' in kind) return [{ path, offset: at, size: 4, count, isText: false }];
    const inner = (layouts as readonly StructLayout[]).find((each) => each.name === kind.struct);
    return inner === undefined ? [] : leavesOf(inner, `${path}.`, at);
  });
}

/** @param shape of the map's key or value, from its own BTF. @throws CgrouteError `EPINLAYOUT` when they have nothing in common */
export function foreignCodec<T>(codec: Codec<T>, shape: Shape): Codec<T> {
  // Plain bytes of the same length are the same bytes.
  if (codec.size === shape.size && !layouts.some(({ name }) => name === codec.name)) return codec;
  const own = shapeOfCodec(codec);
  const [outward, inward] = [structCopy(own, shape), structCopy(shape, own)];
  if (outward === undefined || inward === undefined) {
    throw new CgrouteError(
      'EPINLAYOUT',
      `a pinned map has no field in common with struct ${codec.name}: expected one of a version next to this`,
    );
  }
  const [ours, theirs] = [Buffer.alloc(own.size), Buffer.alloc(shape.size)];
  return {
    name: codec.name,
    size: shape.size,
    encode(value, buffer, at = 0) {
      codec.encode(value, ours);
      outward(ours, buffer.subarray(at, at + shape.size));
    },
    decode(buffer, at = 0) {
      buffer.copy(theirs, 0, at, at + shape.size);
      inward(theirs, ours);
      return codec.decode(ours);
    },
  };
}
