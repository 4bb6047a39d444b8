/** What the rooms of the agent may import, and what is wrong with an import. */
import { builtinModules } from 'node:module';
import { ROOMS } from '../../../deploy/build/rooms.ts';
import { target } from './sources.ts';

const PATHS = ROOMS.map(({ path }) => path);

/** Rules alone: what they are given goes in, what follows from it comes out. */
const PURE: ReadonlySet<string> = new Set(ROOMS.filter(({ isPure }) => isPure).map(({ path }) => path));

/** Modules of Node that do no I/O. */
const PURE_MODULES: ReadonlySet<string> = new Set(['node:net']);

/** Packages that only one room, or the rooms of one folder, may know. */
const PACKAGE_ROOM: Readonly<Record<string, string>> = {
  koffi: 'native/boundary',
  '@parcel/watcher': 'watcher',
  '@kubernetes/client-node': 'mapper',
  'prom-client': 'mapper',
};

/** What the agent may use at run time. */
const PACKAGES: ReadonlySet<string> = new Set([...Object.keys(PACKAGE_ROOM), 'pino', 'p-queue', 'yaml']);

/** The room of a file; undefined for one that stands in none. */
export function roomOf(path: string): string | undefined {
  return PATHS.find((room) => path === room || path.startsWith(`${room}/`));
}

/** What is wrong with an import between two files of the agent. */
function between(path: string, to: string): string | undefined {
  const [from, room] = [roomOf(path), roomOf(to)];
  if (room === undefined) return `${path} imports ${to}, which stands in no room of the agent`;
  if (from === undefined) return `${path} stands in no room of the agent`;
  if (room === 'native/error.ts') return undefined;
  if (PURE.has(from) && !room.startsWith('mapper/'))
    return `${path} imports ${to}, and ${from} imports nothing of native/ or watcher/`;
  if (PATHS.indexOf(room) < PATHS.indexOf(from)) return `${path} imports ${to}, up from ${from} to ${room}`;
  return undefined;
}

/** What is wrong with a file of the agent importing a module; undefined when nothing is. */
export function violation(path: string, module: string): string | undefined {
  const to = target(path, module);
  if (to !== undefined) return between(path, to);
  const room = roomOf(path);
  if (module.startsWith('node:')) {
    return room !== undefined && PURE.has(room) && !PURE_MODULES.has(module)
      ? `${path} imports ${module}, and ${room} does no I/O`
      : undefined;
  }
  if (builtinModules.includes(module)) return `${path} imports ${module} without node:`;
  const parts = module.split('/');
  const name = parts.slice(0, module.startsWith('@') ? 2 : 1).join('/');
  const only = PACKAGE_ROOM[name];
  if (only !== undefined && !path.startsWith(`${only}/`))
    return `${path} imports ${name}, which only ${only}/ may`;
  return PACKAGES.has(name)
    ? undefined
    : `${path} imports ${name}, which is not among the packages of the agent`;
}

/**
 * The circles among files, each as its path `a -> b -> a`; empty when there is none.
 * @param importsOf the files that a file imports
 */
export function circles(
  files: readonly string[],
  importsOf: (path: string) => readonly string[],
): readonly string[] {
  const done = new Set<string>();
  const found: string[] = [];
  const visit = (path: string, above: readonly string[]): void => {
    const at = above.indexOf(path);
    if (at >= 0) found.push([...above.slice(at), path].join(' -> '));
    if (at >= 0 || done.has(path)) return;
    for (const next of importsOf(path)) visit(next, [...above, path]);
    done.add(path);
  };
  for (const file of files) visit(file, []);
  return found;
}
