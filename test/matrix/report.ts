/** What a guest tells: one JSON object a line. */
import type { ProbedFeature } from '../../native/survey/capability.ts';
import type { Failure, Skip } from '../runner/facts.ts';

export interface FileResult {
  /** `kernel/connect.test.ts`. */
  readonly file: string;
  readonly passed: number;
  readonly failures: readonly Failure[];
  /** Of a first try, when it was run again for them: an emulated machine is slow at times. */
  readonly before?: readonly Failure[];
  readonly skips: readonly Skip[];
  readonly seconds: number;
}

/** Of what `npm run leaktest -- --json` writes. */
export interface LeakFigures {
  readonly clean: boolean;
  readonly connects: number;
  readonly escaped: number;
  readonly caught_wrongly: number;
  readonly failed: number;
  readonly denied_wrongly: number;
  readonly disagreements: number;
  readonly new_cgroups: number;
  readonly agent: { readonly starts: number; readonly kills: number; readonly upgrades: number };
}

export interface LeakResult {
  /** Undefined when it could not run to its end. */
  readonly figures: LeakFigures | undefined;
  /** The last that it printed. */
  readonly tail: string;
  readonly seconds: number;
}

export type Report =
  | {
      readonly type: 'host';
      readonly release: string;
      readonly cgroups: string;
      readonly features: readonly ProbedFeature[];
    }
  | { readonly type: 'begin'; readonly file: string }
  | { readonly type: 'file'; readonly result: FileResult }
  | { readonly type: 'leak'; readonly result: LeakResult }
  | { readonly type: 'end' };

/** Undefined for a line that is none, as the firmware and the kernel may write some. */
export function parseReport(line: string): Report | undefined {
  const start = line.indexOf('{"type":');
  if (start < 0) return undefined;
  try {
    return JSON.parse(line.slice(start)) as Report;
  } catch {
    return undefined;
  }
}
