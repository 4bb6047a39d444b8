/**
 * A program as a container runtime starts it on a node, by runc: few
 * capabilities, containerd's seccomp profile, masked parts of /proc, a read-only
 * root file system, no new privileges, and hostPath mounts of the node's cgroup2
 * and BPF file systems.
 *
 * The node is a sandbox: of the BPF file system the container sees the sandbox's.
 */
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { cgroup2Mount } from '../../deploy/stage/cgroup.ts';
import { type Program, run } from '../../deploy/stage/process.ts';
import { runc } from './runc.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';

export interface Confinement {
  /** As Kubernetes names them, `NET_ADMIN`; everything else is dropped. */
  readonly capabilities: readonly string[];
  /** False: a PID namespace of its own. @default true, `hostPID` */
  readonly hostPid?: boolean;
  /** Name of a network namespace. Default: the machine's, `hostNetwork`. */
  readonly netns?: string;
  /** Default: {@link machineRoot} with the project in it, at /opt/cgroute. */
  readonly root?: string;
  /** More directories and files of the machine, by the place where they appear. */
  readonly mounts?: Readonly<Record<string, { readonly source: string; readonly writable?: boolean }>>;
  readonly env?: Readonly<Record<string, string>>;
}

export interface Confined {
  readonly id: string;
  /** The sandbox's watched root, as the container sees it. */
  readonly cgroupRoot: string;
  /** `runc run` of a command in the container; it ends when the command does, and passes signals on. */
  program(args: readonly string[]): Program;
  /** Another command in it while it runs, as `kubectl exec` starts it. */
  exec(args: readonly string[]): Program;
  /** SIGKILL for all that runs in it, as by the kernel's OOM killer; the container is removed. */
  kill(): Promise<void>;
}

const project = resolve(import.meta.dirname, '../..');

/** Where the project is in {@link machineRoot}. */
export const PROJECT = '/opt/cgroute';

const MASKED = [
  '/proc/acpi',
  '/proc/asound',
  '/proc/kcore',
  '/proc/keys',
  '/proc/latency_stats',
  '/proc/timer_list',
  '/proc/timer_stats',
  '/proc/sched_debug',
  '/sys/firmware',
  '/sys/devices/virtual/powercap',
  '/proc/scsi',
];
const READ_ONLY = ['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger'];
/** Where programs and libraries are, on this machine too. */
const PROGRAMS = ['usr', 'bin', 'sbin', 'lib', 'lib64'];
const PLACES = ['proc', 'sys', 'dev', 'tmp', 'etc', 'opt', 'run'];

interface Profile {
  readonly defaultAction: string;
  readonly syscalls: readonly unknown[];
  readonly byCapability: Readonly<Record<string, readonly string[]>>;
}

/** containerd's default for a container with these capabilities. */
function seccomp(capabilities: readonly string[]): unknown {
  const { defaultAction, syscalls, byCapability } = JSON.parse(
    readFileSync(join(import.meta.dirname, 'seccomp.json'), 'utf8'),
  ) as Profile;
  const names = capabilities.flatMap((capability) => byCapability[capability] ?? []);
  return {
    defaultAction,
    syscalls: [...syscalls, ...(names.length === 0 ? [] : [{ names, action: 'SCMP_ACT_ALLOW' }])],
  };
}

interface Mount {
  readonly destination: string;
  readonly type?: string;
  readonly source: string;
  readonly options?: readonly string[];
}

/** Without what is mounted further down in it. */
const bind = (source: string, destination: string, writable = false): Mount => ({
  destination,
  type: 'bind',
  source,
  options: ['bind', writable ? 'rw' : 'ro', 'rprivate'],
});

/** A directory with what a link of this machine's root needs, and the mounts that fill the rest. */
function machineRoot(root: string): { readonly root: string; readonly mounts: readonly Mount[] } {
  const mounts: Mount[] = [];
  mkdirSync(join(root, PROJECT), { recursive: true });
  for (const name of PROGRAMS) {
    const source = `/${name}`;
    if (!existsSync(source)) continue;
    if (lstatSync(source).isSymbolicLink()) {
      symlinkSync(readlinkSync(source), join(root, name));
    } else {
      mkdirSync(join(root, name));
      mounts.push(bind(source, source));
    }
  }
  return { root, mounts: [...mounts, bind(project, PROJECT)] };
}

let made = 0;

/** Prepares a container in a pod's cgroup below the sandbox's root. */
export function confine(sandbox: Sandbox, cgroupPath: string, options: Confinement): Confined {
  const id = `confined-${++made}`;
  const bundle = sandbox.file(`bundle-${id}`);
  mkdirSync(bundle, { recursive: true });
  const own =
    options.root === undefined ? machineRoot(sandbox.file(`root-${id}`)) : { root: options.root, mounts: [] };
  for (const place of PLACES) mkdirSync(join(own.root, place), { recursive: true });
  const extra = Object.entries(options.mounts ?? {}).map(([place, { source, writable }]) => {
    // runc would make it, but not where the root is a read-only mount.
    const target = join(own.root, place);
    if (lstatSync(source).isDirectory()) mkdirSync(target, { recursive: true });
    else if (!existsSync(target)) {
      mkdirSync(dirname(target), { recursive: true });
      writeFileSync(target, '');
    }
    return bind(source, place, writable);
  });
  const capabilities = options.capabilities.map((name) => `CAP_${name}`);
  const mount = cgroup2Mount();
  const configuration = (args: readonly string[]): unknown => ({
    ociVersion: '1.0.2',
    process: {
      cwd: '/',
      args,
      env: [
        'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
        ...Object.entries(options.env ?? {}).map(([name, value]) => `${name}=${value}`),
      ],
      user: { uid: 0, gid: 0 },
      noNewPrivileges: true,
      capabilities: { bounding: capabilities, effective: capabilities, permitted: capabilities },
    },
    root: { path: own.root, readonly: true },
    hostname: id,
    mounts: [
      { destination: '/proc', type: 'proc', source: 'proc', options: ['nosuid', 'noexec', 'nodev'] },
      {
        destination: '/dev',
        type: 'tmpfs',
        source: 'tmpfs',
        options: ['nosuid', 'strictatime', 'mode=755', 'size=65536k'],
      },
      { destination: '/sys', type: 'sysfs', source: 'sysfs', options: ['nosuid', 'noexec', 'nodev', 'ro'] },
      ...own.mounts,
      bind('/sys/fs/cgroup', '/sys/fs/cgroup'), // where runc() has cgroup2, whatever this machine's way
      bind(sandbox.bpffs, '/sys/fs/bpf', true),
      ...extra,
    ],
    linux: {
      cgroupsPath: join(sandbox.cgroupRoot.slice(mount.length), cgroupPath),
      namespaces: [
        ...(options.hostPid === false ? [{ type: 'pid' }] : []),
        { type: 'mount' },
        { type: 'ipc' },
        { type: 'uts' },
        { type: 'cgroup' },
        ...(options.netns === undefined ? [] : [{ type: 'network', path: `/run/netns/${options.netns}` }]),
      ],
      maskedPaths: MASKED,
      readonlyPaths: READ_ONLY,
      seccomp: seccomp(capabilities), // `seccompProfile: RuntimeDefault`
      resources: { devices: [{ allow: true, access: 'rwm' }] },
    },
  });
  const remove = async (): Promise<void> => {
    await run({ ...runc(sandbox, ['delete', '--force', id]), cgroup: sandbox.hostCgroup });
  };
  return {
    id,
    cgroupRoot: `/sys/fs/cgroup/${basename(sandbox.cgroupRoot)}`,
    program(args) {
      writeFileSync(join(bundle, 'config.json'), JSON.stringify(configuration(args)));
      return runc(sandbox, ['run', '--bundle', bundle, id]);
    },
    exec: (args) => ({ ...runc(sandbox, ['exec', id, ...args]), cgroup: sandbox.hostCgroup }),
    kill: remove,
  };
}
