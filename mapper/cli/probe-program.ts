/** `cgroute probe` as a program by itself: the kubelet starts it every few seconds, and the whole bundle takes eight times as long to load. */
import { CgrouteError } from '../../native/error.ts';
import { helpText, parseCommandLine } from './command-line.ts';
import { probe } from './probe.ts';

async function main(): Promise<number> {
  try {
    const { verb, flags, argument } = parseCommandLine(process.argv.slice(2));
    if (verb === 'help') {
      process.stdout.write(helpText());
      return 0;
    }
    const { isFine, sentence } = await probe(flags, argument);
    (isFine ? process.stdout : process.stderr).write(`${sentence}\n`);
    return isFine ? 0 : 1;
  } catch (error) {
    if (!(error instanceof CgrouteError)) throw error;
    process.stderr.write(`cgroute: ${error.message}\n`);
    return 2;
  }
}

process.exitCode = await main();
