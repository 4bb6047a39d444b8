/**
 * Looks at the source as a reader does, and changes nothing: types, format, lint,
 * shell scripts, and what nothing uses. `npm run check` runs all of it at once.
 */
import { execFile, execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';

const root = resolve(import.meta.dirname, '../..');

/** All files that git has or would take, from the root. */
function files(): string[] {
  const args = ['ls-files', '--cached', '--others', '--exclude-standard', '-z', '--deduplicate'];
  return execFileSync('git', args, { cwd: root, encoding: 'utf8', maxBuffer: 16 << 20 })
    .split('\0')
    .filter((path) => path !== '' && isReadable(path));
}

/** False for what is deleted in the work tree, and still known to git. */
function isReadable(path: string): boolean {
  try {
    readFileSync(join(root, path));
    return true;
  } catch {
    return false;
  }
}

const SHELL = /^#!.*[/ ](?:sh|bash|dash)\n/;

interface Check {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  /** What mends it by itself, where something does. */
  readonly mends?: string;
}

function checks(): readonly Check[] {
  const all = files();
  const c = all.filter((path) => /\.[ch]$/.test(path));
  const shell = all.filter((path) => SHELL.test(readFileSync(join(root, path), 'latin1').slice(0, 80)));
  return [
    { name: 'types', command: 'tsc', args: ['--noEmit', '--pretty', 'false'] },
    {
      name: 'format and lint',
      command: 'biome',
      args: ['ci', '--colors=off', '--error-on-warnings', '--max-diagnostics=50', '.'],
      mends: 'npm run format',
    },
    {
      name: 'format of C',
      command: 'clang-format',
      args: ['--dry-run', '--Werror', ...c],
      mends: 'npm run format',
    },
    { name: 'shell scripts', command: 'shellcheck', args: shell },
    { name: 'unused', command: 'knip', args: ['--no-progress'] },
  ];
}

/** Runs one, and prints a line for it; what it found stands below. */
async function run({ name, command, args, mends }: Check): Promise<boolean> {
  const began = performance.now();
  const { promise, resolve: done } = Promise.withResolvers<string | undefined>();
  execFile(command, args, { cwd: root, maxBuffer: 64 << 20 }, (error, stdout, stderr) => {
    if (error === null) done(undefined);
    else if (error.code === 'ENOENT') done(`${command} is not installed; \`npm run setup\` installs it`);
    else done(`${stdout}${stderr}`.trim() || error.message);
  });
  const found = await promise;
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  console.log(`${found === undefined ? 'ok    ' : 'FAILED'} ${name} (${command}, ${seconds} s)`);
  if (found !== undefined) console.log(found.replaceAll(/^/gm, '    '));
  if (found !== undefined && mends !== undefined)
    console.log(`    \`${mends}\` mends what can be mended by itself`);
  return found === undefined;
}

const results = await Promise.all(checks().map(run));
process.exitCode = results.every(Boolean) ? 0 : 1;
