/**
 * Builds etcd, kube-apiserver and kubectl from the modules in go.mod, once for a
 * machine: into the cache, where the tests find them from then on.
 *
 * `node test/kube/tools/build.ts` does it by hand; `npm test` when it needs them.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';

const HERE = import.meta.dirname;

/** The programs by the packages that they are built from. */
const PROGRAMS = {
  etcd: 'go.etcd.io/etcd/server/v3',
  kubectl: 'k8s.io/kubernetes/cmd/kubectl',
  'kube-apiserver': 'k8s.io/kubernetes/cmd/kube-apiserver',
} as const;

/** With the places where Go's own distribution and Debian put it, which a shell that came by `su` may not look into. */
const GO_PATH = `${process.env['PATH'] ?? ''}:/usr/local/go/bin:/usr/lib/go/bin`;
const PROGRESS_MS = 15_000;

export type Say = (line: string) => void;

/** Standard output is for the result. */
const toStandardError: Say = (line) => void process.stderr.write(`${line}\n`);

function environment(): NodeJS.ProcessEnv {
  return { HOME: homedir(), ...process.env, PATH: GO_PATH, GOWORK: 'off' };
}

/** Whether there is a Go to build with. */
export function hasGo(): boolean {
  return GO_PATH.split(':').some((directory) => directory !== '' && existsSync(join(directory, 'go')));
}

/** The release of Kubernetes in go.mod, `v1.36.3`. */
function release(): string {
  const [, version] = /^\s*k8s\.io\/kubernetes (v\S+)/m.exec(readFileSync(join(HERE, 'go.mod'), 'utf8')) ?? [];
  if (version === undefined) throw new Error(`${join(HERE, 'go.mod')} requires no k8s.io/kubernetes`);
  return version;
}

/** Without these it calls itself `v0.0.0-master+$Format:%H$`, which clients cannot read. */
function linkerFlags(version: string): string {
  const [, major = '', minor = ''] = /^v(\d+)\.(\d+)/.exec(version) ?? [];
  const facts = { gitVersion: version, gitMajor: major, gitMinor: minor, gitCommit: 'unknown' };
  return ['-s -w', ...Object.entries(facts).map(([name, value]) => `-X k8s.io/component-base/version.${name}=${value}`)].join(' ');
}

/** The directory of what go.mod, this Go and this machine make. */
async function target(): Promise<string> {
  const { stdout } = await promisify(execFile)('go', ['env', 'GOVERSION', 'GOOS', 'GOARCH'], { cwd: HERE, env: environment() });
  const hash = createHash('sha256').update(stdout).update(linkerFlags(release()));
  for (const name of ['go.mod', 'go.sum']) hash.update(readFileSync(join(HERE, name)));
  const cache = process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache');
  return join(cache, 'cgroute', 'kube', hash.digest('hex').slice(0, 16));
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
    spawn('flock', [...flags, file, 'sh', '-c', 'echo held; exec cat >/dev/null'], { stdio: ['pipe', 'pipe', 'inherit'] });
  let holder = hold('--nonblock');
  if ((await firstLine(holder)) === undefined) {
    say('kube tools: waiting for another build on this machine');
    holder = hold();
    if ((await firstLine(holder)) === undefined) throw new Error(`cannot lock ${file}; is flock (Debian: util-linux) there?`);
  }
  try {
    return await work();
  } finally {
    holder.stdin?.end();
  }
}

/** Builds one program; every 15 seconds it tells how far it is. */
async function build(name: string, from: string, to: string, version: string, say: Say): Promise<void> {
  const started = performance.now();
  // `-v` names each package when it has been compiled.
  const args = ['build', '-v', '-mod=readonly', '-trimpath', '-ldflags', linkerFlags(version), '-o', to, from];
  const child = spawn('go', args, { cwd: HERE, env: environment(), stdio: ['ignore', 'ignore', 'pipe'] });
  const lines: string[] = [];
  createInterface({ input: child.stderr }).on('line', (line) => lines.push(line));
  const seconds = (): number => Math.round((performance.now() - started) / 1000);
  const progress = (): void => say(`kube tools: ${name}: ${seconds()} s, ${lines.length} packages so far, last ${lines.at(-1) ?? 'none'}`);
  const timer = setInterval(progress, PROGRESS_MS);
  const code = await new Promise<number | null>((resolve) => {
    child.once('error', (error) => {
      lines.push(error.message);
      resolve(127);
    });
    child.once('close', resolve);
  });
  clearInterval(timer);
  if (code !== 0) throw new Error(`kube tools: go build ${from} exited with ${code}\n${lines.slice(-20).join('\n')}`);
  say(`kube tools: ${name} is built, ${seconds()} s`);
}

/**
 * The directory with `etcd`, `kube-apiserver` and `kubectl`; builds them when
 * they are not there, which takes some minutes. Fine to call from two processes.
 */
export async function buildTools(say: Say = toStandardError): Promise<string> {
  const directory = await target();
  if (existsSync(directory)) return directory;
  mkdirSync(join(directory, '..'), { recursive: true });
  return locked(`${directory}.lock`, say, async () => {
    if (existsSync(directory)) return directory; // the other one has built it
    const version = release();
    const unfinished = `${directory}.new`;
    rmSync(unfinished, { recursive: true, force: true });
    mkdirSync(unfinished);
    say(`kube tools: building etcd, kubectl and kube-apiserver of Kubernetes ${version} into ${directory}; some minutes, this once`);
    for (const [name, from] of Object.entries(PROGRAMS)) await build(name, from, join(unfinished, name), version, say);
    writeFileSync(join(unfinished, 'VERSION'), `${version}\n`);
    renameSync(unfinished, directory);
    return directory;
  });
}

if (import.meta.main) console.log(await buildTools());
