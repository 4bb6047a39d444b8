/**
 * The situations that the tests must have, and which test is about which:
 * docs/situations.md.
 *
 *     node test/situations.ts            prints it
 *     node test/situations.ts --write    replaces docs/situations.md
 *
 * A test says which it is about by the situation's own words in its name, or in
 * the table that its name is made from.
 */
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';

const root = resolve(import.meta.dirname, '..');
const TARGET = 'docs/situations.md';

/** In a test's name. Where that does not have it: `[situation, words of the name]`. */
type Situation = string | readonly [situation: string, words: string];

export const SITUATIONS: Readonly<Record<string, readonly Situation[]>> = {
  Discovery: [
    'PID gone or reused mid-read',
    'a process moved between cgroups',
    'a cgroup deleted and made again under the same path',
    'nested creation in one go',
    'subscribe failing',
    'events lost (the sweep repairs)',
    'a watch limit reached (said, and the sweep goes on)',
    '10,000 cgroups',
  ],
  Identity: [
    'cgroup before the API object',
    'API object before the cgroup',
    'pod IP before and after',
    "IP reused by a new pod before the old one's delete event",
    'a StatefulSet pod made again under the same name with a new UID',
    'a completed pod still listed',
    'static pods',
    'dual stack',
    'two flips before one reconcile',
    'a label and an annotation changed in one event',
    'a namespace event before its pods',
    'a delete seen only as a tombstone',
    'relist after an expired watch',
  ],
  'Data path': [
    "first connect in a process's first millisecond",
    'init, restarted, ephemeral containers and exec',
    'non-blocking connect',
    'TCP Fast Open',
    'io_uring',
    'a bound source address',
    'IPv4, IPv6, v4-mapped',
    'self and loopback',
    "ztunnel's own traffic, also after its restart under a new cgroup id",
    'a proxy that loops to itself',
    '20,000 connections open at once, each with its right original destination',
    'equal 4-tuples in two network namespaces',
    'another BPF program on the same hook, before and after ours',
  ],
  Life: [
    'kill -9 at any moment',
    'API server down at start, in the middle, at exit',
    'upgrade with the same map layout',
    ['upgrade with another map layout', 'and no connection notices, open or new'],
    ['a corrupt pin', 'something else in the place of a map is kept aside, and the map is found'],
    [
      'a missing pin',
      'the map behind a missing pin is found in the programs that use it, with all that is in it',
    ],
    'a program detached by someone else',
    'an entry deleted by someone else',
    'a map full',
    'two agents on one host under different cgroup roots',
    'one started twice on the same root (refused)',
    [
      'one started twice on the same root, waiting',
      'one started beside another changes nothing while it waits',
    ],
    'ztunnel down and back',
    'node rebooted',
    'uninstall leaves nothing behind',
  ],
  'Failure policies': [
    ['no proxy, deny', 'that neither runs nor is ready has connections refused, and those of others pass'],
    [
      'no proxy, allow',
      'where the configuration allows it, connections pass untouched while no proxy is ready',
    ],
    [
      'no room for a pod',
      'a pod that no map has room for is said, counted, treated as unknown, and taken in when there is room',
    ],
    'an agent without privileges it had',
  ],
  'Hostile pods': [
    "makes cgroups with other pods' names",
    'makes and removes cgroups as fast as it can',
    'runs systemd or Docker inside',
    'opens and drops connections as fast as it can',
    'fills its own quota of map entries',
    [
      'leaves destinations that nobody asks for',
      'a pod whose destinations nobody asks for gets its share of the room for them, and the others get theirs',
    ],
    "connects to the proxy's ports directly",
    'has 60,000 threads',
    'has thousands of processes which come and go',
  ],
  Drift: [
    "a link's pin removed by someone else",
    "a map's pin removed by someone else",
    'an entry altered by someone else',
    'an entry added by someone else',
  ],
};

export interface Proof {
  readonly situation: string;
  /** Every place in a test file that has the words; there should be one. */
  readonly places: readonly { readonly file: string; readonly name: string }[];
}

function testFiles(): string[] {
  return ['unit', 'kernel', 'kube', 'e2e'].flatMap((part) =>
    readdirSync(join(root, 'test', part), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.test.ts'))
      .sort()
      .map((name) => `test/${part}/${name}`),
  );
}

/** The quoted text of a line that has the words, with a template's blanks as dots. */
function quoted(line: string, words: string): string | undefined {
  const texts = [...line.matchAll(/'((?:\\.|[^'\\])*)'|"((?:\\.|[^"\\])*)"|`((?:\\.|[^`\\])*)`/g)].map(
    (match) => match.slice(1).find((text) => text !== undefined) ?? '',
  );
  return texts
    .map((text) => text.replaceAll(/\\(.)/g, '$1'))
    .find((text) => text.includes(words))
    ?.replaceAll(/\$\{[^}]*\}/g, '…');
}

export function proofs(): Readonly<Record<string, readonly Proof[]>> {
  const lines = testFiles()
    .filter((file) => !file.endsWith('situations.test.ts'))
    .flatMap((file) =>
      readFileSync(join(root, file), 'utf8')
        .split('\n')
        .map((line) => ({ file, line })),
    );
  const proofOf = (of: Situation): Proof => {
    const [situation, words] = typeof of === 'string' ? [of, of] : of;
    const places = lines.flatMap(({ file, line }) => {
      const name = line.replaceAll('\\', '').includes(words) ? quoted(line, words) : undefined;
      return name === undefined ? [] : [{ file, name }];
    });
    return { situation, places };
  };
  return Object.fromEntries(
    Object.entries(SITUATIONS).map(([title, situations]) => [title, situations.map(proofOf)]),
  );
}

export function document(): string {
  const tables = Object.entries(proofs()).map(
    ([title, rows]) => `## ${title}

| situation | test |
|---|---|
${rows.map(({ situation, places }) => `| ${situation} | ${places.map(({ file, name }) => `\`${file}\`: ${name.replaceAll('|', '\\|')}`).join('<br>')} |`).join('\n')}
`,
  );
  return `<!-- Generated from the names of the tests by test/situations.ts; \`node test/situations.ts --write\` writes it anew. -->

# Situations

What every release must get right, and the test that shows it. A dot stands for what a test is repeated with: an IP family, a cgroup driver.

${tables.join('\n')}`;
}

if (import.meta.main) {
  const [mode] = process.argv.slice(2);
  if (mode === '--write') writeFileSync(join(root, TARGET), document());
  else process.stdout.write(document());
}
