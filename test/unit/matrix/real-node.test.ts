/** The real node's own parts: what the document says of its rows, and the image that it makes. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { makeArchive } from '../../matrix/node/archive.ts';
import { termination } from '../../matrix/node/mesh.ts';
import { nodeSection } from '../../matrix/node/document.ts';
import { podObject } from '../../harness/kube-objects.ts';

test('the document tells a check that failed, and one that did not run, from one that passed', () => {
  const rows = [
    { check: 'a', driver: 'systemd', passed: true, seconds: 1 },
    { check: 'b', driver: 'systemd', passed: true, seconds: 2 },
    { check: 'a', driver: 'cgroupfs', passed: false, seconds: 3, message: 'Error: no' },
  ] as const;
  const section = nodeSection({ name: 'node', kernel: '6.12.107', versions: {}, rows, seconds: 9 });
  assert.match(section, /^\| {2}\| systemd \| cgroupfs \|$/m);
  assert.match(section, /^\| a \| yes \| \*\*no\*\* \|$/m);
  assert.match(section, /^\| b \| yes \| \*\*did not run\*\* \|$/m);
  assert.doesNotMatch(section, /6\.12\.107/);
});

test('an image is one file, with its layer under the name that its configuration gives it', () => {
  const directory = mkdtempSync(join(tmpdir(), 'cgroute-test-archive-'));
  try {
    mkdirSync(join(directory, 'root/bin'), { recursive: true });
    writeFileSync(join(directory, 'root/bin/true'), 'x', { mode: 0o755 });
    const file = join(directory, 'image.tar');
    makeArchive(join(directory, 'root'), file, 'localhost/x:1', ['/bin/true']);
    const read = (name: string): Buffer => execFileSync('tar', ['-xOf', file, name]);
    const [{ Config, RepoTags, Layers }] = JSON.parse(read('manifest.json').toString()) as [
      { Config: string; RepoTags: string[]; Layers: [string] },
    ];
    const config = JSON.parse(read(Config).toString()) as {
      rootfs: { diff_ids: string[] };
      config: { Entrypoint: string[] };
    };
    const layer = read(Layers[0]);
    assert.deepEqual(RepoTags, ['localhost/x:1']);
    assert.deepEqual(config.config.Entrypoint, ['/bin/true']);
    assert.deepEqual(config.rootfs.diff_ids, [`sha256:${createHash('sha256').update(layer).digest('hex')}`]);
    assert.match(execFileSync('tar', ['-tf', '-'], { input: layer, encoding: 'utf8' }), /^\.\/bin\/true$/m);
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test('what the containers of a pod have said at their end comes in the order of their runs', () => {
  const ended = (message: string) => [
    { name: 'x', ready: false, restartCount: 0, state: { terminated: { message } } },
  ];
  const pod = {
    ...podObject('x', { node: 'n' }),
    status: { initContainerStatuses: ended('first'), containerStatuses: ended('second') },
  };
  assert.deepEqual(termination(pod), ['first', 'second']);
});
