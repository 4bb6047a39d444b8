import assert from 'node:assert/strict';
import {
  appendFileSync,
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { beginWait } from '../../../../deploy/stage/deadline.ts';
import type { Manifest } from '../../../../mapper/object-sources/manifest.ts';
import { followManifest } from '../../../../mapper/object-sources/manifest-source.ts';
import type { ManifestSource } from '../../../../mapper/object-sources/manifest-source.ts';
import { CgrouteError } from '../../../../native/error.ts';

const namespaces = (...names: string[]): string =>
  names.map((name) => `kind: Namespace\nmetadata: {name: ${name}}\n`).join('---\n');

interface Followed extends Disposable {
  readonly directory: string;
  readonly path: string;
  readonly source: ManifestSource;
  /** Each change as the names of its namespaces. */
  readonly changes: string[];
  readonly errors: CgrouteError[];
  /** Milliseconds until the condition held; fails after eight seconds, before the interval. */
  readonly until: (condition: () => boolean) => Promise<number>;
}

interface FollowOptions {
  readonly intervalMs?: number;
  readonly prepare?: (directory: string, path: string) => void;
  readonly onChange?: (manifest: Manifest) => void;
  readonly onError?: () => void;
}

/** A file that is followed, in a directory of its own. The interval is long, so that a test sees the watch work and not the interval. */
function follow({ intervalMs = 600_000, prepare, onChange, onError }: FollowOptions = {}): Followed {
  const directory = mkdtempSync(join(tmpdir(), 'cgroute-test-manifest-'));
  const path = join(directory, 'pods.yaml');
  if (prepare) prepare(directory, path);
  else writeFileSync(path, namespaces('a'));
  const changes: string[] = [];
  const errors: CgrouteError[] = [];
  const start = (): ManifestSource =>
    followManifest(path, {
      intervalMs,
      onChange: (manifest) => {
        changes.push(manifest.namespaces.map(({ name }) => name).join(' '));
        onChange?.(manifest);
      },
      onError: (error) => {
        errors.push(error);
        onError?.();
      },
    });
  let source: ManifestSource;
  try {
    source = start();
  } catch (error) {
    rmSync(directory, { recursive: true, force: true });
    throw error;
  }
  const until = async (condition: () => boolean): Promise<number> => {
    const start = performance.now();
    for (const wait = beginWait(); !condition(); await sleep(5))
      if (wait.isOver())
        assert.fail(
          `nothing came: ${wait.passed()}; changes ${JSON.stringify(changes)}, errors ${errors.join('; ')}`,
        );
    return performance.now() - start;
  };
  return {
    directory,
    path,
    source,
    changes,
    errors,
    until,
    [Symbol.dispose]() {
      source[Symbol.dispose]();
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

describe('a followed manifest', { concurrency: true }, () => {
  test('is read before the call returns', () => {
    using followed = follow();
    assert.deepEqual(followed.changes, ['a']);
    assert.deepEqual(followed.source.state(), {
      name: 'manifest',
      state: 'ok',
      detail: `${followed.path}: pods: 0, namespaces: 1`,
    });
  });

  test('that cannot be used at the start is refused', () => {
    for (const prepare of [
      () => {},
      (_: string, path: string) => mkdirSync(path),
      (_: string, path: string) => writeFileSync(path, 'x'),
    ]) {
      assert.throws(
        () => follow({ prepare }),
        (error: unknown) =>
          error instanceof CgrouteError && error.code === 'EMANIFEST' && error.message.includes('pods.yaml'),
      );
    }
  });

  test('that is written in place is read again, soon', async () => {
    using followed = follow();
    writeFileSync(followed.path, namespaces('a', 'b'));
    await followed.until(() => followed.changes.includes('a b'));
  });

  test('that is written piece by piece is read when it holds still', async () => {
    using followed = follow();
    const file = openSync(followed.path, 'w');
    for (const name of ['b', 'c', 'd', 'e']) {
      writeSync(file, `---\n${namespaces(name)}`);
      await sleep(8);
    }
    closeSync(file);
    await followed.until(() => followed.changes.includes('b c d e'));
    assert.deepEqual(followed.changes, ['a', 'b c d e']);
  });

  test('that is replaced by rename is read again, twice in a row too', async () => {
    using followed = follow();
    for (const name of ['b', 'c']) {
      writeFileSync(join(followed.directory, 'new'), namespaces(name));
      renameSync(join(followed.directory, 'new'), followed.path);
      await followed.until(() => followed.changes.includes(name));
    }
    assert.deepEqual(followed.changes, ['a', 'b', 'c']);
  });

  test('that is a link into a directory which is swapped, as in a ConfigMap, is read again', async () => {
    const put = (directory: string, version: string, name: string): void => {
      mkdirSync(join(directory, version));
      writeFileSync(join(directory, version, 'pods.yaml'), namespaces(name));
      symlinkSync(version, join(directory, '..data_tmp'));
      renameSync(join(directory, '..data_tmp'), join(directory, '..data'));
    };
    using followed = follow({
      prepare(directory, path) {
        put(directory, '..v1', 'a');
        symlinkSync('..data/pods.yaml', path);
      },
    });
    for (const [version, name] of [
      ['..v2', 'b'],
      ['..v3', 'c'],
    ] as const) {
      put(followed.directory, version, name);
      await followed.until(() => followed.changes.includes(name));
    }
    assert.deepEqual(followed.changes, ['a', 'b', 'c']);
  });

  test('that is a link to a file elsewhere is read again when that file changes', async () => {
    using followed = follow({
      prepare(directory, path) {
        mkdirSync(join(directory, 'elsewhere'));
        writeFileSync(join(directory, 'elsewhere', 'real.yaml'), namespaces('a'));
        symlinkSync('elsewhere/real.yaml', path);
      },
    });
    writeFileSync(join(followed.directory, 'elsewhere', 'real.yaml'), namespaces('b'));
    await followed.until(() => followed.changes.includes('b'));
  });

  test('that does not parse is reported once with file and line, and what stood before stands', async () => {
    using followed = follow({ intervalMs: 60 });
    writeFileSync(followed.path, `${namespaces('b')}---\nkind: Pod\n`);
    await followed.until(() => followed.errors.length > 0);
    assert.match(followed.errors[0]?.message ?? '', /pods\.yaml:4: pod: metadata: expected a mapping/);
    assert.equal(followed.source.state().state, 'degraded');
    assert.match(
      followed.source.state().detail,
      /pods\.yaml:4: .*what stood before goes on \(pods: 0, namespaces: 1\)/,
    );
    await sleep(200);
    utimesSync(followed.path, 1, 1);
    await sleep(150);
    assert.equal(followed.errors.length, 1);
    assert.deepEqual(followed.changes, ['a']);
    writeFileSync(followed.path, namespaces('a'));
    await followed.until(() => followed.source.state().state === 'ok');
    assert.deepEqual(followed.changes, ['a'], 'the old text again is no change');
    writeFileSync(followed.path, namespaces('c'));
    await followed.until(() => followed.changes.includes('c'));
  });

  test('that is touched, or written again as it was, is no change', async () => {
    using followed = follow({ intervalMs: 50 });
    utimesSync(followed.path, 1, 1);
    await sleep(150);
    writeFileSync(followed.path, namespaces('a'));
    await sleep(150);
    assert.deepEqual(followed.changes, ['a']);
    assert.deepEqual(followed.errors, []);
  });

  test('that is gone for a moment is nothing to report', async () => {
    using followed = follow({ intervalMs: 300 });
    renameSync(followed.path, `${followed.path}~`);
    await sleep(100);
    writeFileSync(followed.path, namespaces('b'));
    await followed.until(() => followed.changes.includes('b'));
    assert.deepEqual(followed.errors, []);
  });

  test('that stays gone is reported once, and is read when it comes back', async () => {
    using followed = follow({ intervalMs: 60 });
    unlinkSync(followed.path);
    await followed.until(() => followed.errors.length > 0);
    assert.match(
      followed.errors[0]?.message ?? '',
      /pods\.yaml: expected a file that can be read, but there is none \(ENOENT\)/,
    );
    await sleep(200);
    assert.equal(followed.errors.length, 1);
    assert.equal(followed.source.state().state, 'degraded');
    writeFileSync(followed.path, namespaces('a'));
    await followed.until(() => followed.source.state().state === 'ok');
    assert.deepEqual(followed.changes, ['a']);
  });

  test('whose directory is removed and made again is followed as soon as before', async () => {
    const intervalMs = 3000;
    using followed = follow({ intervalMs });
    rmSync(followed.directory, { recursive: true });
    await followed.until(() => followed.errors.length > 0);
    mkdirSync(followed.directory);
    writeFileSync(followed.path, namespaces('b'));
    await followed.until(() => followed.changes.includes('b'));
    // The look at the interval has just been, so this is noticed by the watch on the new directory or late;
    // one of several, as a machine with other work may be late by itself.
    const tookMs: number[] = [];
    for (const name of ['c', 'd', 'e', 'f', 'g']) {
      appendFileSync(followed.path, `---\n${namespaces(name)}`);
      tookMs.push(await followed.until(() => followed.changes.some((names) => names.endsWith(name))));
    }
    assert.ok(
      Math.min(...tookMs) < intervalMs / 2,
      `only the look at the interval saw it: ${tookMs.join(', ')} ms`,
    );
  });

  test('that is blank for a moment keeps what stood, and that stays blank is believed', async () => {
    using followed = follow({ intervalMs: 300 });
    writeFileSync(followed.path, '');
    await sleep(120);
    writeFileSync(followed.path, namespaces('b'));
    await followed.until(() => followed.changes.includes('b'));
    assert.deepEqual(followed.changes, ['a', 'b']);
    writeFileSync(followed.path, '');
    await followed.until(() => followed.changes.includes(''));
    assert.deepEqual(followed.errors, []);
  });

  test('goes on when a handler throws', async () => {
    using followed = follow({
      onChange: () => {
        throw new Error('out of order');
      },
      onError: () => {
        throw new Error('also out of order');
      },
    });
    assert.match(followed.errors[0]?.message ?? '', /acting on it failed: out of order/);
    writeFileSync(followed.path, namespaces('b'));
    await followed.until(() => followed.changes.includes('b') && followed.errors.length === 2);
  });

  test('tells nothing more after it is closed', async () => {
    using followed = follow({ intervalMs: 40 });
    followed.source[Symbol.dispose]();
    followed.source[Symbol.dispose]();
    assert.equal(followed.source.state().state, 'off');
    writeFileSync(followed.path, namespaces('b'));
    await sleep(150);
    assert.deepEqual(followed.changes, ['a']);
  });
});
