/** Prometheus's own checker of rules, from the machine, or taken out of Debian's package once: nothing is installed. */
import { execFile } from 'node:child_process';
import { accessSync, constants, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

const PACKAGE = 'prometheus';
const cache = join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'cgroute', 'promtool');

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/**
 * Its path: `PROMTOOL`, else what PATH has, else the one in the cache, which some
 * 20 MB are downloaded for on the first call.
 * @throws Error where there is none to be had
 */
export async function promtool(): Promise<string> {
  const given = process.env['PROMTOOL'] ?? '';
  const places = [
    given,
    ...(process.env['PATH'] ?? '').split(':').map((directory) => join(directory, 'promtool')),
    join(cache, 'promtool'),
  ];
  return places.find((path) => path !== '' && isProgram(path)) ?? download();
}

async function download(): Promise<string> {
  mkdirSync(cache, { recursive: true });
  const directory = mkdtempSync(join(cache, 'download-'));
  const run = (command: string, ...args: string[]): Promise<unknown> =>
    promisify(execFile)(command, args, { cwd: directory, timeout: 60_000 });
  try {
    // A machine that has just been made has no lists of packages yet.
    await run('apt-get', '-q', 'download', PACKAGE).catch(async () => {
      await run('apt-get', '-q', 'update');
      await run('apt-get', '-q', 'download', PACKAGE);
    });
    const [file = ''] = readdirSync(directory);
    await run('dpkg-deb', '--extract', file, 'package');
    renameSync(join(directory, 'package/usr/bin/promtool'), join(cache, 'promtool'));
  } catch (error) {
    throw new Error(
      `no promtool: set PROMTOOL, or put it into PATH; Debian's package ${PACKAGE} could not be had`,
      { cause: error },
    );
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
  return join(cache, 'promtool');
}
