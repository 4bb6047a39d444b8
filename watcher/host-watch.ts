/**
 * What happens on this host, as events. Four witnesses (the kernel, process events,
 * the cgroup watch, the sweep) lead to the same look at the tree, so each can be
 * missing.
 */
import type { Logger } from 'pino';
import { messageOf } from '../native/error.ts';
import type { Cgroup, CgroupTree, CgroupTreeOptions } from './cgroup-tree.ts';
import { watchCgroups, type CgroupHints, type Subscribe } from './cgroup-watch.ts';
import { watchKernel, type CgroupChange, type KernelWatchOptions } from './kernel-watch.ts';
import type { Proc, ProcessFact } from './proc.ts';
import { watchProcesses, type ProcessWatchOptions } from './process-watch.ts';
import type { SourceState } from './source-state.ts';

/** After lost events the tree is swept at once, but not more often than this: who makes cgroups in a pod must not keep the agent busy. */
const LOST_SWEEP_MS = 1_000;

/** The kernel tells of a cgroup some microseconds before its directory can be seen. */
const SECOND_LOOK_MS = 5;
/** Without process events, so long after a cgroup was made its first process is looked for. */
const FIRST_PROCESS_MS = [250, 2_000];
/** Longer names are cut off in the kernel's events. */
const WHOLE_NAME = 127;

export interface HostProcess extends ProcessFact {
  readonly cgroupId: bigint;
}

/** Who is told, and by whom. */
export interface HostEvents {
  /** Pause between two sweeps, milliseconds. */
  readonly sweepMs: number;
  /** A cgroup exists; parents first. What a handler throws is logged and the others go on. */
  readonly onCgroup: (cgroup: Cgroup) => void;
  /** A cgroup exists no more; children first. */
  readonly onCgroupGone: (cgroup: Cgroup) => void;
  /** A process runs in a cgroup; its cgroup was reported before. */
  readonly onProcess?: (process: HostProcess) => void;
  /**
   * Is a process of this cgroup still of use? Asked before each report, and at
   * each sweep of each cgroup. @default never at a sweep, always otherwise
   */
  readonly wantsProcess?: (cgroupId: bigint) => boolean;
  /** Events were lost; a sweep follows by itself. */
  readonly onLost?: () => void;
  /** The kernel's own events. @default none */
  readonly cgroupEvents?: KernelWatchOptions['open'] | undefined;
  /** For tests. */
  readonly subscribe?: Subscribe;
  readonly openProcessEvents?: ProcessWatchOptions['open'];
  readonly attachFilter?: ProcessWatchOptions['attachFilter'];
}

export interface HostWatch extends AsyncDisposable {
  /** Everything that ran at the start was reported once. Never rejects. */
  readonly ready: Promise<void>;
  sources(): SourceState[];
  /** Looks at everything now. */
  sweep(): Promise<void>;
}

export type TreeEvents = Required<Pick<CgroupTreeOptions, 'onAppeared' | 'onGone' | 'onUnlisted'>>;

/** What is followed. */
export interface FollowedHost {
  /** Without symbolic links. */
  readonly cgroupRoot: string;
  readonly logger: Logger;
  readonly proc: Proc;
  readonly tree: CgroupTree;
  /** Who is told by the tree from now on. */
  readonly listen: (events: TreeEvents) => void;
  pidsOf(path: string): number[];
}

export function followHost(host: FollowedHost, options: HostEvents): HostWatch {
  const { cgroupRoot, logger, proc, tree, pidsOf } = host;
  const { onProcess, wantsProcess } = options;

  let closed = false;
  let sweeps = 0;
  let appeared = 0;
  let lastSweep = '';
  let sweeping: Promise<void> | undefined;
  let following: Promise<void> | undefined;
  let timer: NodeJS.Timeout | undefined;
  let lostTimer: NodeJS.Timeout | undefined;
  let lastLost = -Infinity;
  /** Why cgroups could not be listed, since the last sweep began; and whether that has been said. */
  let unlisted: string | undefined;
  let isUnlistedSaid = false;

  host.listen({
    onAppeared(cgroup) {
      appeared++;
      if (!closed) options.onCgroup(cgroup);
    },
    onGone: (cgroup) => closed || options.onCgroupGone(cgroup),
    onUnlisted(path, err) {
      unlisted = `${path} could not be listed (${messageOf(err)}), which is tried again each second: what is new there may not be seen`;
      if (!isUnlistedSaid)
        logger.error(
          { err, path },
          `a cgroup's directory could not be listed, which is tried again each second: what is new in it may not be seen; if too many files are open (EMFILE, ENFILE), raise the limit`,
        );
      isUnlistedSaid = true;
      sweepSoon();
    },
  });

  /** Reports the process where it is now, if that is wanted, and says whether that is in `cgroup`. */
  function report(pid: number, cgroup: Cgroup): boolean {
    if (closed || !onProcess || wantsProcess?.(cgroup.id) === false) return false;
    const fact = proc.processOf(pid);
    const now = fact && tree.ensure(fact.path);
    if (!now || (now.id !== cgroup.id && wantsProcess?.(now.id) === false)) return false;
    onProcess({ ...fact, cgroupId: now.id });
    return now.id === cgroup.id;
  }

  function guard(work: () => void): void {
    try {
      work();
    } catch (err) {
      logger.error({ err }, 'a handler of process facts failed; the others go on');
    }
  }

  /** Reports one process of the cgroup: one is enough to know the network namespace. */
  function reportAny(cgroup: Cgroup): void {
    guard(() => {
      if (onProcess && wantsProcess?.(cgroup.id) !== false)
        pidsOf(cgroup.path).some((pid) => report(pid, cgroup));
    });
  }

  const processes = watchProcesses({
    proc,
    logger,
    onExec(pid, path) {
      const cgroup = tree.ensure(path);
      if (cgroup) report(pid, cgroup);
    },
    onLost() {
      guard(() => options.onLost?.());
      sweepSoon();
    },
    ...(options.attachFilter && { attachFilter: options.attachFilter }),
    ...(options.openProcessEvents && { open: options.openProcessEvents }),
  });

  /** At once, if it is a while since the last time. */
  function sweepSoon(): void {
    lostTimer ??= setTimeout(
      () => {
        lostTimer = undefined;
        lastLost = performance.now();
        void sweep();
      },
      Math.max(0, lastLost + LOST_SWEEP_MS - performance.now()),
    ).unref();
  }

  async function onHints({ places, moved }: CgroupHints): Promise<void> {
    const before = appeared;
    for (const place of places) await tree.rescan(place);
    // More than was named: they were made in one go, and the watch has not got into all of them. The kernel's events need
    // no watch there; and a watch that is made while cgroups go may fail, which leaves open files behind in @parcel/watcher.
    if (appeared - before > places.length && kernel.state().state !== 'ok') watch.renew();
    for (const path of moved) {
      const cgroup = tree.ensure(path);
      if (cgroup) reportAny(cgroup);
    }
  }

  const watch = watchCgroups({
    cgroupRoot,
    logger,
    onHints,
    onSubscribed: () => void sweep(),
    ...(options.subscribe && { subscribe: options.subscribe }),
  });

  const kernel = watchKernel({
    logger,
    open: options.cgroupEvents,
    onChange: (change) => lookAt(change, true),
  });

  function lookAt({ id, parent, name }: CgroupChange, again: boolean): void {
    if (closed) return;
    const up = tree.cgroups.get(parent);
    // Its parent's own event was lost, or it is gone again already.
    if (up === undefined) return sweepSoon();
    const before = tree.cgroups.has(id);
    const now = tree.ensure(`${up.path === '/' ? '' : up.path}/${name}`);
    if (now !== undefined && !before && processes.state().state !== 'ok') {
      for (const ms of FIRST_PROCESS_MS) setTimeout(() => closed || reportAny(now), ms).unref();
    }
    // Told just before it can be seen, or its name is not whole.
    if (now === undefined && !before && again)
      setTimeout(() => lookAt({ id, parent, name }, false), SECOND_LOOK_MS).unref();
    else if (now === undefined && !before && name.length >= WHOLE_NAME) void tree.rescan(up.path);
  }

  /** One sweep at a time; those asked for meanwhile share the one that follows. */
  function sweep(): Promise<void> {
    if (sweeping) {
      return (following ??= sweeping.then(() => {
        following = undefined;
        return sweep();
      }));
    }
    sweeping = sweepOnce()
      .catch((err: unknown) => logger.error({ err }, 'a sweep failed; the next one follows'))
      .finally(() => {
        sweeping = undefined;
      });
    return sweeping;
  }

  async function sweepOnce(): Promise<void> {
    if (closed) return;
    const start = performance.now();
    const first = sweeps++ === 0;
    unlisted = undefined;
    await tree.sweep();
    if (isUnlistedSaid && unlisted === undefined) {
      isUnlistedSaid = false;
      logger.info('all cgroups can be listed again');
    }
    if (first || wantsProcess) await reportAll();
    lastSweep = `the last of ${sweeps} took ${Math.ceil(performance.now() - start)} ms for ${tree.cgroups.size} cgroups; ${tree.foundBySweep()} were found by it alone`;
  }

  async function reportAll(): Promise<void> {
    let until = performance.now() + 4;
    for (const cgroup of [...tree.cgroups.values()]) {
      if (closed) return;
      reportAny(cgroup);
      if (performance.now() < until) continue;
      await new Promise((resolve) => setImmediate(resolve));
      until = performance.now() + 4;
    }
  }

  function schedule(): void {
    if (closed) return;
    timer = setTimeout(() => void periodic(), options.sweepMs).unref();
  }

  async function periodic(): Promise<void> {
    const before = tree.foundBySweep();
    await sweep();
    if (tree.foundBySweep() > before) watch.renew();
    schedule();
  }

  async function start(): Promise<void> {
    // Events first: whatever begins from here on is seen by one of the two.
    await processes.started;
    await sweep();
    schedule();
  }

  return {
    ready: start(),
    sources: () => [
      kernel.state(),
      processes.state(),
      watch.state(),
      {
        name: 'sweep',
        state: closed ? 'off' : isUnlistedSaid ? 'degraded' : 'ok',
        detail: `every ${options.sweepMs / 1000} s${lastSweep && `; ${lastSweep}`}${isUnlistedSaid && unlisted !== undefined ? `; ${unlisted}` : ''}`,
      },
    ],
    sweep,
    async [Symbol.asyncDispose]() {
      if (closed) return;
      closed = true;
      clearTimeout(timer);
      clearTimeout(lostTimer);
      kernel[Symbol.dispose]();
      processes[Symbol.dispose]();
      await watch[Symbol.asyncDispose]();
    },
  };
}
