/** What a file of tests tells the runner while it runs: a line of JSON for each test that begins, for each that is over, and for the end. */
import { appendFileSync, readFileSync } from 'node:fs';

/** The variable with the path of the file for the lines. */
export const FACTS_VARIABLE = 'CGROUTE_TEST_FACTS';

export interface Failure {
  readonly name: string;
  /** The error's own words and its stack. */
  readonly message: string;
}

export interface Skip {
  readonly name: string;
  /** Empty when the test did not say. */
  readonly why: string;
}

export type Fact =
  | { readonly type: 'begin'; readonly id: number; readonly name: string }
  | { readonly type: 'over'; readonly id: number; readonly result: 'passed' | 'suite' }
  | ({ readonly type: 'over'; readonly id: number; readonly result: 'skipped' } & Skip)
  | ({ readonly type: 'over'; readonly id: number; readonly result: 'failed' } & Failure)
  | { readonly type: 'end' };

export interface Told {
  passed: number;
  readonly failures: Failure[];
  readonly skips: Skip[];
  /** Names of tests and suites that have begun and are not over. */
  readonly unfinished: string[];
  /** Whether all its tests are over. */
  hasEnded: boolean;
}

/** At once and not through a stream: the next moment the process may be gone. */
export function tell(path: string, fact: Fact): void {
  appendFileSync(path, `${JSON.stringify(fact)}\n`);
}

/** All that was told; a last line that was cut off counts for nothing. */
export function readFacts(path: string): Told {
  const told: Told = { passed: 0, failures: [], skips: [], unfinished: [], hasEnded: false };
  const begun = new Map<number, string>();
  for (const line of readFileSync(path, 'utf8').split('\n').slice(0, -1)) {
    const fact = JSON.parse(line) as Fact;
    if (fact.type === 'begin') {
      begun.set(fact.id, fact.name);
      continue;
    }
    if (fact.type === 'end') {
      told.hasEnded = true;
      continue;
    }
    begun.delete(fact.id);
    if (fact.result === 'passed') told.passed++;
    else if (fact.result === 'failed') told.failures.push({ name: fact.name, message: fact.message });
    else if (fact.result === 'skipped') told.skips.push({ name: fact.name, why: fact.why });
  }
  told.unfinished.push(...begun.values());
  return told;
}
