/** The table that a person reads, and the goals in it. */

/** What a figure is to be at most. */
export interface Goal {
  /** The figure's name in the JSON. */
  readonly name: string;
  readonly value: number;
  readonly atMost: number;
  readonly unit: string;
}

export interface Row {
  readonly name: string;
  /** In the section's unit. */
  readonly value: number;
  readonly digits?: number;
  /** What else there is to say. */
  readonly beside?: string;
  readonly goal?: Goal;
}

export interface Section {
  readonly title: string;
  readonly unit: string;
  readonly rows: readonly Row[];
  /** How it was measured; lines below the table. */
  readonly notes: readonly string[];
}

export function isMet({ value, atMost }: Goal): boolean {
  return value <= atMost;
}

/** 12345.678 as `12,345.7`. */
function numberText(value: number, digits = 0): string {
  return value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function goalText(goal: Goal | undefined): string {
  if (goal === undefined) return '';
  return `${isMet(goal) ? '✓' : '✗'} at most ${goal.atMost}${goal.unit}`;
}

const NAME_WIDTH = 40;
const VALUE_WIDTH = 9;
const BESIDE_WIDTH = 32;

/** A section as lines of text. */
export function sectionText({ title, unit, rows, notes }: Section): string {
  const heading = `${title.padEnd(NAME_WIDTH + 2)} ${unit.padStart(VALUE_WIDTH)}`;
  const lines = rows.map(({ name, value, digits, beside = '', goal }) =>
    `  ${name.padEnd(NAME_WIDTH)} ${numberText(value, digits).padStart(VALUE_WIDTH)}  ${beside.padEnd(BESIDE_WIDTH)}  ${goalText(goal)}`.trimEnd(),
  );
  return [heading, ...lines, ...notes.map((note) => `  (${note})`), ''].join('\n');
}

/** The last line: what was reached. */
export function verdictText(goals: readonly Goal[]): string {
  const missed = goals.filter((goal) => !isMet(goal));
  if (missed.length === 0) return `✓ all ${goals.length} goals reached`;
  return `✗ ${missed.length} of ${goals.length} goals missed: ${missed.map(({ name, value, atMost, unit }) => `${name} ${numberText(value, unit.includes('x') ? 3 : 1)}, at most ${atMost}${unit}`).join('; ')}`;
}
