/**
 * What docs/kernels.md says of a part of the matrix: of the kernels that were run,
 * and of them the features and the files that were run, and of files that are there
 * no more. The rest of it is not looked at.
 */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { type Row, featureRows, fileRows, lackRows, skipRows } from './document.ts';
import type { KernelResult } from './result.ts';

/** The table below a heading or a line, as its cells; empty when there is none. */
function tableBelow(text: string, begin: string): { readonly heading: Row; readonly rows: readonly Row[] } {
  const lines = text.slice(Math.max(0, text.indexOf(`\n${begin}\n`))).split('\n');
  const from = text.includes(`\n${begin}\n`) ? lines.findIndex((line) => line.startsWith('|')) : -1;
  const table = from < 0 ? [] : lines.slice(from);
  const end = table.findIndex((line) => !line.startsWith('|'));
  const [heading = [], , ...rows] = table
    .slice(0, end < 0 ? undefined : end)
    .map((line) => line.slice(2, -2).split(' | '));
  return { heading, rows };
}

/** Lines that are wanted and not there with `+`, those there and not wanted with `-`. */
function differences(is: readonly string[], wanted: readonly string[]): string[] {
  return [
    ...is.filter((line) => !wanted.includes(line)).map((line) => `- ${line}`),
    ...wanted.filter((line) => !is.includes(line)).map((line) => `+ ${line}`),
  ];
}

const has = (kernels: string | undefined, name: string): boolean =>
  kernels?.split(', ').includes(name) === true;

const folder = resolve(import.meta.dirname, '..');

/** Whether a file is there that a row names, as `kernel/a.test.ts` in code. */
export const isThere = (file: string): boolean => existsSync(resolve(folder, file.replaceAll('`', '')));

/** The files that rows of the document are about, also those that it says are left out. */
export function namedFiles(text: string): string[] {
  return [
    ...tableBelow(text, '## Tests').rows.map(([file = '']) => file),
    ...tableBelow(text, 'Skipped:').rows.map(([, file = '']) => file),
    ...(/^Left out: .*$/m.exec(text)?.[0].match(/`[\w-]+\/[\w.-]+`/g) ?? []),
  ];
}

/** Where the document says something else of one kernel than came of it. */
function ofKernel(text: string, result: KernelResult, isFile: (file: string) => boolean): string[] {
  const { name, features } = result;
  const cells = (
    { heading, rows }: ReturnType<typeof tableBelow>,
    count: number,
    isWanted: (row: Row) => boolean = () => true,
  ): string[] =>
    rows
      .filter(isWanted)
      .map((row) => [...row.slice(0, count), row[heading.indexOf(name)] ?? 'no such column'].join(' | '));
  const computed = (rows: readonly Row[], count: number): string[] =>
    rows.map((row) => [...row.slice(0, count), row.at(-1)].join(' | '));
  const ran = new Set(fileRows([result]).map(([file]) => file));
  const isCovered = (file = ''): boolean => ran.has(file) || !isFile(file);

  const tests = tableBelow(text, '## Tests');
  // A feature at a time: the document puts those together that some kernels lack.
  const lacked = (rows: readonly Row[]): string[] =>
    rows
      .filter(([, , kernels]) => has(kernels, name))
      .flatMap(([names = '', since, , what]) =>
        names.split(', ').map((feature) => `${feature} | ${since} | ${what}`),
      );
  const single = features.flatMap((feature) => lackRows([{ ...result, features: [feature] }]));
  const skipped = (rows: readonly Row[]): string[] =>
    rows
      .filter(([kernels, file]) => has(kernels, name) && isCovered(file))
      .map(([, ...more]) => more.join(' | '));
  return [
    ...differences(cells(tableBelow(text, '## Features'), 2), computed(featureRows([result]), 2)),
    ...differences(lacked(tableBelow(text, '## What a kernel lacks').rows), lacked(single)),
    ...differences(
      cells(tests, 1, ([file]) => isCovered(file)),
      computed(fileRows([result]), 1),
    ),
    ...differences(skipped(tableBelow(text, 'Skipped:').rows), skipped(skipRows([result]))),
  ].map((line) => `${line.slice(0, 2)}${name}: ${line.slice(2)}`);
}

/** Lines that the document has too many, with `-`, and too few, with `+`, of what was run. */
export function coveredDifferences(
  text: string,
  results: readonly KernelResult[],
  isFile: (file: string) => boolean = isThere,
): string[] {
  return results.flatMap((result) => ofKernel(text, result, isFile));
}
