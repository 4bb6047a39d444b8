/** docs/kernels.md, made from what came of the kernels. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import type { ProbedFeature } from '../../native/survey/capability.ts';
import { nodeSection } from './node/document.ts';
import type { NodeResult } from './node/run.ts';
import type { FileResult } from './report.ts';
import type { KernelResult } from './result.ts';
import { LEAK_CGROUPS, type LeftOut } from './selection.ts';

const FILE = resolve(import.meta.dirname, '../../docs/kernels.md');
/** Rows that are of the day: of what Debian has, and of the machine. */
const OF_THE_DAY = /^\| (?:Debian's package|time) \|/;
const SHOWN_DIFFERENCES = 10;

/** Cells of a table. */
export type Row = readonly string[];

function table(heading: Row, rows: readonly Row[]): string {
  const line = (cells: Row): string => `| ${cells.join(' | ')} |`;
  return [line(heading), line(heading.map(() => '---')), ...rows.map(line)].join('\n');
}

const code = (text: string): string => `\`${text}\``;

function featureName({ name, kind }: ProbedFeature): string {
  const [what = '', where] = name.split(' in ');
  if (kind === 'helper') return `${code(what)} in ${code(where ?? '')}`;
  return kind === 'map'
    ? `map ${code(name.slice('map '.length))}`
    : kind === 'program'
      ? `program ${code(name)}`
      : name;
}

function featureMark({ support, instead }: ProbedFeature): string {
  return support === 'yes'
    ? 'yes'
    : support === 'unknown'
      ? '?'
      : instead === undefined
        ? '**no**'
        : 'no, not needed';
}

/** What some kernel lacks, with what the agent does there. Helpers of one kind of program that do the same are one row. */
export function lackRows(results: readonly KernelResult[]): Row[] {
  const rows = new Map<
    string,
    { readonly names: string[]; readonly since: string; readonly kernels: string; readonly text: string }
  >();
  for (const feature of results[0]?.features ?? []) {
    const kernels = results
      .filter(({ features }) =>
        features.some(({ name, support }) => name === feature.name && support === 'no'),
      )
      .map(({ name }) => name)
      .join(', ');
    if (kernels === '') continue;
    const { since, without, instead } = feature;
    const text = instead !== undefined ? `nothing is lost: ${instead}` : (without ?? 'does not work');
    const key = `${since} ${kernels} ${text}`;
    const row = rows.get(key) ?? { names: [], since, kernels, text };
    rows.set(key, row);
    row.names.push(featureName(feature));
  }
  return [...rows.values()].map(({ names, since, kernels, text }) => [
    names.join(', '),
    since,
    kernels,
    text,
  ]);
}

export function featureRows(results: readonly KernelResult[]): Row[] {
  return (results[0]?.features ?? []).map((feature) => [
    featureName(feature),
    feature.since,
    ...results.map(({ features }) => {
      const same = features.find(({ name }) => name === feature.name);
      return same === undefined ? '?' : featureMark(same);
    }),
  ]);
}

function fileCell(file: FileResult | undefined): string {
  if (file === undefined) return 'did not run';
  const { passed, failures, skips } = file;
  return [
    `${passed}`,
    ...(failures.length > 0 ? [`**${failures.length} failed**`] : []),
    ...(skips.length > 0 ? [`${skips.length} skipped`] : []),
  ].join(', ');
}

export function fileRows(results: readonly KernelResult[]): Row[] {
  const files = [...new Set(results.flatMap((result) => result.files.map(({ file }) => file)))];
  return files.map((name) => [
    code(name),
    ...results.map(({ files: all }) => fileCell(all.find(({ file }) => file === name))),
  ]);
}

export function skipRows(results: readonly KernelResult[]): Row[] {
  const rows = new Map<string, string[]>();
  for (const { name: kernel, files } of results) {
    for (const { file, skips } of files) {
      for (const { name, why } of skips) {
        const key = JSON.stringify([code(file), name, why]);
        rows.set(key, [...(rows.get(key) ?? []), kernel]);
      }
    }
  }
  return [...rows].map(([key, kernels]) => {
    const [file = '', name = '', why = ''] = JSON.parse(key) as string[];
    return [kernels.join(', '), file, name, why];
  });
}

function leakRows(results: readonly KernelResult[]): Row[] {
  const row = (
    title: string,
    cell: (figures: NonNullable<NonNullable<KernelResult['leak']>['figures']>) => string,
  ): Row => [
    title,
    ...results.map(({ leak }) => (leak?.figures === undefined ? 'did not run' : cell(leak.figures))),
  ];
  const count = (number: number): string => (number === 0 ? '0' : `**${number}**`);
  return [
    row('new cgroups, each with a process whose first act is `connect()`', ({ new_cgroups: made }) =>
      made >= LEAK_CGROUPS ? `${LEAK_CGROUPS} and more` : `${made}`,
    ),
    row('escaped', ({ escaped }) => count(escaped)),
    row('wrongly caught', ({ caught_wrongly: caught }) => count(caught)),
    row('failed, or denied wrongly', ({ failed, denied_wrongly: denied }) => count(failed + denied)),
    row('client, proxy and server', ({ disagreements }) =>
      disagreements === 0 ? 'agree' : `**disagree ${disagreements} times**`,
    ),
    row('agent killed with `kill -9` meanwhile', ({ agent }) => (agent.kills > 0 ? 'yes' : '**no**')),
    row('agent upgraded meanwhile', ({ agent }) => (agent.upgrades > 0 ? 'yes' : '**no**')),
  ];
}

/** All of it, as `--write` writes it. */
export function documentText(
  results: readonly KernelResult[],
  leftOut: readonly LeftOut[],
  node?: NodeResult,
): string {
  const names = results.map(({ name }) => name);
  const skips = skipRows(results);
  return `<!-- Generated by test/matrix/run.ts; \`npm run test:matrix -- --all --write\` writes it anew. -->

# Kernels

cgroute needs Linux 5.10 or later, with BTF and cgroup v2. \`npm run test:matrix -- --all\` boots kernels of Debian, made for clouds, in QEMU's software emulation, each on a host with cgroup v2 alone, and runs the kernel tests and a short leak test in it; it takes most of an hour, and is run before a change to \`bpf/\` is through. Without \`--all\`, as in CI, it is the oldest and the newest kernel, with the tests of what the programs do; the agent is started in no guest then. Either fails when this page says something else of what was run.

\`cgroute doctor\` tries the same features on the kernel that it runs on, and tells what follows where one is missing.

${table(
  ['', ...names],
  [
    ['Debian', ...results.map(({ suite }) => suite)],
    ["Debian's package", ...results.map(({ release, version }) => `${release}, ${version}`)],
    ['time', ...results.map(({ seconds }) => `${Math.round(seconds)} s`)],
  ],
)}

## What a kernel lacks

${table(['what', 'since Linux', 'not in', 'without it'], lackRows(results))}

Not a feature that can be tried, yet different:

- **Locked memory.** Before Linux 5.11 maps and programs count as locked memory of whoever makes them, some 80 MB with the default sizes. The agent raises its limit where it may; the chart's container may not (\`CAP_SYS_RESOURCE\`), so there the container runtime must have a high limit itself: \`LimitMEMLOCK=infinity\` in its systemd unit. \`doctor\` says so, and the agent refuses to start with \`EPERM\`.
- **MPTCP.** A kernel can be built without it (\`CONFIG_MPTCP\`), as Debian's 5.10 is. There are no such sockets then, and nothing to lose. Where it has them, the TCP connection below such a socket is found by the kernel's own type information, whatever its version.

## Features

${table(['feature', 'since Linux', ...names], featureRows(results))}

## Tests

${table(['file', ...names], fileRows(results))}

${skips.length === 0 ? 'None was skipped.' : `Skipped:\n\n${table(['on', 'file', 'test', 'why'], skips)}`}
${leftOut.length === 0 ? '' : `\nLeft out: ${leftOut.map(({ file, why }) => `${code(file)}, as ${why}`).join('; ')}.\n`}
## Leak test

\`npm run leaktest\` on a small scale; on a larger one it runs on the machine that runs the tests.

${table(['', ...names], leakRows(results))}
${node === undefined ? '' : `\n${nodeSection(node)}`}`;
}

export function writeDocument(
  results: readonly KernelResult[],
  leftOut: readonly LeftOut[],
  node?: NodeResult,
): void {
  writeFileSync(FILE, documentText(results, leftOut, node));
}

const lasting = (text: string): string[] => text.split('\n').filter((line) => !OF_THE_DAY.test(line));

/** Lines that a document has too many, with `-`, and too few, with `+`; those of the day do not count. */
export function documentDifferences(
  text: string,
  results: readonly KernelResult[],
  leftOut: readonly LeftOut[],
  node?: NodeResult,
): string[] {
  const [is, wanted] = [lasting(text), lasting(documentText(results, leftOut, node))];
  const gone = is.filter((line) => !wanted.includes(line)).map((line) => `- ${line}`);
  const come = wanted.filter((line) => !is.includes(line)).map((line) => `+ ${line}`);
  return [...gone, ...come];
}

/** Whether docs/kernels.md says what came of the kernels; tells what it does not. */
export function documentAgrees(
  differencesFrom: (text: string) => readonly string[],
  say: (line: string) => void,
): boolean {
  const differences = differencesFrom(existsSync(FILE) ? readFileSync(FILE, 'utf8') : '');
  if (differences.length === 0) return true;
  say(
    [
      '',
      'docs/kernels.md says something else; `npm run test:matrix -- --all --write` writes it anew:',
      ...differences.slice(0, SHOWN_DIFFERENCES),
    ].join('\n'),
  );
  return false;
}
