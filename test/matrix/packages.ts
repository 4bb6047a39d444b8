/** The Debian packages that the guests take, beside those of deploy/setup.sh. */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { promisify } from 'node:util';
import { QEMU } from './machine.ts';

const exec = promisify(execFile);

/** Package to the command that tells whether it is there. */
const PACKAGES: Readonly<Record<string, string>> = {
  'qemu-system-x86': QEMU,
  e2fsprogs: 'mke2fs',
  'busybox-static': 'busybox',
  'util-linux': 'setpriv',
};
const PATH = `${process.env['PATH'] ?? ''}:/usr/local/sbin:/usr/sbin:/sbin`;

/**
 * Installs what is missing.
 * @param more package to command, as above
 * @throws Error when that cannot be done
 */
export async function installPackages(
  say: (line: string) => void,
  more: Readonly<Record<string, string>> = {},
): Promise<void> {
  const missing = Object.entries({ ...PACKAGES, ...more })
    .filter(([, command]) => !PATH.split(':').some((directory) => existsSync(`${directory}/${command}`)))
    .map(([name]) => name);
  if (missing.length === 0) return;
  if (process.getuid?.() !== 0)
    throw new Error(`must run as root to install Debian packages; missing: ${missing.join(' ')}`);
  say(`installing Debian packages: ${missing.join(' ')}`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  await exec('apt-get', ['-q', 'update'], { env, maxBuffer: 16 << 20 });
  await exec('apt-get', ['-q', '-y', '--no-install-recommends', 'install', ...missing], {
    env,
    maxBuffer: 64 << 20,
  }).catch((error: unknown) => {
    throw new Error(
      `apt-get could not install ${missing.join(' ')}: ${(error as { stderr?: string }).stderr?.trim().split('\n').at(-1) ?? ''}`,
      { cause: error },
    );
  });
}
