/**
 * The guests' root file system: this machine's own programs with their libraries,
 * the project as it is built, and its Node. Guests write to a copy that QEMU
 * throws away, so one image serves all of them.
 */
import { execFileSync } from 'node:child_process';
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { stripTypeScriptTypes } from 'node:module';
import { basename, dirname, join, relative, resolve } from 'node:path';
import { makeExt4 } from './kernel.ts';

const root = resolve(import.meta.dirname, '../..');

/** Where the project is in the guest. */
export const GUEST_PROJECT = '/cgroute';

/** Of this machine; what else a script may call is busybox's. */
const COMMANDS = [
  'sh',
  'bash',
  'mount',
  'umount',
  'nsenter',
  'unshare',
  'setpriv',
  'prlimit',
  'flock',
  'ip',
  'tc',
  'sysctl',
  'ps',
  'kill',
  'stat',
  'cat',
  'sleep',
  'true',
  'rm',
  'mkdir',
  'chroot',
  'env',
  'timeout',
  'stty',
  'bpftool',
  'haproxy',
  'runc',
  'openssl',
  'busybox',
  'iptables',
  'ip6tables',
  'iptables-save',
  'ip6tables-save',
  'iptables-restore',
  'ip6tables-restore',
  ...['iptables', 'ip6tables'].flatMap((tool) =>
    ['nft', 'legacy'].flatMap((backend) =>
      ['', '-save', '-restore'].map((verb) => `${tool}-${backend}${verb}`),
    ),
  ),
];
/** Opened by name at run time, so that no program's header tells of them. */
const LIBRARIES = ['libbpf.so.1', 'libnss_files.so.2'];
const PLUGINS = ['xtables'];
/** Of the project: what the agent and the live tests read. */
const PROJECT = [
  'package.json',
  'cgroute.ts',
  'bpf',
  'native',
  'watcher',
  'mapper',
  'deploy',
  'test',
  'docs',
  'dist',
];
/** Of node_modules: all but the compilers, and Node, of which the program alone is taken. */
const LEFT_OUT = /^(?:@types|@typescript|typescript|@esbuild|esbuild|node-linux-.*|\.bin)$/;

const SPARE_BYTES = 512 << 20;
const PATH = `${process.env['PATH']}:/usr/local/sbin:/usr/sbin:/sbin`;

function which(command: string): string | undefined {
  // Node's own modules folder is no place of the machine's.
  return PATH.split(':')
    .filter((directory) => !directory.includes('node_modules'))
    .map((directory) => join(directory, command))
    .find((path) => existsSync(path));
}

/** The libraries that a program is linked with, and its loader. */
function linked(program: string): string[] {
  try {
    const text = execFileSync('ldd', [program], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
    return [...text.matchAll(/(?:=> )?(\/\S+) \(0x/g)].map(([, path]) => path ?? '');
  } catch {
    return []; // static, or a script
  }
}

/** As /usr/bin and /usr/lib, whichever of both names the machine uses. */
const inUsr = (path: string): string => (/^\/(?:bin|sbin|lib|lib64)\//.test(path) ? `/usr${path}` : path);

function copyFile(tree: string, path: string): void {
  const to = join(tree, inUsr(path));
  if (existsSync(to)) return;
  mkdirSync(dirname(to), { recursive: true });
  copyFileSync(realpathSync(path), to);
}

function copyWithLibraries(tree: string, path: string): void {
  copyFile(tree, path);
  for (const library of linked(path)) copyFile(tree, library);
}

function copyMachine(tree: string): string[] {
  const missing: string[] = [];
  for (const name of ['bin', 'sbin', 'lib', 'lib64']) {
    mkdirSync(join(tree, 'usr', name), { recursive: true });
    symlinkSync(`usr/${name}`, join(tree, name));
  }
  for (const name of [
    'proc',
    'sys',
    'dev',
    'run',
    'tmp',
    'root',
    'mnt',
    'etc',
    'var/lib',
    'var/run',
    'usr/lib/modules',
    'guest',
  ])
    mkdirSync(join(tree, name), { recursive: true });
  for (const command of COMMANDS) {
    const path = which(command);
    if (path === undefined) missing.push(command);
    else copyWithLibraries(tree, path);
  }
  const directories = ['/usr/lib/x86_64-linux-gnu', '/lib/x86_64-linux-gnu', '/usr/lib64', '/usr/lib'];
  for (const library of LIBRARIES) {
    const path = directories.map((directory) => join(directory, library)).find((name) => existsSync(name));
    if (path !== undefined) copyWithLibraries(tree, path);
  }
  for (const plugin of PLUGINS) {
    const path = directories.map((directory) => join(directory, plugin)).find((name) => existsSync(name));
    if (path !== undefined) for (const name of readdirSync(path)) copyWithLibraries(tree, join(path, name));
  }
  for (const applet of execFileSync('busybox', ['--list-full'], { encoding: 'utf8' })
    .split('\n')
    .filter(Boolean)) {
    const there = ['bin', 'sbin'].some((name) => existsSync(join(tree, 'usr', name, basename(applet))));
    if (!there) symlinkSync('/usr/bin/busybox', join(tree, 'usr/bin', basename(applet)));
  }
  symlinkSync('/usr/bin/busybox', join(tree, 'usr/sbin/modprobe'));
  writeFileSync(
    join(tree, 'etc/passwd'),
    'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n',
  );
  writeFileSync(join(tree, 'etc/group'), 'root:x:0:\nnogroup:x:65534:\n');
  writeFileSync(join(tree, 'etc/hosts'), '127.0.0.1 localhost guest\n::1 localhost\n');
  return missing;
}

function copyProject(tree: string): void {
  const to = join(tree, GUEST_PROJECT);
  for (const name of PROJECT) {
    if (existsSync(join(root, name)))
      cpSync(join(root, name), join(to, name), {
        recursive: true,
        filter: (path) => !/\/dist\/(?:\.stamps|test\/(?:logs|other|release))$|\/vmlinux\.h$/.test(path),
      });
  }
  const modules = join(root, 'node_modules');
  for (const name of readdirSync(modules)) {
    if (!LEFT_OUT.test(name))
      cpSync(join(modules, name), join(to, 'node_modules', name), {
        recursive: true,
        verbatimSymlinks: true,
      });
  }
  copyFileSync(process.execPath, join(tree, 'usr/bin/node'));
  for (const library of linked(process.execPath)) copyFile(tree, library);
  mkdirSync(join(to, 'node_modules/.bin'), { recursive: true });
  symlinkSync('/usr/bin/node', join(to, 'node_modules/.bin/node'));
  strip(to);
}

/**
 * Beside each `x.ts` its JavaScript, `x.ts.js`, which guest/ready-made.mjs loads
 * in its place: under emulation Node needs a second for what it strips here in
 * some milliseconds.
 */
function strip(project: string): void {
  const sources = readdirSync(project, { recursive: true, encoding: 'utf8' }).filter(
    (name) => name.endsWith('.ts') && !name.endsWith('.d.ts') && !name.startsWith('node_modules'),
  );
  for (const name of sources) {
    const path = join(project, name);
    writeFileSync(`${path}.js`, stripTypeScriptTypes(readFileSync(path, 'utf8'), { mode: 'strip' }));
  }
}

/**
 * Makes the image. Returns the programs that this machine lacks.
 * @param main what a guest runs, a shell script; it is in /guest with all that is in test/matrix/guest
 */
export function makeImage(image: string, main: string): string[] {
  const tree = mkdtempSync(join(dirname(image), 'image-'));
  try {
    const missing = copyMachine(tree);
    copyProject(tree);
    cpSync(join(import.meta.dirname, 'guest'), join(tree, 'guest'), { recursive: true });
    execFileSync('chmod', ['0755', join(tree, 'guest/init.sh'), tree]);
    writeFileSync(join(tree, 'guest/main.sh'), main);
    makeExt4(tree, image, SPARE_BYTES);
    return missing;
  } finally {
    rmSync(tree, { recursive: true, force: true });
  }
}

/** A file of the project as the guest names it. */
export const inGuest = (path: string): string => join(GUEST_PROJECT, relative(root, path));
