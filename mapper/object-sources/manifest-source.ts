/** Follows a manifest file: the source of pods and namespaces where there is no API server. */

import { readFileSync, realpathSync, statSync, watch } from 'node:fs';
import type { BigIntStats, FSWatcher } from 'node:fs';
import { dirname } from 'node:path';

import { CgrouteError, isAbsent, messageOf, refusalOf } from '../../native/error.ts';
import { trimMemory } from '../../native/boundary/memory.ts';
import type { SourceState } from '../../watcher/source-state.ts';
import { parseManifest } from './manifest.ts';
import type { Manifest } from './manifest.ts';

export interface ManifestOptions {
  /** The whole file as it is now; first called before `followManifest` returns. */
  readonly onChange: (manifest: Manifest) => void;
  /** A change that cannot be used, once each. What stood before stands. */
  readonly onError: (error: CgrouteError) => void;
  /**
   * Milliseconds between two looks at the file when nothing hints at a change.
   * Also how long the file may be gone or blank, as editors leave it for a
   * moment, before that is believed.
   *
   * @default 1000
   */
  readonly intervalMs?: number;
}

export interface ManifestSource extends Disposable {
  state(): SourceState;
}

/** An event on the directory comes in bursts: look once, after this. */
const HINT_MS = 10;
/** A file that was written in place is read when it has held still for this long. */
const SETTLE_MS = 30;
/** A file that never holds still is read all the same after this many looks. */
const SETTLE_LOOKS = 30;
/** Memory is given back when no change has followed for so long. */
const TRIM_MS = 1000;
const LARGEST = 32 * 1024 * 1024;

/**
 * Reads a manifest and follows its changes: written in place, replaced by
 * rename, or a symbolic link that is swapped, as in a mounted ConfigMap. A change
 * is noticed within some 100 ms where the directory can be watched, else within
 * the interval. Only the first read throws; nothing that a handler throws gets out.
 *
 * @throws CgrouteError `EMANIFEST` when the file can't be read or used at the start
 */
export function followManifest(path: string, options: ManifestOptions): ManifestSource {
  const { onChange, onError, intervalMs = 1000 } = options;
  const watches = new Map<string, { readonly identity: string; readonly watcher: FSWatcher }>();
  let closed = false;
  let timer: NodeJS.Timeout | undefined;
  let trim: NodeJS.Timeout | undefined;
  let due = Infinity;

  /** The identity of what was read last; empty when it must be read whatever it is, as once after the start. */
  let seen = '';
  let text = read(path);
  let manifest = parseManifest(text, path);
  let failure: string | undefined;
  /** The identity of a change that is being waited for to hold still, and how often it was looked at. */
  let pending: { identity: string; looks: number } | undefined;
  let missingSince: number | undefined;
  let blankSince: number | undefined;

  const fail = (error: unknown): void => {
    const message = messageOf(error);
    if (message === failure) return;
    failure = message;
    quietly(() =>
      onError(
        error instanceof CgrouteError ? error : new CgrouteError('EMANIFEST', message, { cause: error }),
      ),
    );
  };

  const tell = (): void => {
    try {
      onChange(manifest);
    } catch (cause) {
      const error = new CgrouteError(
        'EMANIFEST',
        `${path}: the file was read, and acting on it failed: ${messageOf(cause)}`,
        { cause },
      );
      quietly(() => onError(error));
    }
  };

  const schedule = (delayMs: number): void => {
    const at = performance.now() + delayMs;
    if (closed || at >= due) return;
    clearTimeout(timer);
    due = at;
    timer = setTimeout(() => {
      due = Infinity;
      look();
    }, delayMs);
  };

  /** Takes the file's text when it differs from what stands. Not yet, when it gives the milliseconds to wait. */
  const take = (identity: string, looks: number): number | undefined => {
    const next = read(path);
    if (identityOf(path) !== identity && looks < SETTLE_LOOKS) return SETTLE_MS;
    if (next.trim() === '' && text.trim() !== '') {
      blankSince ??= performance.now();
      const left = blankSince + intervalMs - performance.now();
      if (left > 0) return left;
    }
    blankSince = undefined;
    seen = identity;
    if (next !== text) {
      manifest = parseManifest(next, path);
      text = next;
      tell();
      // Parsing takes many times the file's size, for a moment.
      clearTimeout(trim);
      trim = setTimeout(trimMemory, TRIM_MS).unref();
    }
    failure = undefined;
    return undefined;
  };

  const look = (): void => {
    if (closed) return;
    try {
      watchDirectories();
      const identity = identityOf(path);
      missingSince = undefined;
      if (identity === seen) {
        pending = undefined;
        return;
      }
      const held = pending?.identity === identity;
      pending = { identity, looks: (pending?.looks ?? 0) + 1 };
      const wait = held || pending.looks > SETTLE_LOOKS ? take(identity, pending.looks) : SETTLE_MS;
      if (wait === undefined) pending = undefined;
      else schedule(wait);
    } catch (error) {
      if (isAbsent(error)) {
        missingSince ??= performance.now();
        if (performance.now() - missingSince < intervalMs) return;
      }
      // What was read and is bad need not be read again; what could not be read is tried again.
      if (seen !== pending?.identity) seen = '';
      pending = undefined;
      blankSince = undefined;
      fail(error);
    } finally {
      schedule(intervalMs);
    }
  };

  /** Watches the directory that holds the name, and the one that holds the file; again when they were replaced. */
  const watchDirectories = (): void => {
    const wanted = new Set([dirname(path)]);
    quietly(() => wanted.add(dirname(realpathSync(path))));
    for (const [directory, { watcher }] of watches) {
      if (wanted.has(directory)) continue;
      watcher.close();
      watches.delete(directory);
    }
    for (const directory of wanted) quietly(() => watchDirectory(directory));
  };

  const watchDirectory = (directory: string): void => {
    // A new directory may get the number of the one that was removed, as on ext4.
    const { dev, ino, birthtimeNs } = statSync(directory, { bigint: true });
    const identity = `${dev}:${ino}:${birthtimeNs}`;
    const before = watches.get(directory);
    if (before?.identity === identity) return;
    before?.watcher.close();
    watches.delete(directory);
    const watcher = watch(directory, () => schedule(HINT_MS));
    watcher.on('error', () => {
      watcher.close();
      if (watches.get(directory)?.watcher === watcher) watches.delete(directory);
    });
    watches.set(directory, { identity, watcher });
  };

  watchDirectories();
  tell();
  schedule(intervalMs);

  return {
    state() {
      const stands = `pods: ${manifest.pods.length}, namespaces: ${manifest.namespaces.length}`;
      if (closed) return { name: 'manifest', state: 'off', detail: `${path} is no longer followed` };
      if (failure !== undefined)
        return {
          name: 'manifest',
          state: 'degraded',
          detail: `${failure}; what stood before goes on (${stands})`,
        };
      const slow =
        watches.size === 0
          ? `; its directory can't be watched, so it is looked at every ${intervalMs} ms`
          : '';
      return { name: 'manifest', state: 'ok', detail: `${path}: ${stands}${slow}` };
    },
    [Symbol.dispose]() {
      closed = true;
      clearTimeout(timer);
      clearTimeout(trim);
      for (const { watcher } of watches.values()) watcher.close();
      watches.clear();
    },
  };
}

/** What changes when the file does. The change time is in it, as a copy may keep size and modification time. */
function identityOf(path: string): string {
  const { dev, ino, size, mtimeNs, ctimeNs } = checked(path);
  return `${dev}:${ino}:${size}:${mtimeNs}:${ctimeNs}`;
}

function read(path: string): string {
  checked(path);
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw unreadable(path, error);
  }
}

/** Refuses what would block or never end, such as a pipe or a device, before it is opened. */
function checked(path: string): BigIntStats {
  let stats: BigIntStats;
  try {
    stats = statSync(path, { bigint: true });
  } catch (error) {
    throw unreadable(path, error);
  }
  if (!stats.isFile()) {
    throw new CgrouteError(
      'EMANIFEST',
      `${path}: expected a regular file with Namespace and Pod objects, got a ${stats.isDirectory() ? 'directory' : 'special file'}`,
    );
  }
  if (stats.size > LARGEST) {
    throw new CgrouteError('EMANIFEST', `${path}: expected at most ${LARGEST} bytes, got ${stats.size}`);
  }
  return stats;
}

function unreadable(path: string, cause: unknown): CgrouteError {
  const { code, syscall } = cause as NodeJS.ErrnoException;
  const details = {
    cause,
    ...(code === undefined ? {} : { errno: code }),
    ...(syscall === undefined ? {} : { syscall }),
  };
  const why = code === 'ENOENT' ? 'there is none (ENOENT)' : refusalOf(cause);
  return new CgrouteError('EMANIFEST', `${path}: expected a file that can be read, but ${why}`, details);
}

/** For what must not disturb: a handler of somebody else's, or a hint that only saves time. */
function quietly(act: () => void): void {
  try {
    act();
  } catch {
    // Nothing here may stop the following; the look at the interval stands behind it.
  }
}
