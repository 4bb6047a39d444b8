/** Trees that go away, or refuse a program, while others wait; no kernel can be told to do so. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { PodTrees } from '../../../../mapper/placement/pod-trees.ts';
import type { CgroupPlace } from '../../../../native/bpf/cgroup-link.ts';
import type { DataPlane } from '../../../../native/data-plane/data-plane.ts';

const root = mkdtempSync(join(tmpdir(), 'pod-trees-'));
after(() => rmSync(root, { recursive: true }));

/** Attaches but to those that are in `refused`; notes each try. */
function plane(refused: Set<string>, tried: string[] = []): DataPlane {
  const attachPodTree = ({ path }: CgroupPlace): void => {
    tried.push(path.slice(root.length));
    statSync(path);
    if (refused.has(path.slice(root.length))) throw new Error(`${path} is refused`);
  };
  let listed: unknown;
  const podTrees = { get: () => listed, set: (_key: number, value: unknown) => void (listed = value) };
  return { attachPodTree, maps: { podTrees } } as unknown as DataPlane;
}

const idOf = (path: string): bigint => statSync(`${root}${path}`, { bigint: true }).ino;
function appears(trees: PodTrees, path: string): void {
  mkdirSync(`${root}${path}`, { recursive: true });
  trees.appeared({ cgroup: { path, id: idOf(path), parent: undefined }, owner: { kind: 'none' } });
}

function withTrees(refused: Set<string>, tried: string[], ...paths: string[]): PodTrees {
  const trees = new PodTrees({ dataPlane: plane(refused, tried), cgroupRoot: root, cgroupIdAt: idOf });
  for (const path of paths) appears(trees, path);
  return trees;
}

test('a tree that goes away before the programs are attached keeps the others from nothing', () => {
  const tried: string[] = [];
  const trees = withTrees(new Set(), tried, '/one/kubepods', '/two/kubepods');
  rmSync(`${root}/one`, { recursive: true });
  trees.attach();
  assert.deepEqual(tried, ['/one/kubepods', '/two/kubepods']);
});

test('one that is there and refuses the programs is an error', () => {
  assert.throws(() => withTrees(new Set(['/one/kubepods']), [], '/one/kubepods').attach(), /is refused/);
});

test('of those that refused, each is tried again, and no more once it has not', () => {
  const [refused, tried]: [Set<string>, string[]] = [new Set(), []];
  const trees = withTrees(refused, tried);
  trees.attach();
  for (const path of ['/one/kubepods', '/two/kubepods']) {
    refused.add(path);
    assert.throws(() => appears(trees, path), /is refused/);
  }
  refused.delete('/two/kubepods');
  tried.length = 0;
  assert.throws(() => trees.retry(), /one\/kubepods is refused/);
  assert.deepEqual(tried, ['/one/kubepods', '/two/kubepods']);
  refused.clear();
  trees.retry();
  trees.retry();
  assert.deepEqual(tried, ['/one/kubepods', '/two/kubepods', '/one/kubepods']);
});
