/** Doctor's look at the host: kernel, file systems, settings, namespaces, memory, iptables. */
import { accessSync, constants } from 'node:fs';
import { machine, release } from 'node:os';
import { dirname, resolve } from 'node:path';
import { isOlder, leastKernel } from '../../native/survey/capability.ts';
import { isThere, readIfThere } from '../../native/boundary/presence.ts';
import { hasPinDirectory } from '../../native/pins/pin-directory.ts';
import { CgrouteError, errnoOf, isForbidden, messageOf } from '../../native/error.ts';
import type { IptablesBackend } from '../../native/survey/iptables.ts';
import type { Capability, HostNamespaces } from '../../native/boundary/privilege.ts';
import { levelOf } from '../../watcher/cgroup-level.ts';
import {
  findCgroupMount,
  isWholeHierarchy,
  namespacePath,
  realCgroupRoot,
  refuseV1Only,
} from '../../watcher/host.ts';
import { unifiedPath } from '../../watcher/proc.ts';
import { fail, ok, warn, type DoctorLine, type DoctorPlaces } from './doctor-line.ts';

/** What kubelets call the root of their pods. */
const KUBELET_CGROUPS = ['kubepods', 'kubepods.slice', 'kubelet-kubepods.slice'];
/** The agent's own 80 MB and, with the default sizes, as much again for its maps. */
const ENOUGH_MEMORY = 160 * 1024 * 1024;

/** @throws CgrouteError `EUNSEEN` where it may not be read */
const read = (file: string): string | undefined => readIfThere(file)?.trim();

export function kernelLine(version = release(), architecture = machine()): DoctorLine {
  const least = leastKernel();
  const is = `Linux ${version}, ${architecture}`;
  if (architecture !== 'x86_64' && architecture !== 'aarch64') {
    return warn(
      'kernel',
      `${is}: cgroute is tested on x86_64 and aarch64`,
      'compile the BPF objects and the packages koffi and @parcel/watcher for this machine',
    );
  }
  // A distribution's kernel may have what its number doesn't promise: the features decide.
  if (isOlder(version, least))
    return warn(
      'kernel',
      `${is}, and the features below are in Linux ${least} and later`,
      `boot Linux ${least} or later, unless every feature below is there`,
    );
  return ok('kernel', is);
}

export function cgroupLine({ cgroupRoot, procRoot }: DoctorPlaces): DoctorLine {
  try {
    refuseV1Only(KUBELET_CGROUPS, procRoot);
    const mount = findCgroupMount(procRoot, cgroupRoot);
    const root = realCgroupRoot(cgroupRoot ?? mount.mountPoint);
    const level = levelOf(root, procRoot);
    const where =
      root === mount.mountPoint ? `mounted at ${root}` : `${root}, mounted at ${mount.mountPoint}`;
    return ok(
      'cgroup2',
      isWholeHierarchy(mount)
        ? where
        : `${where}, a part of the hierarchy; the root is at level ${level} of the whole`,
    );
  } catch (error) {
    if (error instanceof CgrouteError && error.code === 'ECGROUPLEVEL') {
      return fail(
        'cgroup2',
        messageOf(error),
        "run as root or with CAP_BPF, or mount the host's /sys/fs/cgroup into the container and give its path as --cgroup-root",
      );
    }
    return fail(
      'cgroup2',
      messageOf(error),
      'boot with systemd.unified_cgroup_hierarchy=1, or give the cgroup2 mount as --cgroup-root',
    );
  }
}

export function bpffsLine({ bpffsRoot }: DoctorPlaces): DoctorLine {
  const is = `${bpffsRoot} is on a BPF file system`;
  try {
    let at = bpffsRoot;
    while (!hasPinDirectory(at)) at = dirname(at);
    accessSync(at, constants.W_OK);
    return ok('bpffs', is);
  } catch (error) {
    if (errnoOf(error) === 'EROFS')
      return fail('bpffs', `${is} that is mounted read-only here`, 'mount it read-write, as the chart does');
    if (error instanceof CgrouteError && error.code === 'EBPFFS')
      return fail(
        'bpffs',
        `${bpffsRoot} is not on a BPF file system, which is where programs and maps outlive the agent`,
        'mount -t bpf bpf /sys/fs/bpf',
      );
    return fail(
      'bpffs',
      `${messageOf(error)}; nothing can be pinned there, nor cgroute's own programs be told`,
      'run as root',
    );
  }
}

export function settingLines({ procRoot, sysRoot = '/sys' }: DoctorPlaces): DoctorLine[] {
  return [
    seen('BTF', () => btfLine(sysRoot)),
    seen('lockdown', () => lockdownLine(sysRoot)),
    seen('JIT', () => jitLine(procRoot)),
    seen('unprivileged BPF', () => unprivilegedLine(procRoot)),
  ];
}

/** What may not be read is no setting that is off. */
function seen(check: string, look: () => DoctorLine): DoctorLine {
  try {
    return look();
  } catch (error) {
    return warn(check, `cannot be told: ${messageOf(error)}`, 'run doctor as root');
  }
}

function btfLine(sysRoot: string): DoctorLine {
  const file = `${sysRoot}/kernel/btf/vmlinux`;
  return isThere(file)
    ? ok('BTF', file)
    : fail(
        'BTF',
        `${file} is not there, and the programs are fitted to the kernel by it`,
        'boot a kernel with CONFIG_DEBUG_INFO_BTF=y',
      );
}

function lockdownLine(sysRoot: string): DoctorLine {
  const text = read(`${sysRoot}/kernel/security/lockdown`);
  if (text === undefined) return ok('lockdown', 'none that can be seen from here');
  const mode = /\[(\w+)\]/.exec(text)?.[1] ?? text;
  // It takes away the helpers that read kernel memory, LOCKDOWN_BPF_READ_KERNEL; no program here calls one.
  return ok(
    'lockdown',
    mode === 'confidentiality' ? 'confidentiality, which takes nothing away that is used' : mode,
  );
}

function jitLine(procRoot: string): DoctorLine {
  const value = read(`${procRoot}/sys/net/core/bpf_jit_enable`);
  if (value === undefined) return ok('JIT', 'its setting shows in the first network namespace only');
  if (value === '0')
    return warn(
      'JIT',
      'off: programs are interpreted, several times slower',
      'sysctl -w net.core.bpf_jit_enable=1',
    );
  if (value === '2')
    return warn(
      'JIT',
      'on, and each program is dumped to the kernel log',
      'sysctl -w net.core.bpf_jit_enable=1',
    );
  return ok('JIT', 'on');
}

function unprivilegedLine(procRoot: string): DoctorLine {
  const value = read(`${procRoot}/sys/kernel/unprivileged_bpf_disabled`);
  if (value === '0')
    return warn(
      'unprivileged BPF',
      'allowed: any user of this host may load programs',
      'sysctl -w kernel.unprivileged_bpf_disabled=2',
    );
  return ok('unprivileged BPF', value === undefined ? 'not in this kernel' : 'not allowed');
}

/** The least memory.max from this process's own cgroup upwards; BPF maps are charged to it too. */
export function memoryLine({ procRoot }: DoctorPlaces): DoctorLine {
  let least = Infinity;
  let at = '';
  try {
    const mount = findCgroupMount(procRoot);
    const own = unifiedPath(read(`${procRoot}/self/cgroup`) ?? '') ?? '/';
    // In a container with the host's mount, `own` begins at the container's cgroup and the mount above it.
    for (let path = resolve(`${namespacePath(mount, own) ?? ''}${own}`); ; path = dirname(path)) {
      const limit = Number(read(`${mount.mountPoint}${path}/memory.max`) ?? 'max');
      if (limit < least) [least, at] = [limit, path];
      if (path === '/' || !path.startsWith('/')) break;
    }
  } catch (error) {
    if (isForbidden(error))
      return warn('memory', `its limit cannot be told: ${messageOf(error)}`, 'run doctor as root');
    // Else the line about cgroup2 says what is wrong.
  }
  if (least === Infinity) return ok('memory', 'no limit on cgroup v2 for this process');
  const text = `${Math.floor(least / 1024 / 1024)} MiB for ${at}`;
  return least >= ENOUGH_MEMORY
    ? ok('memory', text)
    : warn(
        'memory',
        `${text}, which the agent and its maps may exceed`,
        `a limit of ${ENOUGH_MEMORY / 1024 / 1024} MiB, or smaller maxPods and maxConnections in the configuration`,
      );
}

/**
 * Before Linux 5.11 maps and programs count as locked memory of whoever makes them.
 * libbpf raises the limit where it may. Nothing to say on later kernels.
 */
export function lockedMemoryLines(
  { procRoot }: DoctorPlaces,
  held: ReadonlySet<Capability>,
  version = release(),
): DoctorLine[] {
  if (!isOlder(version, '5.11') || held.has('CAP_SYS_RESOURCE')) return [];
  const limit = /^Max locked memory +(\d+)/m.exec(read(`${procRoot}/self/limits`) ?? '')?.[1];
  if (limit === undefined || Number(limit) >= ENOUGH_MEMORY)
    return [ok('locked memory', limit === undefined ? 'no limit for this process' : `${limit} bytes`)];
  return [
    fail(
      'locked memory',
      `${limit} bytes, and this kernel counts the maps, some 80 MB`,
      "LimitMEMLOCK=infinity in the systemd unit of the container runtime, or add SYS_RESOURCE to the container's capabilities",
    ),
  ];
}

/** There, hostPID leads to the node's namespace, which holds all of its pods' processes. */
const IN_KIND = ', unless this node is itself a container, as in kind';

export function namespaceLines({ pid, user, net }: HostNamespaces): DoctorLine[] {
  const lines: DoctorLine[] = [];
  const line = (check: string, is: boolean | undefined, lost: string, remedy: string): void => {
    if (is === undefined)
      lines.push(
        warn(check, "cannot be told: it takes a look at PID 1's", 'run as root, with CAP_SYS_PTRACE'),
      );
    else lines.push(is ? ok(check, "the host's") : warn(check, `not the host's: ${lost}`, remedy));
  };
  line(
    'PID namespace',
    pid,
    'there are no process events, and processes outside it cannot be found by their PIDs',
    `hostPID: true${IN_KIND}`,
  );
  line(
    'user namespace',
    user,
    "capabilities count for this namespace's own resources only",
    "run the agent in the host's user namespace (hostUsers: true)",
  );
  line(
    'network namespace',
    net,
    "there are no process events, and the iptables rules below are not the host's",
    `hostNetwork: true${IN_KIND}`,
  );
  return lines;
}

/** @param backends of IPv4 and IPv6, see iptablesBackends() */
export function iptablesLines(backends: readonly IptablesBackend[]): DoctorLine[] {
  const lines = backends.map(({ tool, rules }): DoctorLine => {
    if (rules === 'missing')
      return warn(
        tool,
        'not installed; pods with a sidecar cannot be bypassed where it holds their rules',
        'install the package iptables',
      );
    if (typeof rules === 'object')
      return warn(
        tool,
        `the nat table cannot be listed: ${rules.failed}`,
        `run as root, with CAP_NET_ADMIN${tool.endsWith('-legacy') ? ' and CAP_NET_RAW' : ''}`,
      );
    return ok(tool, `${rules === 0 ? 'no' : rules} ${rules === 1 ? 'rule' : 'rules'} in the nat table`);
  });
  for (const family of ['iptables', 'ip6tables']) {
    const holding = backends.filter(
      ({ tool, rules }) => tool.startsWith(`${family}-`) && typeof rules === 'number' && rules > 0,
    );
    if (holding.length < 2) continue;
    lines.push(
      warn(
        family,
        'both backends hold rules in the nat table, and a connection passes both',
        `move the rules of one to the other: ${family}-legacy-save, ${family}-nft-restore`,
      ),
    );
  }
  return lines;
}
