/** What a TypeScript file of the project imports, directly or through others: that tells what its tests need. */
import { readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';

const root = resolve(import.meta.dirname, '../..');
/** Types alone are gone when it runs. */
const IMPORT =
  /^(?:import|export)\s(?!type\b)[^;'"]*?\bfrom\s*['"](\.[^'"]+)['"]|^import\s*['"](\.[^'"]+)['"]/gm;

const known = new Map<string, readonly string[]>();

function direct(path: string): readonly string[] {
  const before = known.get(path);
  if (before !== undefined) return before;
  const text = readFileSync(join(root, path), 'utf8');
  const found = [...text.matchAll(IMPORT)]
    .map(([, from, plain]) => join(dirname(path), from ?? plain ?? ''))
    .filter((module) => module.endsWith('.ts'));
  known.set(path, found);
  return found;
}

/** All of them, from the project's root: `deploy/stage/sock.ts`; the file itself too. */
export function importsOf(file: string): ReadonlySet<string> {
  const found = new Set([relative(root, resolve(root, file))]);
  for (const path of found) for (const module of direct(path)) found.add(module);
  return found;
}
