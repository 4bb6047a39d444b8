/**
 * The configuration file (`--config FILE`, YAML).
 *
 * One table holds every setting, settings-table.ts: parsing, defaults, types and the
 * reference in the documentation all come from it.
 */

import { isAlias, isMap, isScalar, isSeq, LineCounter, parseAllDocuments } from 'yaml';
import type { Document, Node, YAMLMap } from 'yaml';

import { CgrouteError, messageOf } from '../../native/error.ts';
import type { Field } from './config-field.ts';
import { SETTINGS } from './settings-table.ts';
import { shown } from '../objects/shown.ts';

/** Who says which pods there are: the API server, or a manifest file, which nobody but its owner writes. */
export type ObjectsFrom = 'kube' | 'manifest';

type ConfigOf<T> = { readonly [K in keyof T]: T[K] extends Field<infer V> ? V : ConfigOf<T[K]> };

export type Config = ConfigOf<typeof SETTINGS>;

interface Table {
  readonly [key: string]: Field<unknown> | Table;
}

/** Where nothing is said: some defaults depend on who may write pods. */
export function defaultConfig(from: ObjectsFrom): Config {
  return defaultsOf(SETTINGS, from) as Config;
}

/**
 * Reads a configuration file's text. An empty text is the default configuration.
 *
 * @param file for messages only
 * @throws CgrouteError `ECONFIG`, one sentence with file, line, key, what was expected and what came
 */
export function parseConfig(text: string, file: string, from: ObjectsFrom = 'kube'): Config {
  const lines = new LineCounter();
  const documents = parseAllDocuments(text, { lineCounter: lines, prettyErrors: false });
  const lineAt = (offset: number | undefined): number => lines.linePos(offset ?? 0).line || 1;
  const refuse: Refuse = (offset, sentence) => {
    throw new CgrouteError('ECONFIG', `${file}:${lineAt(offset)}: ${sentence}`);
  };

  if (!Array.isArray(documents)) return defaultConfig(from);
  const [document, second] = documents;
  if (document === undefined) return defaultConfig(from);
  const error = document.errors[0] ?? second?.errors[0];
  if (error !== undefined) return refuse(error.pos[0], `this is not YAML: ${error.message}`);
  if (second !== undefined) return refuse(second.range?.[0], 'expected one YAML document, got a second one');
  const root: Node | null = document.contents;
  if (root === null || (isScalar(root) && root.value === null)) return defaultConfig(from);
  if (!isMap(root)) return refuse(root.range?.[0], 'expected settings as "key: value", got something else');
  return readTable(root, SETTINGS, defaultsOf(SETTINGS, from), [], document, refuse) as Config;
}

type Refuse = (offset: number | undefined, sentence: string) => never;

function readTable(
  map: YAMLMap,
  table: Table,
  defaults: Readonly<Record<string, unknown>>,
  above: readonly string[],
  document: Document,
  refuse: Refuse,
): unknown {
  const values = { ...defaults };
  for (const pair of map.items) {
    const keyNode = pair.key as Node;
    const valueNode = resolved(pair.value as Node | null, document);
    const offset = keyNode.range?.[0];
    const key = isScalar(keyNode) ? String(keyNode.value) : 'a mapping or list';
    const path = [...above, key].join('.');
    const entry = Object.hasOwn(table, key) ? table[key] : undefined;
    if (entry === undefined) return refuse(offset, `unknown key ${JSON.stringify(path)}${suggestion(path)}`);

    const raw = plain(pair.value as Node | null, document, (sentence) =>
      refuse(offset, `${path}: ${sentence}`),
    );
    // `proxy:` with everything below it commented out means nothing is set.
    if (raw === null) continue;
    if (isField(entry)) {
      const result = entry.read(raw);
      if ('wrong' in result) {
        const item =
          isSeq(valueNode) && result.index !== undefined
            ? (valueNode.items[result.index] as Node)
            : undefined;
        return refuse((item ?? valueNode)?.range?.[0] ?? offset, `${path}: ${result.wrong}`);
      }
      values[key] = result.value;
    } else if (isMap(valueNode)) {
      const below = values[key] as Readonly<Record<string, unknown>>;
      values[key] = readTable(valueNode, entry, below, [...above, key], document, refuse);
    } else {
      const inner = Object.keys(entry).join(', ');
      return refuse(
        valueNode?.range?.[0] ?? offset,
        `${path}: expected settings below it (${inner}), got ${shown(raw)}`,
      );
    }
  }
  return values;
}

/** A node as plain values. Aliases are resolved here, which fails on unknown ones and on those that unfold without end. */
function plain(node: Node | null, document: Document, refuse: (sentence: string) => never): unknown {
  try {
    return node === null ? null : (node.toJS(document, { maxAliasCount: 100 }) as unknown);
  } catch (error) {
    return refuse(messageOf(error));
  }
}

function resolved(node: Node | null, document: Document): Node | null {
  return isAlias(node) ? (node.resolve(document) ?? null) : node;
}

function isField(entry: Field<unknown> | Table): entry is Field<unknown> {
  return entry['kind'] === 'field';
}

function defaultsOf(table: Table, from: ObjectsFrom): Record<string, unknown> {
  const defaultOf = (entry: Field<unknown> | Table): unknown => {
    if (!isField(entry)) return defaultsOf(entry, from);
    return from === 'manifest' ? (entry.withManifest ?? entry).fallback : entry.fallback;
  };
  return Object.fromEntries(Object.entries(table).map(([key, entry]) => [key, defaultOf(entry)]));
}

function* fieldsOf(table: Table, above = ''): Generator<readonly [string, Field<unknown>]> {
  for (const [key, entry] of Object.entries(table)) {
    if (isField(entry)) yield [above + key, entry];
    else yield* fieldsOf(entry, `${above}${key}.`);
  }
}

/** Names the nearest known key, when one is near enough to be a slip of the pen. */
function suggestion(path: string): string {
  const keys = [...fieldsOf(SETTINGS)].map(([key]) => key);
  if (keys.includes(path)) {
    const [section = '', key = ''] = path.split('.');
    return `; write it as "${key}:" on a line of its own, indented below "${section}:"`;
  }
  const last = path.slice(path.lastIndexOf('.') + 1);
  const scored = [...new Set([...Object.keys(SETTINGS), ...keys])]
    .map((key) => {
      const end = key.slice(key.lastIndexOf('.') + 1);
      return { key, distance: Math.min(distance(path, key), distance(last, end)), length: end.length };
    })
    .sort((a, b) => a.distance - b.distance);
  const nearest = scored[0];
  return nearest !== undefined && nearest.distance <= Math.max(2, nearest.length / 3)
    ? `; did you mean "${nearest.key}"?`
    : `; known keys are ${keys.join(', ')}`;
}

/** Levenshtein's, without regard to case. */
function distance(left: string, right: string): number {
  const [a, b] = [left.slice(0, 80).toLowerCase(), right.toLowerCase()];
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const swap = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(swap, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}

function defaultText({ fallbackText, withManifest }: Field<unknown>): string {
  const manifest = withManifest && `; with a manifest file \`${withManifest.fallbackText}\``;
  return `\`${fallbackText}\`${manifest ?? ''}`;
}

/** The reference of every setting, as a Markdown table for the documentation. */
export function configReference(): string {
  const rows = [...fieldsOf(SETTINGS)].map(
    ([key, field]) =>
      `| \`${key}\` | ${defaultText(field)} | ${field.expects.replaceAll('|', '\\|')} | ${field.about.replaceAll('|', '\\|')} |`,
  );
  return ['| key | default | accepts | meaning |', '|---|---|---|---|', ...rows, ''].join('\n');
}
