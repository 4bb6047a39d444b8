/** The project's source files, and what they import. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize, resolve } from 'node:path';

export const root = resolve(import.meta.dirname, '../../..');

/** A file of the project, by its path from the root. */
export function read(path: string): string {
  return readFileSync(join(root, path), 'utf8');
}

/** Files below a directory, its sub-rooms too, relative to the project; sorted. */
export function sources(directory: string, extensions: RegExp): string[] {
  return readdirSync(join(root, directory), { recursive: true, encoding: 'utf8' })
    .filter((name) => extensions.test(name))
    .map((name) => join(directory, name))
    .sort();
}

const STATEMENTS = [
  /(?:^|\n)\s*(?:import|export)\b[^;'"]*?\bfrom\s*['"]([^'"]+)['"]/g,
  /(?:^|\n)\s*import\s*['"]([^'"]+)['"]/g,
  /\bimport\(\s*['"]([^'"]+)['"]/g,
  /\brequire\(\s*['"]([^'"]+)['"]/g,
];

/** The modules that a TypeScript file imports, in any way, types too. */
export function imports(text: string): string[] {
  return STATEMENTS.flatMap((statement) => [...text.matchAll(statement)].map((match) => match[1] ?? ''));
}

/** The file that a relative import leads to, from the project's root; undefined for a package. */
export function target(path: string, module: string): string | undefined {
  return module.startsWith('.') ? normalize(join(dirname(path), module)) : undefined;
}
