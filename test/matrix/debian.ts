/**
 * Debian packages of other releases than this machine's, fetched by apt with an
 * index of their own. The mirror is that of the machine's sources; nothing is
 * installed, and nothing below /etc/apt or /var/lib is written.
 */
import { execFile } from 'node:child_process';
import { mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';

const exec = promisify(execFile);
/** sid gets a new kernel about once a week. */
const INDEX_MAX_AGE_MS = 3 * 24 * 3600 * 1000;
const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';

export interface DebianSuite {
  /** `linux-image-6.1.0-50-cloud-amd64` of a package that needs one; the first that matches. */
  dependencies(packageName: string): Promise<readonly string[]>;
  /** Name and version, `linux-image-cloud-amd64` to `6.1.176-1`; undefined when the suite has none. */
  version(packageName: string): Promise<string | undefined>;
  /** Unpacks packages into a directory. */
  unpack(packageNames: readonly string[], directory: string): Promise<void>;
}

async function tool(command: string, args: readonly string[], cwd?: string): Promise<string> {
  try {
    const { stdout } = await exec(command, args, {
      maxBuffer: 64 << 20,
      ...(cwd === undefined ? {} : { cwd }),
    });
    return stdout;
  } catch (error) {
    const { stderr, message } = error as { stderr?: string; message: string };
    throw new Error(`${command} ${args.at(-1) ?? ''}: ${(stderr ?? message).trim()}`, { cause: error });
  }
}

/** Where this machine gets Debian itself from. */
export async function mirror(): Promise<string> {
  const targets = await tool('apt-get', [
    'indextargets',
    '--format',
    '$(ORIGIN) $(RELEASE) $(REPO_URI)',
    'Created-By: Packages',
  ]).catch(() => '');
  for (const target of targets.split('\n')) {
    const [origin, release, uri] = target.split(' ');
    if (origin === 'Debian' && uri !== undefined && /^[a-z]+$/.test(release ?? '')) return uri;
  }
  throw new Error(
    'the kernels come from Debian: this machine has no apt sources of Debian, or `apt-get update` has not run yet',
  );
}

function ageOf(directory: string): number {
  const indexes = readdirSync(directory).filter((name) => name.endsWith('_Packages'));
  return Math.min(Infinity, ...indexes.map((name) => Date.now() - statSync(join(directory, name)).mtimeMs));
}

/**
 * @param suite `bullseye`, `sid`
 * @param directory where the index and the packages are kept, between runs
 * @throws Error when there is no index of it, and none can be fetched
 */
export async function openSuite(suite: string, directory: string): Promise<DebianSuite> {
  const lists = join(directory, 'lists');
  mkdirSync(join(lists, 'partial'), { recursive: true });
  mkdirSync(join(directory, 'archives/partial'), { recursive: true });
  writeFileSync(join(directory, 'status'), '');
  const options = [
    `Dir::State=${directory}`,
    `Dir::State::lists=${lists}`,
    `Dir::State::status=${directory}/status`,
    `Dir::Cache=${directory}`,
    `Dir::Cache::archives=${directory}/archives`,
    `Dir::Etc::sourcelist=${directory}/sources.list`,
    'Dir::Etc::sourceparts=/dev/null',
    'Dir::Etc::preferencesparts=/dev/null',
    'APT::Architecture=amd64',
    'APT::Sandbox::User=root',
    'Acquire::Languages=none',
  ].flatMap((option) => ['-o', option]);
  const apt = (command: string, ...args: readonly string[]): Promise<string> =>
    tool(command, [...options, '-q', ...args], directory);
  const refresh = async (): Promise<void> => {
    writeFileSync(
      join(directory, 'sources.list'),
      `deb [signed-by=${KEYRING}] ${await mirror()} ${suite} main\n`,
    );
    await apt('apt-get', 'update');
  };
  if (ageOf(lists) > INDEX_MAX_AGE_MS) {
    await refresh().catch((error: unknown) => {
      if (ageOf(lists) === Infinity) throw error;
    });
  }
  const field = async (packageName: string, name: string): Promise<string | undefined> => {
    const record = await apt('apt-cache', 'show', '--no-all-versions', packageName).catch(() => '');
    return new RegExp(`^${name}: (.*)$`, 'm').exec(record)?.[1];
  };
  return {
    version: (packageName) => field(packageName, 'Version'),
    async dependencies(packageName) {
      return ((await field(packageName, 'Depends')) ?? '')
        .split(/, | \| /)
        .map((text) => text.split(' ')[0] ?? '')
        .filter(Boolean);
    },
    async unpack(packageNames, target) {
      const archives = join(directory, 'archives');
      const fetch = (): Promise<string> =>
        tool('apt-get', [...options, '-q', 'download', ...packageNames], archives);
      // An index of yesterday may name what the mirror has replaced.
      await fetch().catch(() => refresh().then(fetch));
      for (const packageName of packageNames) {
        const file = readdirSync(archives).find(
          (name) => name.startsWith(`${packageName}_`) && name.endsWith('.deb'),
        );
        if (file === undefined) throw new Error(`apt-get downloaded no ${packageName} of ${suite}`);
        await tool('dpkg-deb', ['-x', join(archives, file), target]);
      }
    },
  };
}
