/** Debian's cloud kernels, made ready for QEMU: the kernel, an initramfs that finds the disk, a disk with its modules. */
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { openSuite } from './debian.ts';

export interface KernelChoice {
  /** `5.10`; `newest` is whatever sid has. */
  readonly name: string;
  /** The Debian release that it comes from. */
  readonly suite: string;
  /** What it needs on its command line. */
  readonly kernelArguments?: string;
}

/**
 * cmpxchg16b, with which the allocator of these kernels fails in QEMU 7.2; programs,
 * HAProxy for one, go on using it. The newest does well with it, and not without:
 * there bpf_sk_storage_get() could make nothing.
 */
const WITHOUT_CX16 = 'clearcpuid=141';

export const KERNELS: readonly KernelChoice[] = [
  { name: '5.10', suite: 'bullseye', kernelArguments: WITHOUT_CX16 },
  { name: '6.1', suite: 'bookworm', kernelArguments: WITHOUT_CX16 },
  { name: '6.12', suite: 'trixie', kernelArguments: WITHOUT_CX16 },
  { name: 'newest', suite: 'sid' },
];

export interface Kernel extends KernelChoice {
  /** As `uname -r` says: `6.1.0-50-cloud-amd64`. */
  readonly release: string;
  /** The package's: `6.1.176-1`. */
  readonly version: string;
  readonly vmlinuz: string;
  readonly initramfs: string;
  /** An ext4 image for /usr/lib/modules. */
  readonly modules: string;
}

/** Meta-package of each suite. */
const PACKAGE = 'linux-image-cloud-amd64';

/** What guests use of a kernel's modules; the rest would only take time to unpack. */
const MODULES = [
  'arch',
  'crypto',
  'lib',
  'net',
  'fs/overlayfs',
  'fs/fuse',
  'fs/squashfs',
  'drivers/block',
  'drivers/char',
  'drivers/net',
  'drivers/virtio',
];
/** What the initramfs needs to see a virtio disk. */
const DISK = ['drivers/virtio', 'drivers/block'];

/**
 * Fetches and prepares a kernel, once for each version.
 * @throws Error when it is neither in the cache nor to be had
 */
export async function prepareKernel(choice: KernelChoice, cache: string): Promise<Kernel> {
  const suite = await openSuite(choice.suite, join(cache, 'apt', choice.suite));
  const version = await suite.version(PACKAGE);
  const image = (await suite.dependencies(PACKAGE)).find((name) => /^linux-image-\d/.test(name));
  if (version === undefined || image === undefined)
    throw new Error(`Debian ${choice.suite} has no ${PACKAGE}`);
  const release = image.slice('linux-image-'.length);
  const directory = join(cache, `${release}_${version}`);
  if (!existsSync(directory)) {
    const unfinished = `${directory}.${process.pid}`;
    rmSync(unfinished, { recursive: true, force: true });
    mkdirSync(unfinished, { recursive: true });
    // Newer releases split the image into binary and modules.
    const parts = (await suite.dependencies(image)).filter((name) => /^linux-(?:binary|modules)-/.test(name));
    await suite.unpack([image, ...parts], join(unfinished, 'tree'));
    make(unfinished, release);
    rmSync(join(unfinished, 'tree'), { recursive: true });
    renameSync(unfinished, directory);
  }
  return {
    ...choice,
    release,
    version,
    vmlinuz: join(directory, 'vmlinuz'),
    initramfs: join(directory, 'initramfs'),
    modules: join(directory, 'modules.ext4'),
  };
}

function make(directory: string, release: string): void {
  const tree = join(directory, 'tree');
  const from = [`usr/lib/modules/${release}`, `lib/modules/${release}`]
    .map((path) => join(tree, path))
    .find((path) => existsSync(path));
  const vmlinuz = [join(tree, `boot/vmlinuz-${release}`), join(from ?? '', 'vmlinuz')].find((path) =>
    existsSync(path),
  );
  if (from === undefined || vmlinuz === undefined)
    throw new Error(`the package of ${release} has no vmlinuz or no modules where they are expected`);
  copyFileSync(vmlinuz, join(directory, 'vmlinuz'));
  const modules = join(directory, 'modules');
  copyModules(from, join(modules, release), MODULES);
  depmod(modules, release);
  makeExt4(modules, join(directory, 'modules.ext4'), 0);
  rmSync(modules, { recursive: true });
  makeInitramfs(directory, from, release);
}

function copyModules(from: string, to: string, folders: readonly string[]): void {
  mkdirSync(join(to, 'kernel'), { recursive: true });
  for (const folder of folders) {
    if (!existsSync(join(from, 'kernel', folder))) continue;
    mkdirSync(join(to, 'kernel', folder), { recursive: true });
    execFileSync('cp', ['-a', `${from}/kernel/${folder}/.`, join(to, 'kernel', folder)]);
  }
  for (const name of ['modules.builtin', 'modules.builtin.modinfo', 'modules.order'])
    if (existsSync(join(from, name))) copyFileSync(join(from, name), join(to, name));
  // So that any modprobe can load them.
  const packed = readdirSync(to, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ko.xz'))
    .map((name) => join(to, name));
  for (let i = 0; i < packed.length; i += 200) execFileSync('busybox', ['unxz', ...packed.slice(i, i + 200)]);
}

/** busybox's takes the directory that has the modules, in which it looks for lib/modules. */
function depmod(modules: string, release: string): void {
  const root = `${modules}.root`;
  mkdirSync(join(root, 'lib'), { recursive: true });
  symlinkSync(modules, join(root, 'lib/modules'));
  execFileSync('busybox', ['depmod', '-b', root, release], { stdio: ['ignore', 'ignore', 'inherit'] });
  rmSync(root, { recursive: true });
}

/** @param spare bytes to be left free */
export function makeExt4(directory: string, image: string, spare: number): void {
  const kib = Number(execFileSync('du', ['-sk', directory], { encoding: 'utf8' }).split('\t')[0]);
  const size = Math.ceil(kib * 1.15) + 16 * 1024 + Math.ceil(spare / 1024);
  rmSync(image, { force: true });
  execFileSync(
    'mke2fs',
    [
      '-q',
      '-t',
      'ext4',
      '-O',
      '^has_journal,^metadata_csum',
      '-E',
      'root_owner=0:0',
      '-d',
      directory,
      image,
      `${size}k`,
    ],
    {
      stdio: ['ignore', 'ignore', 'inherit'],
      env: { ...process.env, PATH: `${process.env['PATH']}:/usr/sbin:/sbin` },
    },
  );
}

function makeInitramfs(directory: string, from: string, release: string): void {
  const tree = join(directory, 'initramfs.tree');
  for (const name of ['bin', 'dev', 'proc', 'sys', 'root', 'lib/modules'])
    mkdirSync(join(tree, name), { recursive: true });
  copyModules(from, join(tree, 'lib/modules', release), DISK);
  depmod(join(tree, 'lib/modules'), release);
  copyFileSync(
    execFileSync('sh', ['-c', 'command -v busybox'], { encoding: 'utf8' }).trim(),
    join(tree, 'bin/busybox'),
  );
  writeFileSync(join(tree, 'init'), readFileSync(join(import.meta.dirname, 'guest/initramfs.sh')));
  chmodSync(join(tree, 'init'), 0o755);
  execFileSync('sh', [
    '-c',
    'cd "$1" && find . | busybox cpio -o -H newc >"$2" 2>/dev/null',
    'sh',
    tree,
    join(directory, 'initramfs'),
  ]);
  rmSync(tree, { recursive: true });
}
