import assert from 'node:assert/strict';
import { mkdirSync, rmdirSync, statSync } from 'node:fs';
import { test } from 'node:test';
import { pino } from 'pino';
import { type Cgroup, openCgroupTree } from '../../watcher/cgroup-tree.ts';
import { levelOf } from '../../watcher/cgroup-level.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';

/** A tree that writes down what it reports: `+/a`, `-/a`. */
function recorded(sandbox: Sandbox, onAppeared: (cgroup: Cgroup) => void = () => {}) {
  const log: string[] = [];
  const ids: bigint[] = [];
  const tree = openCgroupTree({
    cgroupRoot: sandbox.cgroupRoot,
    logger: pino({ level: 'silent' }),
    onAppeared(cgroup) {
      log.push(`+${cgroup.path}`);
      ids.push(cgroup.id);
      onAppeared(cgroup);
    },
    onGone: ({ path }) => void log.push(`-${path}`),
  });
  return { tree, log, ids, take: () => log.splice(0) };
}

const remove = (sandbox: Sandbox, ...paths: string[]): void =>
  paths.forEach((path) => rmdirSync(sandbox.cgroupRoot + path));

test('the first sweep reports all cgroups with their ids, parents first', async () => {
  await using sandbox = await makeSandbox('tree');
  const made = ['/a/b/c', '/a/b/d', '/e'].map((path) => sandbox.cgroup(path));
  const { tree, log } = recorded(sandbox);
  await tree.sweep();
  assert.deepEqual(new Set(log), new Set(['+/', '+/host', '+/a', '+/a/b', '+/a/b/c', '+/a/b/d', '+/e']));
  for (const entry of log) {
    const parent = entry.slice(1, entry.lastIndexOf('/')) || '/';
    assert.ok(entry === '+/' || log.indexOf(`+${parent}`) < log.indexOf(entry), `${parent} before ${entry}`);
  }
  for (const { id, path } of made) assert.equal(tree.cgroups.get(id)?.path, path);
  assert.equal(tree.at('/a/b')?.parent, tree.at('/a')?.id);
});

test('a sweep goes into what a look-up finds first, as that sees nothing of what is below', async () => {
  for (const look of ['sweep', 'rescan'] as const) {
    await using sandbox = await makeSandbox('tree');
    for (const path of ['/t/a/1/2', '/t/b/1/2', '/t/c/1/2']) sandbox.cgroup(path);
    // While the first of them is being looked at, events of processes name the others.
    const { tree } = recorded(sandbox, ({ path }) => {
      if (/^\/t\/.$/.test(path)) for (const other of 'abc') tree.ensure(`/t/${other}`);
    });
    await (look === 'sweep' ? tree.sweep() : tree.rescan('/t'));
    for (const child of 'abc') assert.notEqual(tree.at(`/t/${child}/1/2`), undefined, `${look}: /t/${child}`);
  }
});

test('a sweep without changes reports nothing', async () => {
  await using sandbox = await makeSandbox('tree');
  sandbox.cgroup('/a/b');
  const { tree, take } = recorded(sandbox);
  await tree.sweep();
  take();
  await tree.sweep();
  assert.deepEqual(take(), []);
  assert.equal(tree.foundBySweep(), 0);
});

test('a cgroup that is deleted and made again under its path is another one', async () => {
  await using sandbox = await makeSandbox('tree');
  const first = sandbox.cgroup('/a/b');
  for (const look of ['sweep', 'rescan', 'ensure'] as const) {
    const { tree, take } = recorded(sandbox);
    await tree.sweep();
    const before = tree.at('/a')!.id;
    take();
    remove(sandbox, '/a/b', '/a');
    const again = sandbox.cgroup('/a/b');
    assert.notEqual(again.id, first.id);
    if (look === 'sweep') await tree.sweep();
    else if (look === 'rescan') await tree.rescan('/a');
    else assert.equal(tree.ensure('/a/b')?.id, again.id);
    assert.deepEqual(take(), ['-/a/b', '-/a', '+/a', '+/a/b'], look);
    assert.equal(tree.cgroups.has(before), false);
    assert.equal(tree.at('/a/b')?.id, again.id);
  }
});

test('a hint for the topmost of a nested creation finds all of it', async () => {
  await using sandbox = await makeSandbox('tree');
  const { tree, take } = recorded(sandbox);
  await tree.sweep();
  take();
  sandbox.cgroup('/a/b/c/d');
  await tree.rescan('/a');
  assert.deepEqual(take(), ['+/a', '+/a/b', '+/a/b/c', '+/a/b/c/d']);
});

test('a hint for a deep place takes in what is beside its new ancestors', async () => {
  await using sandbox = await makeSandbox('tree');
  const { tree, take } = recorded(sandbox);
  await tree.sweep();
  take();
  sandbox.cgroup('/a/b/c');
  sandbox.cgroup('/a/x');
  await tree.rescan('/a/b/c');
  assert.deepEqual(take().sort(), ['+/a', '+/a/b', '+/a/b/c', '+/a/x']);
});

test('a hint for a place that is gone looks at its nearest ancestor', async () => {
  await using sandbox = await makeSandbox('tree');
  sandbox.cgroup('/a/b/c');
  const { tree, take } = recorded(sandbox);
  await tree.sweep();
  take();
  remove(sandbox, '/a/b/c', '/a/b');
  sandbox.cgroup('/a/new');
  await tree.rescan('/a/b/c');
  assert.deepEqual(take(), ['-/a/b/c', '-/a/b', '+/a/new']);
  await tree.rescan('/never/was');
  await tree.rescan('/../escape');
  await tree.rescan(`/${'x'.repeat(4000)}`);
  assert.deepEqual(take(), []);
  assert.equal(tree.ensure('/../..'), undefined);
});

test('one deleted and one made leave the link count as it was, and both are seen', async () => {
  await using sandbox = await makeSandbox('tree');
  sandbox.cgroup('/a/one');
  const { tree, take } = recorded(sandbox);
  await tree.sweep();
  take();
  const links = statSync(`${sandbox.cgroupRoot}/a`).nlink;
  remove(sandbox, '/a/one');
  sandbox.cgroup('/a/two');
  assert.equal(statSync(`${sandbox.cgroupRoot}/a`).nlink, links);
  await tree.sweep();
  assert.deepEqual(take(), ['-/a/one', '+/a/two']);
  assert.equal(tree.foundBySweep(), 1);
});

test('a handler that throws does not keep the others from their cgroups', async () => {
  await using sandbox = await makeSandbox('tree');
  sandbox.cgroup('/a/b');
  const { tree, log } = recorded(sandbox, ({ path }) => {
    if (path === '/a') throw new Error('handler');
  });
  await tree.sweep();
  assert.ok(log.includes('+/a/b'));
});

test('when the root goes, all of it goes, and it may come back', async () => {
  await using sandbox = await makeSandbox('tree');
  const inner = sandbox.cgroup('/root/a');
  const { tree, take } = recorded({ ...sandbox, cgroupRoot: `${sandbox.cgroupRoot}/root` });
  await tree.sweep();
  remove(sandbox, '/root/a', '/root');
  take();
  await tree.sweep();
  assert.deepEqual(take(), ['-/a', '-/']);
  assert.equal(tree.cgroups.has(inner.id), false);
  sandbox.cgroup('/root/a');
  await tree.sweep();
  assert.deepEqual(take(), ['+/', '+/a']);
});

test('look-ups and changes in the middle of a sweep leave a true tree', async () => {
  await using sandbox = await makeSandbox('tree');
  for (let i = 0; i < 300; i++) sandbox.cgroup(`/p${i % 20}/c${i}`);
  const { tree, log } = recorded(sandbox);
  const sweeping = [tree.sweep(), tree.sweep(), tree.rescan('/p3')];
  for (let i = 0; i < 40; i++) {
    tree.ensure(`/p${i % 20}/c${i}`);
    remove(sandbox, `/p${i % 20}/c${i}`);
    tree.ensure(`/p${i % 20}/c${i}`);
    sandbox.cgroup(`/p${i % 20}/new${i}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
  await Promise.all(sweeping);
  await tree.sweep();
  const alive = new Map<string, number>();
  for (const entry of log)
    alive.set(entry.slice(1), (alive.get(entry.slice(1)) ?? 0) + (entry.startsWith('+') ? 1 : -1));
  assert.deepEqual(new Set(alive.values()), new Set([0, 1]), 'each is reported once until it is gone');
  assert.equal([...alive.values()].filter((n) => n === 1).length, 1 + 1 + 20 + 300);
  for (const { id, path } of tree.cgroups.values())
    assert.equal(statSync(sandbox.cgroupRoot + path, { bigint: true }).ino, id);
});

test('10,000 cgroups: they are swept in slices that leave the event loop free', async () => {
  await using sandbox = await makeSandbox('tree');
  for (let i = 0; i < 100; i++) {
    mkdirSync(`${sandbox.cgroupRoot}/p${i}`);
    for (let j = 0; j < 99; j++) mkdirSync(`${sandbox.cgroupRoot}/p${i}/c${j}`);
  }
  const { tree, log } = recorded(sandbox);
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  await tree.sweep();
  await tree.sweep();
  clearInterval(timer);
  assert.equal(log.length, 10_002);
  assert.equal(tree.cgroups.size, 10_002);
  assert.ok(turns >= 5, `timers had ${turns} turns`);
});

test('the level of a cgroup is its depth below the kernel root', async (t) => {
  await using sandbox = await makeSandbox('tree');
  const { absolute } = sandbox.cgroup('/a/b');
  const level = levelOf(absolute);
  if (level === undefined) return t.skip('the cgroup2 mount shows a part of the hierarchy only');
  assert.equal(level, levelOf(sandbox.cgroupRoot)! + 2);
});
