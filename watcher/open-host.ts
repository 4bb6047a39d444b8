/**
 * What is running on this host, as facts keyed by cgroup id: the room's one face.
 * Questions can be asked at once; events begin with {@link OpenHost.follow}, when
 * all who are to be told are there.
 */
import { readFileSync } from 'node:fs';
import type { Logger } from 'pino';
import { errnoOf, refusalOf } from '../native/error.ts';
import { isPopulated } from './cgroup-population.ts';
import { openCgroupTree, type Cgroup } from './cgroup-tree.ts';
import { findCgroupMount, namespacePath, realCgroupRoot } from './host.ts';
import { listenersOf, type Listener } from './listeners.ts';
import type { NetworkTables } from './network-tables.ts';
import { openProc, unifiedPath, type Addresses, type ProcessNetwork } from './proc.ts';
import { followHost, type HostEvents, type HostWatch, type TreeEvents } from './host-watch.ts';

/** What reading its list of processes says of a cgroup that is gone, or whose processes are listed above it as threads. */
const HAS_NONE: ReadonlySet<string> = new Set(['ENOENT', 'ENODEV', 'ENOTDIR', 'EOPNOTSUPP']);

export interface HostOptions {
  /** The watched root: everything at and below it is the host. */
  readonly cgroupRoot: string;
  readonly procRoot: string;
  readonly logger: Logger;
}

/** What can be asked of the host. Each answer is of now. */
export interface Host {
  /** Those that are known. */
  readonly cgroups: ReadonlyMap<bigint, Cgroup>;
  /** Processes in the cgroup at `path` itself, of this PID namespace; empty when it is gone, and when they cannot be listed, which is logged once. */
  pidsOf(path: string): number[];
  /** Whether a process of this PID namespace, none of the kernel's own threads, is in the cgroup at `path` itself. Where that cannot be told there may be one: true. */
  hasUserProcess(path: string): boolean;
  networkOf(pid: number): ProcessNetwork | undefined;
  /** Whether any process, of whatever PID namespace, is in the cgroup at `path` or below it. */
  isPopulated(path: string): boolean;
  /** Undefined where it is not, or not all the time, in the network of that inode. */
  networkTablesOf(pid: number, netns: number): NetworkTables | undefined;
  addressesOf(pid: number): Addresses | undefined;
  /** Where its network namespace listens for TCP; undefined where that cannot be told. */
  listenersOf(pid: number): readonly Listener[] | undefined;
  netnsOf(pid: number): number | undefined;
  /** True for an address of the host's own network namespace. */
  isOwnAddress(ip: string): boolean;
  hostNetns(): number | undefined;
  /** The cgroup of this process, relative to the watched root; undefined when it is outside. */
  ownCgroup(): string | undefined;
  /** Looks at that place now; what is new there is reported to who follows. */
  ensure(path: string): Cgroup | undefined;
}

export interface OpenHost extends Host {
  /** Reports what there is, and what happens from now on. To be called once. */
  follow(events: HostEvents): HostWatch;
}

/** Throws CgrouteError 'ENOCGROUP2' or 'ECGROUPROOT' when there is nothing that could be watched. */
export function openHost(options: HostOptions): OpenHost {
  const { procRoot, logger } = options;
  const mount = findCgroupMount(procRoot, options.cgroupRoot);
  const cgroupRoot = realCgroupRoot(options.cgroupRoot);
  const own = unifiedPath(readFileSync(`${procRoot}/self/cgroup`, 'utf8')) ?? '/';
  const proc = openProc({ procRoot, cgroupRoot, mount, namespacePath: namespacePath(mount, own) });

  let told: TreeEvents | undefined;
  const tree = openCgroupTree({
    cgroupRoot,
    logger,
    onAppeared: (cgroup) => told?.onAppeared(cgroup),
    onGone: (cgroup) => told?.onGone(cgroup),
    onUnlisted: (path, error) => told?.onUnlisted(path, error),
  });

  let isUnlistedTold = false;
  /** Undefined where it is there, and they cannot be listed. */
  function listedIn(path: string): number[] | undefined {
    try {
      // A PID of another PID namespace reads as 0.
      return readFileSync(`${cgroupRoot}${path}/cgroup.procs`, 'utf8')
        .split('\n')
        .map(Number)
        .filter((pid) => pid > 0);
    } catch (err) {
      if (HAS_NONE.has(errnoOf(err))) return [];
      if (!isUnlistedTold)
        logger.warn({ err, path }, `processes of a cgroup cannot be listed: ${refusalOf(err)}`);
      isUnlistedTold = true;
      return undefined;
    }
  }

  const pidsOf = (path: string): number[] => listedIn(path) ?? [];

  return {
    cgroups: tree.cgroups,
    pidsOf,
    hasUserProcess: (path) => listedIn(path)?.some((pid) => proc.isUserProcess(pid)) ?? true,
    networkOf: proc.networkOf,
    isPopulated: (path) => isPopulated(`${cgroupRoot}${path}`),
    networkTablesOf: proc.networkTablesOf,
    addressesOf: proc.addressesOf,
    listenersOf: (pid) => listenersOf(pid, procRoot),
    netnsOf: proc.netnsOf,
    isOwnAddress: proc.isHostAddress,
    hostNetns: proc.hostNetns,
    ownCgroup: () => proc.cgroupOfPid(process.pid),
    ensure: tree.ensure,
    follow(events) {
      const listen = (listener: TreeEvents): void => {
        told = listener;
        // Those that a question has met before.
        for (const { id, path, parent } of [...tree.cgroups.values()]) {
          try {
            told.onAppeared({ id, path, parent });
          } catch (err) {
            logger.error({ err, path }, 'a handler of cgroup events failed; the others go on');
          }
        }
      };
      return followHost({ cgroupRoot, logger, proc, tree, pidsOf, listen }, events);
    },
  };
}
