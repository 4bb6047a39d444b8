/** The real node's root file system: Debian with systemd, containerd, runc and CNI's plugins, a kubelet, and one image for all the test's pods. */
import { execFile, execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { SOCK } from '../../../deploy/stage/sock.ts';
import { mirror } from '../debian.ts';
import { makeExt4 } from '../kernel.ts';
import { makeArchive } from './archive.ts';

const exec = promisify(execFile);
const GUEST = join(import.meta.dirname, 'guest');

export const SUITE = 'trixie';
/** With what Debian makes of `minbase`. */
const PACKAGES = [
  'systemd',
  'systemd-sysv',
  'dbus',
  'containerd',
  'runc',
  'containernetworking-plugins',
  'iproute2',
  'mount',
  'procps',
  'busybox-static',
  'haproxy',
];
const NOT_UNPACKED = ['/usr/share/doc/*', '/usr/share/man/*', '/usr/share/locale/*', '/usr/share/info/*'];

/** Where the files of guest/ go. */
const PLACES: Readonly<Record<string, string>> = {
  'init.sh': '/guest/init.sh',
  'prepare.sh': '/usr/local/sbin/node-prepare',
  'images.sh': '/usr/local/sbin/node-images',
  'cgroup-driver.sh': '/usr/local/sbin/cgroup-driver',
  'containerd.toml': '/etc/node/containerd.toml',
  'kubelet.yaml': '/etc/node/kubelet.yaml',
  'bridge.conflist': '/etc/cni/net.d/10-bridge.conflist',
  'node-prepare.service': '/etc/systemd/system/node-prepare.service',
  'node-images.service': '/etc/systemd/system/node-images.service',
  'node-journal.service': '/etc/systemd/system/node-journal.service',
  'kubelet.service': '/etc/systemd/system/kubelet.service',
};
const ENABLED: Readonly<Record<string, string>> = {
  'node-prepare.service': 'multi-user',
  'node-images.service': 'multi-user',
  'kubelet.service': 'multi-user',
  'containerd.service': 'multi-user',
  'node-journal.service': 'sysinit',
};
/** Nobody logs in, and nothing is up to date for longer than a test. */
const MASKED = [
  'serial-getty@ttyS0.service',
  'getty.target',
  'console-getty.service',
  'systemd-logind.service',
  'e2scrub_reap.service',
  'e2scrub_all.timer',
  'apt-daily.timer',
  'apt-daily-upgrade.timer',
  'dpkg-db-backup.timer',
  'fstrim.timer',
  'logrotate.timer',
  'haproxy.service',
  'systemd-pcrphase.service',
  'systemd-random-seed.service',
  'systemd-update-utmp.service',
  'ldconfig.service',
  'systemd-hwdb-update.service',
];

/** The image of all pods, and of their sandboxes. */
export const POD_IMAGE = 'localhost/node:1';
/** Bytes that the guest can write: what it makes of the images. */
const SPARE_BYTES = 1536 << 20;

export interface NodeRoot {
  readonly image: string;
  /** Name and version of the packages that make a node. */
  readonly versions: Readonly<Record<string, string>>;
}

/** Makes it, once for each version of what goes in. */
export async function prepareRoot(
  kubelet: string,
  cache: string,
  say: (line: string) => void,
): Promise<NodeRoot> {
  const hash = createHash('sha256')
    .update(JSON.stringify([SUITE, PACKAGES, NOT_UNPACKED, PLACES, ENABLED, MASKED, SPARE_BYTES]))
    .update(dirname(kubelet));
  for (const name of readdirSync(GUEST).sort()) hash.update(name).update(readFileSync(join(GUEST, name)));
  for (const file of [SOCK, import.meta.filename, join(import.meta.dirname, 'archive.ts')])
    hash.update(readFileSync(file));
  const directory = join(cache, `node-${hash.digest('hex').slice(0, 16)}`);
  if (!existsSync(directory)) {
    const base = await prepareBase(cache, say);
    const unfinished = `${directory}.${process.pid}`;
    rmSync(unfinished, { recursive: true, force: true });
    mkdirSync(unfinished, { recursive: true });
    try {
      const tree = join(unfinished, 'tree');
      mkdirSync(tree);
      await exec('tar', ['-xf', base, '-C', tree]);
      writeFileSync(join(unfinished, 'versions.json'), JSON.stringify(await versionsIn(tree)));
      furnish(tree, kubelet);
      makePodImage(tree, join(tree, 'usr/local/share/node/node.tar'));
      makeExt4(tree, join(unfinished, 'root.ext4'), SPARE_BYTES);
      rmSync(tree, { recursive: true });
      for (const name of readdirSync(cache))
        if (/^node-[0-9a-f]{16}$/.test(name)) rmSync(join(cache, name), { recursive: true });
      renameSync(unfinished, directory);
    } finally {
      rmSync(unfinished, { recursive: true, force: true });
    }
  }
  return {
    image: join(directory, 'root.ext4'),
    versions: JSON.parse(readFileSync(join(directory, 'versions.json'), 'utf8')) as Readonly<
      Record<string, string>
    >,
  };
}

/** Debian itself as an archive: what takes long, and changes seldom. */
async function prepareBase(cache: string, say: (line: string) => void): Promise<string> {
  const name = createHash('sha256')
    .update(JSON.stringify([SUITE, PACKAGES, NOT_UNPACKED]))
    .digest('hex')
    .slice(0, 16);
  const file = join(cache, `node-base-${name}.tar`);
  if (existsSync(file)) return file;
  say(`Debian ${SUITE} with ${PACKAGES.join(', ')}: a minute, this once`);
  const options = [
    '--quiet',
    '--variant=minbase',
    `--include=${PACKAGES.join(',')}`,
    '--aptopt=Apt::Install-Recommends "false"',
    ...NOT_UNPACKED.map((path) => `--dpkgopt=path-exclude=${path}`),
  ];
  const unfinished = `${file}.${process.pid}.tar`;
  try {
    await exec('mmdebstrap', [...options, SUITE, unfinished, await mirror()], { maxBuffer: 64 << 20 });
    for (const other of readdirSync(cache))
      if (/^node-base-[0-9a-f]{16}\.tar$/.test(other)) rmSync(join(cache, other));
    renameSync(unfinished, file);
  } finally {
    rmSync(unfinished, { force: true });
  }
  return file;
}

async function versionsIn(tree: string): Promise<Record<string, string>> {
  const { stdout } = await exec('dpkg-query', [
    `--admindir=${tree}/var/lib/dpkg`,
    '-W',
    '-f',
    '${Package} ${Version}\n',
    'systemd',
    'containerd',
    'runc',
    'containernetworking-plugins',
    'haproxy',
  ]);
  return Object.fromEntries(
    stdout
      .trim()
      .split('\n')
      .map((line) => line.split(' ') as [string, string]),
  );
}

function furnish(tree: string, kubelet: string): void {
  const place = (path: string): string => {
    const to = join(tree, path);
    mkdirSync(dirname(to), { recursive: true });
    rmSync(to, { force: true });
    return to;
  };
  for (const [name, path] of Object.entries(PLACES)) {
    copyFileSync(join(GUEST, name), place(path));
    if (name.endsWith('.sh')) chmodSync(join(tree, path), 0o755);
  }
  for (const [from, to] of [
    [kubelet, 'usr/local/bin/kubelet'],
    [SOCK, 'usr/local/bin/sock'],
  ] as const) {
    copyFileSync(from, place(to));
    chmodSync(join(tree, to), 0o755);
  }
  for (const [unit, target] of Object.entries(ENABLED)) {
    const from = existsSync(join(tree, 'etc/systemd/system', unit))
      ? '/etc/systemd/system'
      : '/usr/lib/systemd/system';
    symlinkSync(join(from, unit), place(`etc/systemd/system/${target}.target.wants/${unit}`));
  }
  for (const unit of MASKED) symlinkSync('/dev/null', place(`etc/systemd/system/${unit}`));
  symlinkSync('/usr/lib/systemd/system/multi-user.target', place('etc/systemd/system/default.target'));
  // Its index of modules is busybox's, which kmod cannot read.
  symlinkSync('/usr/bin/busybox', place('usr/sbin/modprobe'));
  for (const path of ['data', 'usr/lib/modules', 'etc/kubernetes/manifests'])
    mkdirSync(join(tree, path), { recursive: true });
  writeFileSync(place('etc/hostname'), 'node\n');
  writeFileSync(place('etc/machine-id'), `${'c'.repeat(32)}\n`);
  writeFileSync(place('etc/fstab'), '');
  writeFileSync(place('etc/resolv.conf'), '');
}

/** busybox, the socket tool, and HAProxy with its libraries. */
function makePodImage(tree: string, archive: string): void {
  const root = `${tree}.image`;
  try {
    for (const path of ['bin', 'sbin', 'tmp', 'etc', 'proc', 'sys', 'dev', 'run', 'var/lib/haproxy'])
      mkdirSync(join(root, path), { recursive: true });
    const copy = (from: string, to: string): void => {
      mkdirSync(dirname(join(root, to)), { recursive: true });
      copyFileSync(from, join(root, to));
      chmodSync(join(root, to), 0o755);
    };
    copy(join(tree, 'usr/bin/busybox'), 'bin/busybox');
    for (const applet of execFileSync('chroot', [tree, 'busybox', '--list'], { encoding: 'utf8' }).split(
      '\n',
    )) {
      if (applet !== '' && applet !== 'busybox') symlinkSync('/bin/busybox', join(root, 'bin', applet));
    }
    copy(SOCK, 'bin/sock');
    copy(join(tree, 'usr/sbin/haproxy'), 'bin/haproxy');
    const linked = execFileSync('chroot', [tree, 'ldd', '/usr/sbin/haproxy'], { encoding: 'utf8' });
    for (const [, library = ''] of linked.matchAll(/(?:=> )?(\/\S+) \(0x/g))
      copy(join(tree, library), library);
    writeFileSync(join(root, 'etc/passwd'), 'root:x:0:0:root:/:/bin/sh\n');
    mkdirSync(dirname(archive), { recursive: true });
    makeArchive(root, archive, POD_IMAGE, ['/bin/sleep', 'infinity']);
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}
