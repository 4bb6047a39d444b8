/**
 * A node that is a container, as those of kind are: a sandbox's cgroup is the
 * root of its cgroup namespace, with a cgroup2 mount, a PID namespace, a /proc
 * and a BPF file system of its own. Nodes of this kind share nothing but the kernel.
 */
import { type Cgroup, processesBelow } from '../../deploy/stage/cgroup.ts';
import type { Program, Running } from '../../deploy/stage/process.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';

export interface NamespacedNode {
  /** Its first process. */
  readonly init: Running;
  /** Where cgroup2 and the BPF file system are, as its processes see it. */
  readonly cgroupRoot: string;
  readonly bpffs: string;
  /** The program as a process of the node: in its namespaces; cgroup and network as the program says, seen from outside. */
  inside(program: Program): Program;
  /**
   * The same in a pod's container: a cgroup namespace that begins at `cgroup`,
   * the container's own mount of it, and the node's as a host path. The node's
   * processes are seen, as with hostPID.
   */
  inContainer(cgroup: Cgroup, program: Program): Program;
  /** Where the node's cgroup2 file system is in such a container; its own is at {@link cgroupRoot}. */
  readonly hostCgroup: string;
}

const CGROUP2 = '/sys/fs/cgroup';
const BPFFS = '/sys/fs/bpf';
const HOST_CGROUP = '/mnt';

/** As a container runtime and systemd do: nothing of the host's cgroup file systems stays, and the first process leaves the root. */
const BOOT = `
set -e
umount --lazy --recursive ${CGROUP2}
mount -t cgroup2 cgroup2 ${CGROUP2}
mount -t proc proc /proc
mount --bind "$1" ${BPFFS}
mkdir -p ${CGROUP2}/init.scope
echo 0 >${CGROUP2}/init.scope/cgroup.procs
echo up
exec sleep infinity`;

/** The node's file system by its mount, the container's own by a new one, read-only as runtimes do. */
const CONTAINER = `
set -e
mount --bind ${CGROUP2} ${HOST_CGROUP}
umount --lazy ${CGROUP2}
mount -t cgroup2 -o ro cgroup2 ${CGROUP2}
exec "$@"`;

/** Boots a node in the sandbox's cgroup and in a network namespace. It ends with the sandbox. */
export async function bootNode(sandbox: Sandbox, netns: string): Promise<NamespacedNode> {
  const namespaces = ['--cgroup', '--mount', '--pid', '--fork', '--kill-child', '--propagation', 'private'];
  const init = sandbox.spawn({
    cmd: 'unshare',
    args: [...namespaces, 'sh', '-c', BOOT, 'sh', sandbox.bpffs],
    cgroup: { absolute: sandbox.cgroupRoot },
    netns,
  });
  await init.line(/^up$/);
  const [pid] = processesBelow(`${sandbox.cgroupRoot}/init.scope`);
  if (pid === undefined) throw new Error(`the node's first process has ended\n${init.stderr.join('\n')}`);
  const inside = ({ cmd, args = [], ...program }: Program): Program => ({
    cgroup: sandbox.hostCgroup,
    netns,
    ...program,
    cmd: 'nsenter',
    args: ['--target', String(pid), '--cgroup', '--mount', '--pid', '--', cmd, ...args],
  });
  return {
    init,
    inside,
    cgroupRoot: CGROUP2,
    bpffs: BPFFS,
    hostCgroup: HOST_CGROUP,
    inContainer(cgroup, { cmd, args = [], ...program }) {
      return inside({
        ...program,
        cgroup,
        cmd: 'unshare',
        args: ['--cgroup', '--mount', '--propagation', 'private', 'sh', '-c', CONTAINER, 'sh', cmd, ...args],
      });
    },
  };
}
