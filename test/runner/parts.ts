/** The parts of `npm test`, and which files of them are wanted. */
import { readdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, join, resolve } from 'node:path';

const root = resolve(import.meta.dirname, '../..');
const MINUTE_MS = 60_000;

export interface Part {
  readonly name: string;
  /** Files at once. Files with live cgroups and namespaces share two CPUs well in pairs. */
  readonly concurrency: number;
  /** What one file may take, several times what it takes; stretches with the machine's load. */
  readonly limitMs: number;
}

export const PARTS: readonly Part[] = [
  { name: 'unit', concurrency: availableParallelism(), limitMs: 5 * MINUTE_MS },
  { name: 'kernel', concurrency: 2, limitMs: 10 * MINUTE_MS },
  { name: 'kube', concurrency: 2, limitMs: 15 * MINUTE_MS },
  { name: 'e2e', concurrency: 2, limitMs: 15 * MINUTE_MS },
];

export interface Wanted {
  readonly part: Part;
  /** Absolute paths, in order. */
  readonly files: readonly string[];
}

/** @param directory the folder of the parts' folders */
function filesOf(part: Part, words: readonly string[], directory: string): string[] {
  return readdirSync(join(directory, part.name), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.test.ts'))
    .filter((name) => words.length === 0 || words.some((word) => basename(name).includes(word)))
    .sort()
    .map((name) => join(directory, part.name, name));
}

/** What somebody wants who says `kernel connect`: names of parts, and words in the names of files; nothing is all. */
export function wantedFiles(
  words: readonly string[],
  parts: readonly Part[] = PARTS,
  directory: string = join(root, 'test'),
): Wanted[] {
  const names = words.filter((word) => parts.some(({ name }) => name === word));
  const inFiles = words.filter((word) => !names.includes(word)).map((word) => basename(word));
  return parts
    .filter(({ name }) => names.length === 0 || names.includes(name))
    .map((part) => ({ part, files: filesOf(part, inFiles, directory) }))
    .filter(({ files }) => files.length > 0);
}
