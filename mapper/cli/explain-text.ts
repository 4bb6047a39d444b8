/** `explain` for people. */
import type { Explanation } from './explain.ts';
import { proxyText, table } from './status-text.ts';

const OUTCOMES = { no: 'no', yes: 'yes', decides: 'DECIDES' } as const;

export function explanationText(of: Explanation): string {
  const { proxy } = of;
  const head = table([
    ['pod', `${of.namespace}/${of.name}`],
    ['uid', of.uid],
    ['verdict', `${of.verdict}, because of ${of.reason}`],
    ['ips', of.ips.join(', ') || 'none known'],
    ['proxy', proxyText(proxy)],
    ...(of.cgroups.length === 0
      ? [['cgroups', 'none']]
      : of.cgroups.map(({ id, path }, i) => [i === 0 ? 'cgroups' : '', `${id}  ${path}`])),
  ]);
  const rules = table([
    ['RULE', 'APPLIES', 'CONDITION', 'SAW'],
    ...of.rules.map(({ rule, outcome, condition, saw }) => [String(rule), OUTCOMES[outcome], condition, saw]),
  ]);
  const width = Math.max(0, ...of.connections.map(({ count }) => String(count).length));
  return [
    head,
    '',
    rules,
    '',
    ...(of.notes.length === 0 ? [] : ['notes:', ...of.notes.map((note) => `  ${note}`), '']),
    ...(of.connections.length === 0
      ? ['no connections so far']
      : [
          'connections so far:',
          ...of.connections.map(({ count, words }) => `  ${String(count).padStart(width)}  ${words}`),
        ]),
    '',
  ].join('\n');
}
