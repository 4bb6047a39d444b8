/**
 * Runs the tests: `npm test`, or parts of them by name and by file:
 * `npm test -- unit`, `npm test -- kernel connect`, `npm test -- verdict`.
 *
 * First makes what the wanted files need, then runs each file in a process of its
 * own: see runner/. Ends with one plain line of sums, and with exit code 1 when a
 * test failed or none ran.
 */
import { resolve } from 'node:path';
import { clearMarked, markChildren } from './runner/descendants.ts';
import { PARTS, wantedFiles } from './runner/parts.ts';
import { runTests } from './runner/run.ts';

const root = resolve(import.meta.dirname, '..');

/** Nothing that was started outlives the run, also when somebody ends that. */
function endWithAll(): void {
  const { mark } = markChildren();
  for (const [signal, code] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const)
    process.once(signal, () => void clearMarked(mark).finally(() => process.exit(code)));
}

async function main(words: readonly string[]): Promise<void> {
  endWithAll();
  // A shell that came by `su` may not have them; ip, iptables and others are there.
  process.env['PATH'] += ':/usr/local/sbin:/usr/sbin:/sbin';
  const sums = await runTests(wantedFiles(words), {
    cwd: root,
    print: (text) => void process.stdout.write(text),
  });
  if (sums.isEmpty)
    console.error(
      `no test ran; parts are ${PARTS.map(({ name }) => name).join(', ')}, other words are parts of file names`,
    );
  console.log(sums.text(Boolean(process.env['CI'])));
  process.exitCode = sums.isEmpty || sums.failed > 0 ? 1 : 0;
  // Whatever a preparation that was given up still holds.
  process.exit();
}

await main(process.argv.slice(2));
