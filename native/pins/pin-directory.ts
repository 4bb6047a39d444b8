/**
 * Where links and maps are pinned: below `--bpffs-root`, one directory for each
 * version of the maps' layouts, with `maps` and `links` in it.
 */
import {
  accessSync,
  constants,
  mkdirSync,
  readdirSync,
  renameSync,
  rmdirSync,
  statfsSync,
  statSync,
  unlinkSync,
} from 'node:fs';
import { basename, dirname } from 'node:path';
import { CgrouteError, errnoOf, isAbsent, messageOf, refusalOf } from '../error.ts';
import { lockDirectory, type DirectoryLock } from '../boundary/lock.ts';
import { isThere } from '../boundary/presence.ts';

/** Changes when a map's layout does; then the old version's state is taken over by copying, and that of a release goes into former-layouts.ts. */
export const PIN_VERSION = 'v2';
const BPF_FS_MAGIC = 0xcafe4a11;

/** A redirected connection gets from connect() to accept() within this time, as both ends are on this host. */
export const IN_FLIGHT_MS = 100;

export interface PinDirectory {
  readonly version: string;
  readonly base: string;
  readonly maps: string;
  readonly links: string;
}

export function pinDirectory(bpffsRoot: string, version: string = PIN_VERSION): PinDirectory {
  const base = `${bpffsRoot}/${version}`;
  return { version, base, maps: `${base}/maps`, links: `${base}/links` };
}

/** Those that are there: this version's first, then the newer before the older. */
export function pinDirectories(bpffsRoot: string): PinDirectory[] {
  const age = (version: string): number => (version === PIN_VERSION ? -Infinity : -Number(version.slice(1)));
  return subdirectories(bpffsRoot)
    .map((path) => basename(path))
    .filter((name) => /^v\d+$/.test(name))
    .sort((a, b) => age(a) - age(b))
    .map((version) => pinDirectory(bpffsRoot, version));
}

/** Where links of any version are pinned. */
export const linkDirectories = (bpffsRoot: string): string[] =>
  pinDirectories(bpffsRoot).map(({ links }) => links);

/**
 * Whether there is a directory for pins. Where it may not be looked into, and where
 * no BPF file system is, it would be wrong to say that nothing is pinned.
 * @throws CgrouteError `EPINS` when that cannot be told, `EBPFFS`
 */
export function hasPinDirectory(bpffsRoot: string): boolean {
  const at = nearest(bpffsRoot);
  requireBpffs(at, bpffsRoot);
  if (at !== bpffsRoot) return false;
  if (!statSync(bpffsRoot).isDirectory())
    throw new CgrouteError('EBPFFS', `--bpffs-root ${bpffsRoot} is a pin: expected a directory for pins`);
  subdirectories(bpffsRoot);
  return true;
}

/** The path itself or the nearest above it that is there. @throws CgrouteError `EPINS` */
function nearest(bpffsRoot: string): string {
  let at = bpffsRoot;
  try {
    while (!isThere(at) && at !== dirname(at)) at = dirname(at);
  } catch (cause) {
    throw untold(cause);
  }
  return at;
}

function untold(cause: unknown): CgrouteError {
  return new CgrouteError('EPINS', `what is pinned below --bpffs-root cannot be told: ${refusalOf(cause)}`, {
    cause,
    errno: errnoOf(cause),
  });
}

/** Paths of the pins in a directory, of whatever kind; none where there is no such directory. @throws CgrouteError `EPINS` */
export function pinsIn(directory: string): string[] {
  return entriesOf(directory, false);
}

/**
 * Makes the directory for pins, if it is not there.
 * @throws CgrouteError `EBPFFS` when it would not be on a BPF filesystem, `EPINS` when it cannot be made
 */
export function makePinDirectory(bpffsRoot: string): void {
  requireBpffs(nearest(bpffsRoot), bpffsRoot);
  try {
    mkdirSync(bpffsRoot, { recursive: true, mode: 0o700 });
    accessSync(bpffsRoot, constants.W_OK);
  } catch (cause) {
    throw new CgrouteError('EPINS', `nothing can be pinned below --bpffs-root: ${refusalOf(cause)}`, {
      cause,
      errno: errnoOf(cause),
    });
  }
}

/**
 * Makes the directory for pins and locks it. To renew makes it again, where somebody has removed it.
 * @throws CgrouteError `EBPFFS`, `ELOCKED`
 */
export function lockPinDirectory(bpffsRoot: string, tries?: number): DirectoryLock {
  makePinDirectory(bpffsRoot);
  const lock = lockDirectory(bpffsRoot, '--bpffs-root', tries);
  const renew = (): void => {
    makePinDirectory(bpffsRoot);
    lock.renew();
  };
  try {
    renew(); // A cleanup that held the lock has removed what is locked now.
  } catch (error) {
    lock[Symbol.dispose]();
    throw error;
  }
  return { ...lock, renew };
}

/** @throws CgrouteError `EBPFFS` */
export function requireBpffs(path: string, bpffsRoot: string): void {
  if (statfsSync(path).type >>> 0 === BPF_FS_MAGIC) return;
  throw new CgrouteError(
    'EBPFFS',
    `--bpffs-root ${bpffsRoot} is not on a BPF filesystem: expected bpffs mounted at or above it; mount it with \`mount -t bpf bpf /sys/fs/bpf\``,
  );
}

/** Versions that have anything pinned. */
export const pinnedVersions = (bpffsRoot: string): string[] =>
  pinDirectories(bpffsRoot)
    .filter(({ links, maps }) => pinsIn(links).length + pinsIn(maps).length > 0)
    .map(({ version }) => version);

/**
 * Removes one version's pins and directories. Returns the number of pins.
 * @param keeps pins that stay, with their directory
 */
export function removeVersion(
  { base, maps, links }: PinDirectory,
  keeps: (pin: string) => boolean = () => false,
): number {
  const pins = [...pinsIn(links), ...pinsIn(maps)].filter((pin) => !keeps(pin));
  for (const pin of pins) unlinkSync(pin);
  for (const directory of [links, maps, base]) removeIfEmpty(directory);
  return pins.length;
}

function removeIfEmpty(directory: string): void {
  if (isThere(directory) && readdirSync(directory).length === 0) rmdirSync(directory);
}

/**
 * What lies where a pin of ours should be, and is none of ours, is kept, elsewhere.
 * Returns its new path.
 * @throws CgrouteError `EPINFOREIGN` when it cannot be moved
 */
export function moveAside(bpffsRoot: string, path: string, what: string): string {
  const aside = `${bpffsRoot}/aside`;
  try {
    mkdirSync(aside, { recursive: true, mode: 0o700 });
    let to = '';
    for (let n = 1; to === '' || isThere(to); n++) to = `${aside}/${basename(path)}_${n}`;
    renameSync(path, to);
    return to;
  } catch (cause) {
    throw new CgrouteError(
      'EPINFOREIGN',
      `${path} is ${what} and cannot be moved aside (${messageOf(cause)}): expected a pin of cgroute's or nothing; remove it`,
      { cause },
    );
  }
}

const subdirectories = (directory: string): string[] => entriesOf(directory, true);

/** None where there is no such directory. @throws CgrouteError `EPINS` for one that may not be read */
function entriesOf(directory: string, directories: boolean): string[] {
  try {
    return readdirSync(directory, { withFileTypes: true })
      .filter((entry) => entry.isDirectory() === directories)
      .map(({ name }) => `${directory}/${name}`);
  } catch (error) {
    if (isAbsent(error)) return [];
    throw untold(error);
  }
}
