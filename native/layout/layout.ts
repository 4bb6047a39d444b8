/** What a generated struct layout is, and how its texts and arrays are read. */
import type { ObjectTypes, StructLayout } from './btf.ts';
import { CgrouteError } from '../error.ts';

/** A C struct: where its fields lie, and how it goes into bytes and back. */
export interface Layout<T> extends StructLayout {
  encode(value: T, buffer: Buffer, at?: number): void;
  decode(buffer: Buffer, at?: number): T;
}

/** Writes UTF-8 padded with zeros; what does not fit with one zero at the end is cut. */
export function writeText(text: string, buffer: Buffer, at: number, size: number): void {
  buffer.fill(0, at, at + size);
  buffer.write(text, at, size - 1, 'utf8');
}

/** Reads UTF-8 up to the first zero. */
export function readText(buffer: Buffer, at: number, size: number): string {
  const end = buffer.subarray(at, at + size).indexOf(0);
  return buffer.toString('utf8', at, at + (end < 0 ? size : end));
}

export function writeWords(words: readonly bigint[], buffer: Buffer, at: number, count: number): void {
  for (let i = 0; i < count; i++) buffer.writeBigUInt64LE(words[i] ?? 0n, at + 8 * i);
}

export function readWords(buffer: Buffer, at: number, count: number): bigint[] {
  return Array.from({ length: count }, (_, i) => buffer.readBigUInt64LE(at + 8 * i));
}

/**
 * Compares what this program was built with against what an object holds.
 * @throws CgrouteError `ELAYOUT` naming the first struct and field that differ
 */
export function checkLayouts(layouts: readonly StructLayout[], types: ObjectTypes, file: string): void {
  for (const layout of layouts) {
    const found = types.structs.get(layout.name);
    // An object carries the types that it uses, not all of them.
    if (found === undefined) continue;
    const expected = describe(layout);
    const came = describe(found);
    const line = expected.findIndex((text, i) => text !== came[i]);
    if (line < 0 && expected.length === came.length) continue;
    throw new CgrouteError(
      'ELAYOUT',
      `${file} was built for another version of cgroute: expected struct ${layout.name} with ${expected[line] ?? 'no more fields'}, found ${came[line] ?? 'a longer one'}`,
    );
  }
}

function describe(layout: StructLayout): string[] {
  return [
    `${layout.size} bytes`,
    ...layout.fields.map(({ name, offset, kind, count }) => {
      const type =
        typeof kind === 'string' ? kind : 'struct' in kind ? `struct ${kind.struct}` : `enum ${kind.enum}`;
      return `${type} ${name}[${count}] at ${offset}`;
    }),
  ];
}
