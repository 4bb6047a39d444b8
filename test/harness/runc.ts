/**
 * Real containers by runc, in cgroups of the sandbox, as a kubelet's runtime
 * makes them: own PID, mount, IPC, UTS and cgroup namespaces, a network
 * namespace that was there before.
 *
 * runc looks for cgroup v2 at /sys/fs/cgroup; where the machine has it elsewhere
 * (hybrid mounting), each call of runc gets a mount namespace in which it is there.
 */
import { chmodSync, copyFileSync, existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { cgroup2Mount } from '../../deploy/stage/cgroup.ts';
import { type Program, type Running, eventually, must, run } from '../../deploy/stage/process.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';
import { SOCK } from '../../deploy/stage/sock.ts';

export interface ContainerOptions {
  readonly id: string;
  /** Below the sandbox's root: `kubepods/burstable/pod<uid>/<id>`. */
  readonly cgroupPath: string;
  /** Name of a network namespace. */
  readonly netns: string;
  /** Default `sleep 100000`. /bin has busybox, `sh` and the other applets, and `sock`. */
  readonly args?: readonly string[];
}

export interface Container extends AsyncDisposable {
  readonly id: string;
  /** Of its first process, as the machine sees it. */
  readonly pid: number;
  /** The container's own output; it is `runc run` in the foreground, as a shim would be. */
  readonly running: Running;
  /** Another process in the container, as by `kubectl exec`. */
  exec(...args: readonly string[]): Running;
  kill(signal?: string): Promise<void>;
  /** Kills and removes it, its cgroup too. Fine to call twice. */
  delete(): Promise<void>;
}

const BOUND = '/sys/fs/cgroup';

/** The command line of runc, wrapped in a mount namespace where it needs one. */
export function runc(sandbox: Sandbox, args: readonly string[]): Program {
  const line = ['runc', '--root', sandbox.file('runc'), ...args];
  const mount = cgroup2Mount();
  if (mount === BOUND) return { cmd: 'runc', args: line.slice(1) };
  const script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"';
  return {
    cmd: 'unshare',
    args: ['--mount', '--propagation', 'private', 'sh', '-c', script, 'sh', mount, BOUND, ...line],
  };
}

/** A root file system of static programs, made once for a sandbox. */
async function rootfs(sandbox: Sandbox): Promise<string> {
  const directory = sandbox.file('rootfs');
  if (existsSync(directory)) return directory;
  for (const name of ['bin', 'proc', 'sys', 'dev', 'tmp', 'etc'])
    mkdirSync(join(directory, name), { recursive: true });
  const busybox = (await must({ cmd: 'sh', args: ['-c', 'command -v busybox'] })).trim();
  for (const [source, name] of [
    [busybox, 'busybox'],
    [SOCK, 'sock'],
  ] as const) {
    copyFileSync(source, join(directory, 'bin', name));
    chmodSync(join(directory, 'bin', name), 0o755);
  }
  await must({ cmd: 'chroot', args: [directory, '/bin/busybox', '--install', '-s', '/bin'] });
  return directory;
}

/** The runtime's configuration: OCI runtime specification 1.0.2, config.md. */
function configuration(sandbox: Sandbox, rootPath: string, options: ContainerOptions): unknown {
  const capabilities = [
    'CAP_CHOWN',
    'CAP_KILL',
    'CAP_NET_BIND_SERVICE',
    'CAP_SETGID',
    'CAP_SETUID',
    'CAP_SYS_CHROOT',
  ];
  return {
    ociVersion: '1.0.2',
    process: {
      cwd: '/',
      args: options.args ?? ['sleep', '100000'],
      env: ['PATH=/bin'],
      user: { uid: 0, gid: 0 },
      noNewPrivileges: true,
      capabilities: { bounding: capabilities, effective: capabilities, permitted: capabilities },
    },
    root: { path: rootPath, readonly: true },
    hostname: options.id.slice(0, 60),
    mounts: [
      { destination: '/proc', type: 'proc', source: 'proc' },
      { destination: '/dev', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'mode=755'] },
      { destination: '/tmp', type: 'tmpfs', source: 'tmpfs' },
    ],
    linux: {
      cgroupsPath: join(sandbox.cgroupRoot.slice(cgroup2Mount().length), options.cgroupPath),
      namespaces: [
        { type: 'pid' },
        { type: 'mount' },
        { type: 'ipc' },
        { type: 'uts' },
        { type: 'cgroup' },
        { type: 'network', path: `/run/netns/${options.netns}` },
      ],
      resources: { devices: [{ allow: true, access: 'rwm' }] },
    },
  };
}

/** Runs a container. Its first process is there when the promise settles. */
export async function startContainer(sandbox: Sandbox, options: ContainerOptions): Promise<Container> {
  const { id } = options;
  const bundle = sandbox.file(`bundle-${id}`);
  mkdirSync(bundle, { recursive: true });
  writeFileSync(
    join(bundle, 'config.json'),
    JSON.stringify(configuration(sandbox, await rootfs(sandbox), options)),
  );
  const running = sandbox.spawn(runc(sandbox, ['run', '--bundle', bundle, id]));
  let exited = false;
  void running.exit.then(() => (exited = true));
  const pid = await eventually(`container ${id} runs`, async () => {
    if (exited) throw new Error(`runc run ${id}: ${[...running.stderr, ...running.stdout].join('\n')}`);
    const { code, stdout } = await run({ ...runc(sandbox, ['state', id]), cgroup: sandbox.hostCgroup });
    if (code !== 0) return undefined;
    const state = JSON.parse(stdout) as { status: string; pid: number };
    return state.status === 'running' ? state.pid : undefined;
  });
  const remove = async (): Promise<void> => {
    await run({ ...runc(sandbox, ['delete', '--force', id]), cgroup: sandbox.hostCgroup });
    await running.exit;
  };
  return {
    id,
    pid,
    running,
    delete: remove,
    [Symbol.asyncDispose]: remove,
    exec: (...args) => sandbox.spawn(runc(sandbox, ['exec', id, ...args])),
    async kill(signal = 'KILL') {
      await must({ ...runc(sandbox, ['kill', id, signal]), cgroup: sandbox.hostCgroup });
    },
  };
}
