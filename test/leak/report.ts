/** What the leak test prints, and what it writes as JSON. */
import { type Account, isClean, type Tally } from './account.ts';
import { CASES, CASE_NAMES } from './connection.ts';

export interface Run {
  readonly account: Account;
  /** What was done to the agent meanwhile. */
  readonly agent: { readonly starts: number; readonly kills: number; readonly upgrades: number };
  /** Cgroups that were made for a process whose first act was to connect. */
  readonly fresh: number;
  readonly rounds: number;
  readonly seed: number;
  readonly seconds: number;
}

const SHOWN_FAULTS = 20;
const COLUMNS = ['connects', 'by proxy', 'direct', 'denied', 'failed', 'escaped', 'caught wrongly'] as const;
const NAME_WIDTH = Math.max(...Object.values(CASES).map((title) => title.length));

const failedOf = ({ failed }: Tally): number => Object.values(failed).reduce((all, count) => all + count, 0);
const sum = (tallies: Iterable<Tally>, of: (tally: Tally) => number): number =>
  [...tallies].reduce((all, tally) => all + of(tally), 0);

function row(title: string, tallies: readonly Tally[]): string {
  const numbers = [
    sum(tallies, (tally) => tally.connects),
    sum(tallies, (tally) => tally.proxied + tally.inbound),
    sum(tallies, (tally) => tally.direct),
    sum(tallies, (tally) => tally.denied),
    sum(tallies, failedOf),
    sum(tallies, (tally) => tally.escaped),
    sum(tallies, (tally) => tally.caughtWrongly),
  ];
  return `${title.padEnd(NAME_WIDTH)}  ${numbers.map((number, n) => number.toLocaleString('en-US').padStart(COLUMNS[n]?.length ?? 0)).join('  ')}`;
}

export function tableText({ account }: Run): string {
  const heading = `${''.padEnd(NAME_WIDTH)}  ${COLUMNS.join('  ')}`;
  const rows = CASE_NAMES.flatMap((name) => {
    const tally = account.cases.get(name);
    return tally === undefined ? [] : [row(CASES[name], [tally])];
  });
  return [heading, ...rows, row('all', [...account.cases.values()])].join('\n');
}

/** The last line, and before it what went wrong. */
export function verdictText(run: Run): string {
  const { account, agent } = run;
  const tallies = [...account.cases.values()];
  const [escaped, caught] = [
    sum(tallies, (tally) => tally.escaped),
    sum(tallies, (tally) => tally.caughtWrongly),
  ];
  const [failed, denied] = [sum(tallies, failedOf), sum(tallies, (tally) => tally.deniedWrongly)];
  const wrong = [...account.faults, ...account.disagreements];
  const shown = wrong.slice(0, SHOWN_FAULTS).map((text) => `  ${text}`);
  const more = wrong.length > SHOWN_FAULTS ? [`  and ${wrong.length - SHOWN_FAULTS} more`] : [];
  const failures = [...account.cases].flatMap(([name, tally]) =>
    Object.entries(tally.failed).map(([what, count]) => `${name}: ${count} failed with ${what}`),
  );
  const lost = failed + denied === 0 ? '' : `, ${failed} failed, ${denied} denied wrongly`;
  const agreed =
    account.disagreements.length === 0
      ? 'client, proxy and server agree on each'
      : `client, proxy and server do not agree on ${account.disagreements.length}`;
  return [
    ...shown,
    ...more,
    ...failures,
    `${run.fresh.toLocaleString('en-US')} cgroups were made, in each a process whose first act was connect(); the agent was started ${agent.starts} times, killed ${agent.kills} times, upgraded ${agent.upgrades === 1 ? 'once' : `${agent.upgrades} times`} (${run.seconds} s, seed ${run.seed})`,
    `${isClean(account) ? '✓' : '✗'} ${escaped} escaped, ${caught} wrongly caught${lost}; ${agreed}`,
  ].join('\n');
}

const tallyJson = (tally: Tally): Record<string, unknown> => ({
  connects: tally.connects,
  proxied: tally.proxied,
  inbound: tally.inbound,
  direct: tally.direct,
  denied: tally.denied,
  failed: failedOf(tally),
  failures: tally.failed,
  escaped: tally.escaped,
  caught_wrongly: tally.caughtWrongly,
  denied_wrongly: tally.deniedWrongly,
});

export function figures(run: Run): Record<string, unknown> {
  const { account } = run;
  const tallies = [...account.cases.values()];
  return {
    connects: sum(tallies, (tally) => tally.connects),
    escaped: sum(tallies, (tally) => tally.escaped),
    caught_wrongly: sum(tallies, (tally) => tally.caughtWrongly),
    failed: sum(tallies, failedOf),
    denied_wrongly: sum(tallies, (tally) => tally.deniedWrongly),
    disagreements: account.disagreements.length,
    clean: isClean(account),
    cases: Object.fromEntries(
      [...account.cases].map(([name, tally]) => [name, { title: CASES[name], ...tallyJson(tally) }]),
    ),
    faults: account.faults.slice(0, 100),
    disagreed: account.disagreements.slice(0, 100),
    new_cgroups: run.fresh,
    rounds: run.rounds,
    agent: run.agent,
    seed: run.seed,
    seconds: run.seconds,
  };
}
