/** Takes cgroute's rules out of every pod of this host, with an agent or without. */
import { readFileSync, readdirSync } from 'node:fs';
import { pinnedBypass } from '../../native/data-plane/pin-removal.ts';
import { CgrouteError, messageOf } from '../../native/error.ts';
import { isAsWanted, readNat, writeNat } from '../../native/netns/iptables-rules.ts';
import { openPodNetns } from '../../native/netns/pod-netns.ts';
import { findCgroupMount, namespacePath, realCgroupRoot } from '../../watcher/host.ts';
import { openProc, unifiedPath } from '../../watcher/proc.ts';
import { unableToEnter } from './sidecar-rules.ts';

export interface SidecarCleanup {
  /** Rules that were removed. */
  readonly rules: number;
  /** A sentence for each namespace where rules may be left. */
  readonly problems: readonly string[];
}

export interface SidecarPlaces {
  readonly procRoot: string;
  readonly cgroupRoot: string | undefined;
  readonly bpffsRoot: string;
}

/** Looks into the network namespace of every process below the watched root, except the host's and this process's own. Never rejects. */
export async function removeSidecarRules({
  procRoot,
  cgroupRoot,
  bpffsRoot,
}: SidecarPlaces): Promise<SidecarCleanup> {
  const problems: string[] = [];
  let rules = 0;
  let namespaces: ReadonlyMap<number, number>;
  try {
    // Where nobody could enter a namespace, no rule was made, nor the filter pinned.
    if (unableToEnter(procRoot) !== undefined && pinnedBypass(bpffsRoot) === undefined)
      return { rules, problems };
    namespaces = podNamespaces(procRoot, cgroupRoot);
  } catch (error) {
    return { rules, problems: [`pods could not be looked for: ${messageOf(error)}`] };
  }
  for (const [inode, pid] of namespaces) {
    try {
      rules += await removeIn(pid, inode, procRoot);
    } catch (error) {
      problems.push(`the network namespace of process ${pid}: ${messageOf(error)}`);
    }
  }
  return { rules, problems };
}

/** One process for each network namespace. */
function podNamespaces(procRoot: string, cgroupRoot: string | undefined): Map<number, number> {
  const mount = findCgroupMount(procRoot, cgroupRoot);
  const own = unifiedPath(readFileSync(`${procRoot}/self/cgroup`, 'utf8')) ?? '/';
  const proc = openProc({
    procRoot,
    cgroupRoot: realCgroupRoot(cgroupRoot ?? mount.mountPoint),
    mount,
    namespacePath: namespacePath(mount, own),
  });
  const host = proc.hostNetns();
  if (host === undefined)
    throw new CgrouteError('ENETNS', "the host's network namespace cannot be told from a pod's: run as root");
  const found = new Map<number, number>();
  for (const name of readdirSync(procRoot)) {
    const pid = Number(name);
    const fact = Number.isInteger(pid) ? proc.processOf(pid) : undefined;
    if (
      fact !== undefined &&
      fact.netns !== host &&
      fact.netns !== proc.netnsOf(process.pid) &&
      !found.has(fact.netns)
    )
      found.set(fact.netns, pid);
  }
  return found;
}

async function removeIn(pid: number, inode: number, procRoot: string): Promise<number> {
  using netns = openPodNetns(pid, procRoot);
  // Another process has the PID by now, and the namespace's last one has gone.
  if (netns === undefined || netns.inode !== inode) return 0;
  let removed = 0;
  for (const table of (await readNat(netns, pid, procRoot)).tables) {
    if (isAsWanted(table, undefined)) continue;
    await writeNat(netns, table, undefined);
    removed += table.own.length;
  }
  return removed;
}
