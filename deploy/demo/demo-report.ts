/** What a person watching the demo reads: headings, commands, a line with a tick or a cross per check. */
import { styleText } from 'node:util';

type Style = Parameters<typeof styleText>[0];

export interface Report {
  /** The first line: what is being shown. */
  title(text: string): void;
  /** Begins a part; an empty line comes before it. */
  part(text: string): void;
  /** A command line, as one would type it. */
  command(text: string): void;
  /** Lines to read that are no checks. */
  text(text: string): void;
  /** The same, less loud. */
  aside(text: string): void;
  /** A tick or a cross before one line. A cross makes the demo fail. */
  check(isGood: boolean, text: string, aside?: string): void;
  /** Everything that was checked was as it should be. */
  readonly isGood: boolean;
  /** The last lines: the sum. */
  sum(seconds: number): void;
}

const INDENT = '    ';

/** Colours on a terminal only; `NO_COLOR` and `FORCE_COLOR` are heeded (by `styleText`). */
function styled(style: Style, text: string): string {
  return styleText(style, text, { stream: process.stdout });
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

function indented(text: string, style?: Style): void {
  for (const line of text.split('\n'))
    print(line === '' ? '' : INDENT + (style === undefined ? line : styled(style, line)));
}

export function makeReport(): Report {
  let good = 0;
  let bad = 0;
  return {
    title: (text) => print(styled('bold', text)),
    part: (text) => print(`\n${styled('bold', text)}`),
    command: (text) => print(`${INDENT}${styled('dim', '$')} ${styled('cyan', text)}`),
    text: (text) => indented(text),
    aside: (text) => indented(text, 'dim'),
    check(isGood, text, aside) {
      if (isGood) good++;
      else bad++;
      const mark = isGood ? styled('green', '✓') : styled('red', '✗');
      print(`  ${mark} ${text}${aside === undefined ? '' : `  ${styled('dim', aside)}`}`);
    },
    get isGood() {
      return bad === 0 && good > 0;
    },
    sum(seconds) {
      const took = `in ${seconds.toFixed(1)} s`;
      print('');
      if (bad === 0) print(`${styled('green', `All ${good} checks are as they should be`)}, ${took}.`);
      else
        print(
          `${styled('red', `${bad} of ${good + bad} checks ${bad === 1 ? 'is' : 'are'} not as ${bad === 1 ? 'it' : 'they'} should be`)}, ${took}.`,
        );
    },
  };
}
