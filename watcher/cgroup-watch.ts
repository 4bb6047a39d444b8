/**
 * Hints from inotify on the cgroup file system, through @parcel/watcher.
 *
 * Hints only: a nested creation is reported by its topmost directory alone, and
 * what comes below it later not at all; an overflow of the queue is swallowed.
 * The sweep makes up for both, and asks for a fresh subscription ({@link CgroupWatch.renew}).
 */
import { readFileSync } from 'node:fs';
import {
  subscribe as parcelSubscribe,
  type AsyncSubscription,
  type SubscribeCallback,
} from '@parcel/watcher';
import type { Logger } from 'pino';
import { messageOf } from '../native/error.ts';
import type { SourceState } from './source-state.ts';

/**
 * The interface files of every controller. They would be most of the watcher's
 * memory, and `cgroup.events` would wake it at each process's end. What stays is
 * `cgroup.procs`, which is modified when a process is moved into its cgroup.
 */
const IGNORED =
  '**/{cgroup.{c,e,f,k,m,s,t}*,cpu.*,cpuset.*,io.*,memory.*,pids.*,hugetlb.*,rdma.*,misc.*,irq.*,dmem.*}';

const FIRST_RETRY_MS = 200;
const LAST_RETRY_MS = 60_000;
const RENEW_MS = 500;
/** A subscription looks at each file of each cgroup, of which a pod may make thousands: the pause before the next, in times of what the last took. */
const RENEW_PAUSE = 20;

export interface CgroupHints {
  /** Places, relative to the watched root, where something came or went. */
  readonly places: readonly string[];
  /** Cgroups into which a process was moved. */
  readonly moved: readonly string[];
}

/**
 * Asked for by name: to find out by itself which there is, @parcel/watcher runs
 * `watchman`, and leaves a pipe and a dead child behind each time it finds none.
 */
const BACKEND = 'inotify';

export interface SubscribeOptions {
  readonly ignore: string[];
  readonly backend: typeof BACKEND;
}

export type Subscribe = (
  directory: string,
  callback: SubscribeCallback,
  options: SubscribeOptions,
) => Promise<AsyncSubscription>;

export interface CgroupWatchOptions {
  readonly cgroupRoot: string;
  readonly logger: Logger;
  /** Called with what came since the last call returned, never twice at a time. What it throws is logged. */
  readonly onHints: (hints: CgroupHints) => Promise<void>;
  /** The watch begins, or begins again: all that happened before is unseen. Must not throw. */
  readonly onSubscribed: () => void;
  /** @default that of @parcel/watcher */
  readonly subscribe?: Subscribe;
}

export interface CgroupWatch extends AsyncDisposable {
  state(): SourceState;
  /**
   * Something was found that the watch had not named, so there are directories
   * that it does not watch: subscribes afresh, soon, but not so often that it is kept busy by it.
   */
  renew(): void;
}

export function watchCgroups(options: CgroupWatchOptions): CgroupWatch {
  const { cgroupRoot, logger, onHints, subscribe = parcelSubscribe } = options;
  const places = new Set<string>();
  const moved = new Set<string>();
  let state: SourceState['state'] = 'degraded';
  let detail = 'the first subscription is being made';
  let subscription: AsyncSubscription | undefined;
  let attempt: Promise<void> | undefined;
  let timer: NodeJS.Timeout | undefined;
  let failures = 0;
  let generation = 0;
  let renewed = -Infinity;
  let tookMs = 0;
  let renewing = false;
  let delivering = false;
  let closed = false;

  function relative(path: string): string {
    return path === cgroupRoot ? '/' : path.slice(cgroupRoot.length);
  }

  function take(err: Error | null, events: readonly { path: string; type: string }[], of: number): void {
    if (closed || of !== generation) return;
    if (err) return retry(err);
    for (const { path, type } of events) {
      if (type === 'delete' && path === cgroupRoot) retry(new Error('the watched root was removed'));
      if (path.endsWith('/cgroup.procs')) moved.add(relative(path.slice(0, -'/cgroup.procs'.length)));
      else places.add(relative(path));
    }
    void deliver();
  }

  /** Hands on what was collected; what comes meanwhile is collected for the next turn. */
  async function deliver(): Promise<void> {
    if (delivering) return;
    delivering = true;
    while (!closed && places.size + moved.size > 0) {
      const hints = { places: topmost(places), moved: [...moved] };
      places.clear();
      moved.clear();
      try {
        await onHints(hints);
      } catch (err) {
        logger.error({ err }, 'the handler of cgroup hints failed; the watch goes on');
      }
    }
    delivering = false;
  }

  async function begin(): Promise<void> {
    if (closed) return;
    const mine = ++generation;
    renewing = false;
    renewed = performance.now();
    const old = subscription;
    subscription = undefined;
    try {
      await old?.unsubscribe();
    } catch (err) {
      logger.debug({ err }, 'the old watch could not be ended'); // its directory may be gone
    }
    try {
      const made = await subscribe(cgroupRoot, (err, events) => take(err, events, mine), {
        ignore: [IGNORED],
        backend: BACKEND,
      });
      tookMs = performance.now() - renewed;
      if (mine !== generation) return void (await made.unsubscribe());
      subscription = made;
      failures = 0;
      state = 'ok';
      detail = `follows ${cgroupRoot} by inotify`;
      options.onSubscribed();
    } catch (err) {
      if (mine === generation) retry(err);
    }
  }

  function schedule(ms: number): void {
    if (closed) return;
    clearTimeout(timer);
    timer = setTimeout(() => {
      attempt = (attempt ?? Promise.resolve()).then(begin);
    }, ms).unref();
  }

  function retry(err: unknown): void {
    generation++; // whatever the old watch still says is not listened to
    const growing = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** failures++);
    const wait = Math.round(growing * (0.5 + Math.random()));
    const limit = reachedLimit(messageOf(err));
    state = limit ? 'failed' : 'degraded';
    detail = `${limit ?? `the watch of ${cgroupRoot} failed (${messageOf(err)})`}; new cgroups are found by process events and the sweep, and it is tried again in ${(wait / 1000).toFixed(1)} s`;
    // Under churn one failure is no news; DESIGN counts 14 in 100.
    logger[failures === 2 || limit ? 'warn' : 'debug']({ err, failures }, detail);
    schedule(wait);
  }

  attempt = begin();

  return {
    state: () => ({ name: 'cgroup-watch', state, detail }),
    renew() {
      if (state !== 'ok' || renewing) return;
      renewing = true;
      schedule(Math.max(0, renewed + Math.max(RENEW_MS, RENEW_PAUSE * tookMs) - performance.now()));
    },
    async [Symbol.asyncDispose]() {
      if (closed) return;
      closed = true;
      generation++;
      clearTimeout(timer);
      await attempt;
      try {
        await subscription?.unsubscribe();
      } catch (err) {
        logger.debug({ err }, 'the watch could not be ended');
      }
      state = 'off';
      detail = 'closed';
    },
  };
}

/** Those paths that are not below another one of them. */
export function topmost(paths: Iterable<string>): string[] {
  const all = new Set(paths);
  if (all.has('/')) return ['/'];
  return [...all].filter((path) => {
    for (let slash = path.lastIndexOf('/'); slash > 0; slash = path.lastIndexOf('/', slash - 1)) {
      if (all.has(path.slice(0, slash))) return false;
    }
    return true;
  });
}

/** What to do about inotify's limits, if that is what the error's text tells of. */
function reachedLimit(message: string): string | undefined {
  const limit = message.includes('No space left on device')
    ? 'max_user_watches'
    : message.includes('Too many open files')
      ? 'max_user_instances'
      : undefined;
  if (limit === undefined) return undefined;
  let value = '';
  try {
    value = ` of ${readFileSync(`/proc/sys/fs/inotify/${limit}`, 'utf8').trim()}`;
  } catch {
    // The sentence does without it.
  }
  return `the limit${value} on inotify watches is reached: raise it with sysctl fs.inotify.${limit}`;
}
