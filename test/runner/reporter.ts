/**
 * node:test's reporter in the process of a file of tests: tells the runner of
 * each test, and prints them for people, without the sums, as the runner has its own.
 */
import { Readable } from 'node:stream';
import { spec } from 'node:test/reporters';
import type { EventData } from 'node:test';
import { FACTS_VARIABLE, type Fact, tell } from './facts.ts';

type Event =
  | { readonly type: 'test:dequeue'; readonly data: EventData.TestDequeue }
  | { readonly type: 'test:complete'; readonly data: EventData.TestComplete }
  | { readonly type: 'test:diagnostic'; readonly data: EventData.TestDiagnostic }
  | { readonly type: 'test:summary'; readonly data: EventData.TestSummary };

const SUM = /^(?:tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) [\d.]+$/;

/** An error's own words and the causes below it, which node:test wraps. */
function messageOf(error: unknown): string {
  const parts: string[] = [];
  for (let at = error; at instanceof Error; at = at.cause) parts.push(at.stack ?? at.message);
  return parts.at(-1) ?? String(error);
}

function factOf({ name, testId: id, details, skip, todo }: EventData.TestComplete): Fact {
  const why = skip ?? todo ?? false;
  if (why !== false) return { type: 'over', id, result: 'skipped', name, why: why === true ? '' : why };
  const isSuite = details.type === 'suite';
  if (details.passed) return { type: 'over', id, result: isSuite ? 'suite' : 'passed' };
  const { error } = details;
  // A suite fails with its tests, which speak for themselves.
  if (isSuite && error !== undefined && 'failureType' in error && error.failureType === 'subtestsFailed')
    return { type: 'over', id, result: 'suite' };
  return { type: 'over', id, result: 'failed', name, message: messageOf(error) };
}

async function* told(events: AsyncIterable<Event>): AsyncGenerator<Event> {
  const path = process.env[FACTS_VARIABLE] ?? '/dev/null';
  for await (const event of events) {
    if (event.type === 'test:dequeue')
      tell(path, { type: 'begin', id: event.data.testId, name: event.data.name });
    else if (event.type === 'test:complete') tell(path, factOf(event.data));
    else if (event.type === 'test:summary') tell(path, { type: 'end' });
    const { nesting, message } = event.type === 'test:diagnostic' ? event.data : { nesting: 1, message: '' };
    if (!(nesting === 0 && SUM.test(message))) yield event;
  }
}

/** For `--test-reporter`. */
async function* report(events: AsyncIterable<Event>): AsyncGenerator<string> {
  yield* Readable.from(told(events)).compose(new spec());
}

// node:test takes a reporter from nowhere else.
export { report as default };
