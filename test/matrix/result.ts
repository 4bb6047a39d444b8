/** What came of one kernel, put together from what its guest told. */
import type { ProbedFeature } from '../../native/survey/capability.ts';
import type { Kernel } from './kernel.ts';
import type { Failure } from '../runner/facts.ts';
import type { FileResult, LeakResult, Report } from './report.ts';

export interface KernelResult {
  readonly name: string;
  readonly suite: string;
  readonly release: string;
  readonly version: string;
  features: readonly ProbedFeature[];
  readonly files: FileResult[];
  leak?: LeakResult;
  /** What is running, for when nothing more is heard. */
  running?: string | undefined;
  /** Whether it told that it is through. */
  ended: boolean;
  /** Why it is not. */
  problem?: string;
  seconds: number;
}

export function beginResult({ name, suite, release, version }: Kernel): KernelResult {
  return { name, suite, release, version, features: [], files: [], ended: false, seconds: 0 };
}

/** Of a failure's message; --json has all of it. */
const SHOWN_LINES = 4;

function failureLines(mark: string, failures: readonly Failure[]): string {
  return failures
    .map(
      ({ name, message }) =>
        `\n          ${mark} ${name}\n            ${message.split('\n', SHOWN_LINES).join('\n            ')}`,
    )
    .join('');
}

function fileText({ file, passed, failures, before = [], skips, seconds }: FileResult): string {
  const sums = [
    `${passed} passed`,
    ...(failures.length > 0 ? [`${failures.length} FAILED`] : []),
    ...(skips.length > 0 ? [`${skips.length} skipped`] : []),
  ];
  return `${file}: ${sums.join(', ')} (${Math.round(seconds)} s)${before.length > 0 && failures.length === 0 ? ', at the second try; at the first:' : ''}${failureLines('✗', failures.length > 0 ? failures : before)}`;
}

export function leakText({ figures, tail, seconds }: LeakResult): string {
  if (figures === undefined)
    return `the leak test did not come to its end (${Math.round(seconds)} s):\n${tail}`;
  const { connects, escaped, caught_wrongly: caught, failed, disagreements, agent, clean } = figures;
  const text = `the leak test: ${connects} connects, ${escaped} escaped, ${caught} wrongly caught, ${failed} failed, ${disagreements} disagreements; the agent killed ${agent.kills} times (${Math.round(seconds)} s)`;
  return clean ? text : `${text}\n${tail}`;
}

/** Adds a report; returns what there is to say of it. */
export function take(result: KernelResult, report: Report): string | undefined {
  switch (report.type) {
    case 'host':
      result.features = report.features;
      return `is up; ${report.features.filter(({ support }) => support === 'yes').length} of ${report.features.length} features`;
    case 'begin':
      result.running = report.file;
      return undefined;
    case 'file':
      result.files.push(report.result);
      return fileText(report.result);
    case 'leak':
      result.leak = report.result;
      return leakText(report.result);
    case 'end':
      result.ended = true;
      result.running = undefined;
      return undefined;
  }
}

/** An earlier result of the same kernel, with what was run anew in its place. */
export function renewed(earlier: KernelResult, now: KernelResult): KernelResult {
  const files = earlier.files.map((each) => now.files.find(({ file }) => file === each.file) ?? each);
  const added = now.files.filter(({ file }) => !earlier.files.some((each) => each.file === file));
  const leak = now.leak ?? earlier.leak;
  return {
    ...earlier,
    ...now,
    ended: earlier.ended && now.ended,
    files: [...files, ...added].sort((a, b) => (a.file < b.file ? -1 : 1)),
    ...(leak === undefined ? {} : { leak }),
    seconds: earlier.seconds,
  };
}

const hasFailed = ({ passed, failures, skips }: FileResult): boolean =>
  failures.length > 0 || passed + skips.length === 0;

export function isGood({ problem, ended, files, leak }: KernelResult): boolean {
  return (
    problem === undefined &&
    ended &&
    files.length + (leak === undefined ? 0 : 1) > 0 &&
    !files.some(hasFailed) &&
    (leak === undefined || leak.figures?.clean === true)
  );
}

const sum = (files: readonly FileResult[], of: (file: FileResult) => number): number =>
  files.reduce((all, file) => all + of(file), 0);

/** The table at the end of a run. */
export function resultLines(results: readonly KernelResult[]): string[] {
  const rows = results.map((result) => {
    const { name, release, files, leak } = result;
    const leakSums =
      leak === undefined
        ? ''
        : leak.figures === undefined
          ? '  leak test: no end'
          : `  leak test: ${leak.figures.escaped} escaped, ${leak.figures.caught_wrongly} wrongly caught`;
    const sums = `${sum(files, ({ passed }) => passed)} passed, ${sum(files, ({ failures }) => failures.length)} failed, ${sum(files, ({ skips }) => skips.length)} skipped`;
    return `${isGood(result) ? '✓' : '✗'} ${name.padEnd(7)} Linux ${release.padEnd(28)} ${sums}${leakSums}  ${Math.round(result.seconds)} s`;
  });
  const skips = results.flatMap(({ name, files }) =>
    files.flatMap(({ file, skips: ofFile }) =>
      ofFile.map((skip) => `  ${name} ${file}: ${skip.name} (${skip.why})`),
    ),
  );
  return [
    ...rows,
    ...(skips.length === 0 ? [] : ['', '!!! SKIPPED, so not tested on that kernel !!!', ...skips]),
  ];
}
