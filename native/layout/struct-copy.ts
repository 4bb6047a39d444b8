/** Bytes of a struct of one version into the bytes of another version's, field by field, by name. */
import { sameShape, type Leaf, type Shape } from './btf-shape.ts';

export type CopyStruct = (from: Buffer, to: Buffer) => void;

/**
 * How to copy one shape into another. A field that is new is zero; one that is
 * gone is left out; a number gets wider or narrower; of an array and a text, what
 * both have room for. Undefined where no field has a counterpart, which would make
 * all values the same.
 */
export function structCopy(from: Shape, to: Shape): CopyStruct | undefined {
  if (sameShape(from, to)) return (source, target) => void source.copy(target, 0, 0, to.size);
  const bySource = new Map(from.leaves.map((leaf) => [leaf.path, leaf]));
  const pairs = to.leaves.flatMap((leaf): (readonly [Leaf, Leaf])[] => {
    const other = isReserved(leaf) ? undefined : bySource.get(leaf.path);
    return other === undefined ? [] : [[other, leaf]];
  });
  if (pairs.length === 0) return undefined;
  return (source, target) => {
    target.fill(0, 0, to.size);
    for (const [before, after] of pairs) copyLeaf(source, before, target, after);
  };
}

const isReserved = ({ path }: Leaf): boolean => /(?:^|\.)reserved\w*$/.test(path);

function copyLeaf(source: Buffer, before: Leaf, target: Buffer, after: Leaf): void {
  // Numbers are little-endian, so the first bytes are the low ones; those in network order never change their width.
  const bytes = Math.min(before.size, after.size);
  for (let i = 0; i < Math.min(before.count, after.count); i++) {
    const at = before.offset + i * before.size;
    source.copy(target, after.offset + i * after.size, at, at + bytes);
  }
  // A text that was cut ends with a zero.
  if (after.isText && after.count < before.count && after.count > 1)
    target[after.offset + after.count - 1] = 0;
}
