/** Programs built from a Go module that declares them as tools, once for a machine, and kept in the cache. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';

/** With the places where Go's own distribution and Debian put it, which a shell that came by `su` may not look into. */
const GO_PATH = `${process.env['PATH'] ?? ''}:/usr/local/go/bin:/usr/lib/go/bin`;
const PROGRESS_MS = 15_000;

export type Say = (line: string) => void;

/** Standard output is for the result. */
export const toStandardError: Say = (line) => void process.stderr.write(`${line}\n`);

export interface GoModule {
  /** Where its go.mod and go.sum are. */
  readonly directory: string;
  /** Its place in the cache, and what its messages begin with: `kube`. */
  readonly name: string;
  /** What is built, for people: `kubectl of Kubernetes v1.36.3`. */
  readonly title: string;
  /** Written to the file VERSION beside the programs. */
  readonly version: string;
  /** The programs by the packages that they are built from. */
  readonly programs: Readonly<Record<string, string>>;
  /** @default -s -w */
  readonly linkerFlags?: string;
  /** Without a C library, to run on another system than this. */
  readonly isStatic?: boolean;
}

function environment(isStatic = false): NodeJS.ProcessEnv {
  return {
    HOME: homedir(),
    ...process.env,
    PATH: GO_PATH,
    GOWORK: 'off',
    ...(isStatic ? { CGO_ENABLED: '0' } : {}),
  };
}

/** Whether there is a Go to build with. */
export function hasGo(): boolean {
  return GO_PATH.split(':').some((directory) => directory !== '' && existsSync(join(directory, 'go')));
}

/** The version of a module that a go.mod requires. */
export function requiredVersion(directory: string, module: string): string {
  const file = join(directory, 'go.mod');
  for (const line of readFileSync(file, 'utf8').split('\n')) {
    const [path, version] = line
      .trim()
      .replace(/^require\s+/, '')
      .split(/\s+/);
    if (path === module && version?.startsWith('v')) return version;
  }
  throw new Error(`${file} requires no ${module}`);
}

/** The directory of what go.mod, this Go and this machine make. */
async function target({ directory, name, isStatic = false }: GoModule, linkerFlags: string): Promise<string> {
  const { stdout } = await promisify(execFile)('go', ['env', 'GOVERSION', 'GOOS', 'GOARCH'], {
    cwd: directory,
    env: environment(),
  });
  const hash = createHash('sha256')
    .update(stdout)
    .update(linkerFlags)
    .update(isStatic ? 'static' : '');
  for (const file of ['go.mod', 'go.sum']) hash.update(readFileSync(join(directory, file)));
  const cache = process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache');
  return join(cache, 'cgroute', name, hash.digest('hex').slice(0, 16));
}

/** The first line that a program prints. */
function firstLine(child: ChildProcess): Promise<string | undefined> {
  const { promise, resolve } = Promise.withResolvers<string | undefined>();
  child.once('error', () => resolve(undefined));
  child.once('exit', () => resolve(undefined));
  if (child.stdout !== null) createInterface({ input: child.stdout }).once('line', resolve);
  return promise;
}

/** Runs `work` while this process alone holds the lock; a holder that dies lets go of it. */
async function locked<T>(file: string, say: Say, work: () => Promise<T>): Promise<T> {
  const hold = (...flags: string[]): ChildProcess =>
    spawn('flock', [...flags, file, 'sh', '-c', 'echo held; exec cat >/dev/null'], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
  let holder = hold('--nonblock');
  if ((await firstLine(holder)) === undefined) {
    say('waiting for another build on this machine');
    holder = hold();
    if ((await firstLine(holder)) === undefined)
      throw new Error(`cannot lock ${file}; is flock (Debian: util-linux) there?`);
  }
  try {
    return await work();
  } finally {
    holder.stdin?.end();
  }
}

/** Builds one program; every 15 seconds it tells how far it is. */
async function build(
  name: string,
  from: string,
  to: string,
  linkerFlags: string,
  { directory, isStatic }: GoModule,
  say: Say,
): Promise<void> {
  const started = performance.now();
  // `-v` names each package when it has been compiled.
  const args = ['build', '-v', '-mod=readonly', '-trimpath', '-ldflags', linkerFlags, '-o', to, from];
  const child = spawn('go', args, {
    cwd: directory,
    env: environment(isStatic),
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const lines: string[] = [];
  createInterface({ input: child.stderr }).on('line', (line) => lines.push(line));
  const seconds = (): number => Math.round((performance.now() - started) / 1000);
  const progress = (): void =>
    say(`${name}: ${seconds()} s, ${lines.length} packages so far, last ${lines.at(-1) ?? 'none'}`);
  const timer = setInterval(progress, PROGRESS_MS);
  const code = await new Promise<number | null>((resolve) => {
    child.once('error', (error) => {
      lines.push(error.message);
      resolve(127);
    });
    child.once('close', resolve);
  });
  clearInterval(timer);
  if (code !== 0) throw new Error(`go build ${from} exited with ${code}\n${lines.slice(-20).join('\n')}`);
  say(`${name} is built, ${seconds()} s`);
}

/**
 * The directory with the module's programs; builds them when they are not there,
 * which takes some minutes. Fine to call from two processes.
 */
export async function goPrograms(module: GoModule, sayRaw: Say = toStandardError): Promise<string> {
  const { linkerFlags = '-s -w' } = module;
  const say: Say = (line) => sayRaw(`${module.name} tools: ${line}`);
  const directory = await target(module, linkerFlags);
  if (existsSync(directory)) return directory;
  mkdirSync(join(directory, '..'), { recursive: true });
  return locked(`${directory}.lock`, say, async () => {
    if (existsSync(directory)) return directory; // the other one has built it
    const unfinished = `${directory}.new`;
    rmSync(unfinished, { recursive: true, force: true });
    mkdirSync(unfinished);
    say(`building ${module.title} into ${directory}; some minutes, this once`);
    for (const [name, from] of Object.entries(module.programs))
      await build(name, from, join(unfinished, name), linkerFlags, module, say);
    writeFileSync(join(unfinished, 'VERSION'), `${module.version}\n`);
    renameSync(unfinished, directory);
    return directory;
  });
}
