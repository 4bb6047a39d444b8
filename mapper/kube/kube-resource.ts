/**
 * Follows one kind of object of the API server for ever: list, then watch, and
 * after whatever goes wrong again.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { messageOf } from '../../native/error.ts';
import type { SourceState } from '../../watcher/source-state.ts';
import { makeBackoff, type Backoff } from '../pacing/backoff.ts';
import type { KubeClient } from './kube-client.ts';
import { KubeError, type KubeFailure } from './kube-error.ts';
import { listPages, type Freshness } from './kube-list.ts';
import { watch, type WatchEventType } from './kube-watch.ts';
import { KnownObjects, metadataOf, type KnownObjectsOptions } from './known-objects.ts';

/** Milliseconds; tests have less of them. */
export interface KubeTiming {
  /** Between two lists; up to a fifth is added, so that nodes don't ask all at once. */
  readonly relistMs: number;
  /** What a watch is told to last is between the two. */
  readonly watchMs: readonly [least: number, most: number];
  readonly idleMs: number;
  readonly backoffMs: readonly [first: number, most: number];
  /** A watch that has lasted so long works, even if it had nothing to tell. */
  readonly settledMs: number;
  readonly pageSize: number;
}

export const defaultTiming: KubeTiming = {
  relistMs: 600_000,
  watchMs: [300_000, 600_000],
  // Two bookmarks missed, and some.
  idleMs: 150_000,
  backoffMs: [500, 30_000],
  settledMs: 5_000,
  pageSize: 500,
};

export interface KubeResourceOptions<T extends object> extends KnownObjectsOptions<T> {
  readonly path: string;
  readonly fieldSelector?: string;
  readonly client: KubeClient;
  readonly timing: KubeTiming;
  /** A list is through: all that exists has been given, and what is gone removed. */
  readonly onListed: () => void;
}

/** Why a source began anew: what went wrong, or the plan. */
export type Restart = KubeFailure | 'internal' | 'timeout' | 'relist';

/** So many watches in a row have failed from one version, with a server that was there: it may be the version. */
const FAILURES_UNTIL_LIST = 5;

export class KubeResource<T extends object> implements AsyncDisposable {
  readonly #options: KubeResourceOptions<T>;
  readonly #stop = new AbortController();
  readonly #backoff: Backoff;
  readonly #known: KnownObjects<T>;
  readonly #restarts = new Map<Restart, number>();
  readonly #running: Promise<void>;
  #version = '';
  #failedWatches = 0;
  #freshness: Freshness = 'any';
  #wantsList = true;
  #relistAt = 0;
  #lastHeardAt: number | undefined;
  #listedOnce = false;
  /** Since when nothing works, and what was the last reason. */
  #failing: { readonly sinceMs: number; readonly since: string; why: string; nextAt: number } | undefined;

  constructor(options: KubeResourceOptions<T>) {
    this.#options = options;
    this.#known = new KnownObjects(options);
    this.#backoff = makeBackoff(...options.timing.backoffMs);
    this.#running = this.#run();
  }

  get name(): string {
    return this.#options.name;
  }

  /** Milliseconds since the server was heard of: a list, an event or a bookmark. */
  get lastEventAgeMs(): number | undefined {
    return this.#lastHeardAt === undefined ? undefined : performance.now() - this.#lastHeardAt;
  }

  get restarts(): ReadonlyMap<Restart, number> {
    return this.#restarts;
  }

  state(): SourceState {
    const { name, client } = this.#options;
    const stands = `${this.#known.size} known`;
    const where = `${client.server} (${client.origin})`;
    if (this.#stop.signal.aborted) return { name, state: 'off', detail: `${where} is no longer watched` };
    if (this.#failing !== undefined) {
      const { sinceMs, since, why, nextAt } = this.#failing;
      const now = performance.now();
      const next = nextAt > now ? `next try in ${Math.ceil((nextAt - now) / 1000)} s` : 'trying now';
      const when = `since ${since} (${Math.round((now - sinceMs) / 1000)} s), ${next}: ${why}`;
      if (!this.#listedOnce) return { name, state: 'failed', detail: `never listed; ${when}` };
      return {
        name,
        state: 'degraded',
        detail: `not followed ${when}; what stood before goes on (${stands})`,
      };
    }
    if (!this.#listedOnce) return { name, state: 'failed', detail: `not listed yet; asking ${where}` };
    const unreadable =
      this.#known.unreadable === 0 ? '' : `, ${this.#known.unreadable} of them can't be read`;
    return {
      name,
      state: 'ok',
      detail: `${where}: ${stands}${unreadable}; last heard of ${Math.round((this.lastEventAgeMs ?? 0) / 1000)} s ago`,
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      try {
        if (this.#wantsList) await this.#list();
        this.#restarted(await this.#watch());
      } catch (error) {
        if (signal.aborted) return;
        const waitMs = this.#failed(error);
        await delay(waitMs, undefined, { signal }).catch(() => {});
      }
    }
  }

  async #list(): Promise<void> {
    const { client, path, timing, onListed } = this.#options;
    const seen = new Set<string>();
    const pages = listPages({
      client,
      path,
      selector: this.#selector,
      freshness: this.#freshness,
      version: this.#version,
      pageSize: timing.pageSize,
      signal: this.#stop.signal,
    });
    for await (const { items, version } of pages) {
      for (const item of items) {
        const key = this.#known.upsert(item);
        if (key !== undefined) seen.add(key);
      }
      this.#heard();
      this.#version = version;
    }
    this.#known.keepOnly(seen);
    this.#freshness = 'newer';
    this.#wantsList = false;
    this.#relistAt = performance.now() + timing.relistMs * (1 + Math.random() / 5);
    this.#listedOnce = true;
    this.#known.tell(onListed);
  }

  /** Gives what ended a watch that did what it should. */
  async #watch(): Promise<'timeout' | 'relist'> {
    const { client, path, timing } = this.#options;
    const [least, most] = timing.watchMs;
    const relist = new AbortController();
    const relistTimer = setTimeout(() => relist.abort(), Math.max(0, this.#relistAt - performance.now()));
    let settledTimer: NodeJS.Timeout | undefined;
    let works = false;
    const settled = (): void => {
      works = true;
      this.#works();
    };
    try {
      await watch({
        client,
        path,
        query: {
          ...this.#selector,
          resourceVersion: this.#version,
          timeoutSeconds: Math.ceil((least + Math.random() * (most - least)) / 1000),
        },
        idleMs: timing.idleMs,
        signal: AbortSignal.any([this.#stop.signal, relist.signal]),
        onOpen: () => {
          settledTimer = setTimeout(settled, timing.settledMs);
        },
        onEvent: (type, object) => {
          this.#event(type, object);
          if (!works) settled();
        },
      });
      if (!works) throw new KubeError('ended', `watch of ${path}: the API server ended it at once`);
      return 'timeout';
    } catch (error) {
      if (!relist.signal.aborted) throw error;
      this.#wantsList = true;
      return 'relist';
    } finally {
      clearTimeout(relistTimer);
      clearTimeout(settledTimer);
    }
  }

  #event(type: WatchEventType, object: unknown): void {
    if (type === 'DELETED') this.#known.remove(object);
    else if (type !== 'BOOKMARK') this.#known.upsert(object);
    this.#heard();
    const version = metadataOf(object)['resourceVersion'];
    if (typeof version === 'string' && version !== '') this.#version = version;
  }

  get #selector(): Record<string, string> {
    const { fieldSelector } = this.#options;
    return fieldSelector === undefined ? {} : { fieldSelector };
  }

  #heard(): void {
    this.#lastHeardAt = performance.now();
  }

  #works(): void {
    this.#backoff.reset();
    this.#failedWatches = 0;
    if (this.#failing === undefined) return;
    const { sinceMs } = this.#failing;
    this.#failing = undefined;
    this.#options.logger.info(
      { resource: this.#options.name, afterMs: Math.round(performance.now() - sinceMs) },
      'the API server is followed again',
    );
  }

  /** Takes note, and gives the milliseconds until the next try. */
  #failed(error: unknown): number {
    const { name, logger } = this.#options;
    const failure = error instanceof KubeError ? error.failure : 'internal';
    const why = messageOf(error);
    this.#restarted(failure);
    const waitMs = this.#backoff.next(error instanceof KubeError ? error.retryAfterMs : 0);
    if (failure === 'expired') {
      this.#wantsList = true;
      this.#freshness = 'latest';
    } else if (
      failure !== 'unreachable' &&
      failure !== 'access' &&
      ++this.#failedWatches % FAILURES_UNTIL_LIST === 0
    ) {
      this.#wantsList = true;
    }
    if (this.#failing?.why !== why) {
      logger.warn(
        {
          resource: name,
          reason: failure,
          waitMs: Math.round(waitMs),
          ...(failure === 'internal' && { err: error }),
        },
        `${this.#listedOnce ? 'what stood before goes on' : 'nothing is known yet'}: ${why}`,
      );
    }
    const now = performance.now();
    const { sinceMs, since } = this.#failing ?? { sinceMs: now, since: new Date().toISOString() };
    this.#failing = { sinceMs, since, why, nextAt: now + waitMs };
    return waitMs;
  }

  #restarted(why: Restart): void {
    this.#restarts.set(why, (this.#restarts.get(why) ?? 0) + 1);
  }
}
