/** The kinds of values a configuration has: what they accept, and how they are told and shown. */

import { parseLabelSelector } from '../objects/label-selector.ts';
import type { LabelSelector } from '../objects/label-selector.ts';
import { shown } from '../objects/shown.ts';

/** One setting. Its key is its place in the table of config.ts. */
export interface Field<T> {
  readonly kind: 'field';
  readonly fallback: T;
  /** In its place with a manifest file, which nobody but its owner writes; with the same in YAML. */
  readonly withManifest?: { readonly fallback: T; readonly fallbackText: string };
  /** One or two sentences for the reference. */
  readonly about: string;
  /** What is accepted, in words that follow "expected". */
  readonly expects: string;
  /** The default, as a person writes it in YAML. */
  readonly fallbackText: string;
  /** The value; or what is wrong with the raw one, in words that follow the key, and in which item of a list. */
  readonly read: (
    raw: unknown,
  ) => { readonly value: T } | { readonly wrong: string; readonly index?: number };
}

/** One word of several. */
export function choice<const W extends string>(
  words: readonly W[],
  fallback: NoInfer<W>,
  about: string,
): Field<W> {
  const expects =
    words.length === 1 ? `"${words[0]}"` : `one of ${words.map((word) => `"${word}"`).join(', ')}`;
  return {
    kind: 'field',
    fallback,
    about,
    expects,
    fallbackText: fallback,
    read(raw) {
      const word = words.find((known) => known === raw);
      return word === undefined ? { wrong: `expected ${expects}, got ${shown(raw)}` } : { value: word };
    },
  };
}

export function integer(least: number, most: number, fallback: number, about: string): Field<number> {
  const expects = `a whole number from ${least} to ${most}`;
  return {
    kind: 'field',
    fallback,
    about,
    expects,
    fallbackText: String(fallback),
    read: (raw) =>
      typeof raw === 'number' && Number.isInteger(raw) && raw >= least && raw <= most
        ? { value: raw }
        : { wrong: `expected ${expects}, got ${shown(raw)}` },
  };
}

export function onOrOff(fallback: boolean, about: string): Field<boolean> {
  const expects = 'true or false';
  return {
    kind: 'field',
    fallback,
    about,
    expects,
    fallbackText: String(fallback),
    read: (raw) =>
      typeof raw === 'boolean' ? { value: raw } : { wrong: `expected ${expects}, got ${shown(raw)}` },
  };
}

export interface TextOptions {
  /** Names it, `the key of a taint`. */
  readonly item: string;
  readonly form: RegExp;
}

/** One text, or an empty one. */
export function text({ item, form }: TextOptions, about: string): Field<string> {
  const expects = `${item}, or an empty text`;
  return {
    kind: 'field',
    fallback: '',
    about,
    expects,
    fallbackText: '""',
    read: (raw) =>
      typeof raw === 'string' && (raw === '' || form.test(raw))
        ? { value: raw }
        : { wrong: `expected ${expects}, got ${shown(raw)}` },
  };
}

export interface TextsOptions {
  /** Names one item, `a namespace`. */
  readonly item: string;
  readonly form: RegExp;
  readonly lowerCase?: boolean;
  readonly mayBeEmpty?: boolean;
  /** Words that have a meaning of their own, with the reason why they can't stand in the list. */
  readonly reserved?: Readonly<Record<string, string>>;
  readonly withManifest?: readonly string[];
  /** What to write instead of an empty list. */
  readonly ratherThanEmpty?: string;
}

/** A list of texts, each once, in the order given. */
export function texts(
  fallback: readonly string[],
  options: TextsOptions,
  about: string,
): Field<readonly string[]> {
  const { item, form, lowerCase = false, mayBeEmpty = false, reserved = {}, withManifest } = options;
  const expects = `a list, each item ${item}${mayBeEmpty ? '' : ', at least one'}`;
  return {
    kind: 'field',
    fallback,
    about,
    expects,
    fallbackText: listText(fallback),
    ...(withManifest && { withManifest: { fallback: withManifest, fallbackText: listText(withManifest) } }),
    read(raw) {
      if (!Array.isArray(raw)) return { wrong: `expected ${expects}, got ${shown(raw)}` };
      if (raw.length === 0 && !mayBeEmpty)
        return {
          wrong: `expected ${expects}, got an empty list${options.ratherThanEmpty === undefined ? '' : `; ${options.ratherThanEmpty}`}`,
        };
      const values = new Set<string>();
      for (const [index, each] of (raw as readonly unknown[]).entries()) {
        if (typeof each !== 'string' || !form.test(each))
          return { wrong: `expected each item to be ${item}, got ${shown(each)}`, index };
        const value = lowerCase ? each.toLowerCase() : each;
        const reason = Object.hasOwn(reserved, value) ? reserved[value] : undefined;
        if (reason !== undefined)
          return { wrong: `expected each item to be ${item}, got ${shown(each)}, ${reason}`, index };
        values.add(value);
      }
      return { value: [...values] };
    },
  };
}

/** As YAML: a star alone would be an alias there. */
function listText(items: readonly string[]): string {
  return `[${items.map((item) => (item === '*' ? '"*"' : item)).join(', ')}]`;
}

/** A label selector that is not empty. */
export function selector(fallback: string, about: string): Field<LabelSelector> {
  const expects = 'a label selector such as "app=ztunnel"';
  const parsed = parseLabelSelector(fallback);
  if (parsed === undefined) throw new TypeError(`${JSON.stringify(fallback)} is not a label selector`);
  return {
    kind: 'field',
    fallback: parsed,
    about,
    expects,
    fallbackText: fallback,
    read(raw) {
      const value = typeof raw === 'string' ? parseLabelSelector(raw) : undefined;
      return value === undefined ? { wrong: `expected ${expects}, got ${shown(raw)}` } : { value };
    },
  };
}
