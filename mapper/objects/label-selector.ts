/**
 * Label selectors, as `kubectl -l` and the API's `labelSelector` spell them:
 * `app=ztunnel`, `app!=web`, `tier in (a, b)`, `tier notin (a)`, `app`, `!app`,
 * joined by commas, all of which must hold.
 */

import { labelValue, type Labels } from './labels.ts';

export interface LabelSelector {
  /** As it was written, for messages. */
  readonly text: string;
  readonly matches: (labels: Labels) => boolean;
}

const NAME = '(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)';
const KEY = `(?:${NAME}/)?${NAME}`;
const EQUALITY = new RegExp(`^(${KEY})\\s*(==|=|!=)\\s*(${NAME}?)$`);
const MEMBERSHIP = new RegExp(`^(${KEY})\\s+(in|notin)\\s*\\(([^()]*)\\)$`);
const EXISTENCE = new RegExp(`^(!?)\\s*(${KEY})$`);
const VALUE = new RegExp(`^${NAME}?$`);

/**
 * Reads a selector. An empty one is refused: it would match every pod, and no
 * setting here can mean that.
 *
 * @returns undefined when the text is not a selector
 */
export function parseLabelSelector(text: string): LabelSelector | undefined {
  const requirements: ((labels: Labels) => boolean)[] = [];
  // Commas inside parentheses belong to the list of values.
  for (const part of text.split(/,(?![^(]*\))/)) {
    const requirement = requirementOf(part.trim());
    if (requirement === undefined) return undefined;
    requirements.push(requirement);
  }
  return { text, matches: (labels) => requirements.every((holds) => holds(labels)) };
}

/** A label that is absent is unequal to every value, and in no list; that is how the API has it. */
function requirementOf(part: string): ((labels: Labels) => boolean) | undefined {
  const equality = EQUALITY.exec(part);
  if (equality) {
    const { 1: key = '', 2: operator, 3: wanted = '' } = equality;
    return operator === '!='
      ? (labels) => labelValue(labels, key) !== wanted
      : (labels) => labelValue(labels, key) === wanted;
  }
  const membership = MEMBERSHIP.exec(part);
  if (membership) {
    const { 1: key = '', 2: operator, 3: list = '' } = membership;
    const values = list.split(',').map((value) => value.trim());
    if (!values.every((value) => VALUE.test(value))) return undefined;
    const isIn = (labels: Labels): boolean => values.some((value) => labelValue(labels, key) === value);
    return operator === 'in' ? isIn : (labels) => !isIn(labels);
  }
  const existence = EXISTENCE.exec(part);
  if (existence) {
    const { 1: not, 2: key = '' } = existence;
    return not === '!'
      ? (labels) => labelValue(labels, key) === undefined
      : (labels) => labelValue(labels, key) !== undefined;
  }
  return undefined;
}
