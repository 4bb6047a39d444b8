/** What this process may do on this host, and which namespaces it is in. */
import { readFileSync, readlinkSync } from 'node:fs';

/** Bits of capabilities(7), <linux/capability.h>. */
const CAPABILITIES = {
  CAP_NET_ADMIN: 12,
  CAP_SYS_PTRACE: 19,
  CAP_SYS_ADMIN: 21,
  CAP_SYS_RESOURCE: 24,
  CAP_PERFMON: 38,
  CAP_BPF: 39,
} as const;
export type Capability = keyof typeof CAPABILITIES;

/** Inode numbers of the first namespaces, fixed by <linux/proc_ns.h>; a network namespace has none. */
const FIRST_NAMESPACE = { pid: 'pid:[4026531836]', user: 'user:[4026531837]' } as const;

/**
 * The effective capabilities of this process among those that cgroute uses.
 * CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, as the kernel takes it so.
 * Another PID namespace's `procRoot` knows nothing of this process, which is no reason to hold it for powerless.
 */
export function effectiveCapabilities(procRoot = '/proc'): ReadonlySet<Capability> {
  const held = new Set<Capability>();
  const bits = capabilityBits(procRoot) ?? capabilityBits('/proc') ?? 0n;
  for (const [name, bit] of Object.entries(CAPABILITIES) as [Capability, number][]) {
    if ((bits >> BigInt(bit)) & 1n) held.add(name);
  }
  if (held.has('CAP_SYS_ADMIN')) held.add('CAP_BPF').add('CAP_PERFMON');
  return held;
}

/** Undefined where the status file is not there or not as expected. */
function capabilityBits(procRoot: string): bigint | undefined {
  try {
    const [, hex] = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync(`${procRoot}/self/status`, 'utf8')) ?? [];
    return hex === undefined ? undefined : BigInt(`0x${hex}`);
  } catch {
    return undefined;
  }
}

/** Whether this process is in the host's namespaces; undefined where that cannot be told. */
export interface HostNamespaces {
  readonly pid: boolean | undefined;
  readonly user: boolean | undefined;
  /** In that of PID 1 or, where a security module hides it, of kthreadd. Telling takes CAP_SYS_PTRACE. */
  readonly net: boolean | undefined;
}

/** Reads the namespaces of this process and of PID 1. Never throws. */
export function hostNamespaces(procRoot = '/proc'): HostNamespaces {
  const read = (file: string): string | undefined => {
    try {
      return readlinkSync(`${procRoot}/${file}`);
    } catch {
      return undefined;
    }
  };
  const isFirst = (kind: 'pid' | 'user'): boolean | undefined => {
    const own = read(`self/ns/${kind}`);
    return own === undefined ? undefined : own === FIRST_NAMESPACE[kind];
  };
  const own = read('self/ns/net');
  const pid = isFirst('pid');
  const host = read('1/ns/net') ?? (pid === true ? read('2/ns/net') : undefined);
  return {
    pid,
    user: isFirst('user'),
    net: own === undefined || host === undefined ? undefined : own === host,
  };
}
