/** The watch in a process of its own, which has less than the host's: namespaces, and limits. */
import assert from 'node:assert/strict';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import { run } from '../../deploy/stage/process.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';

/** Watches the sandbox in a process of its own, wrapped by `before`; returns what it printed after some sweeps. */
async function watchedBy(sandbox: Sandbox, before: string[], cgroupRoot = sandbox.cgroupRoot) {
  const script = `
    const { openHost } = await import(${JSON.stringify(new URL('../../watcher/open-host.ts', import.meta.url).href)});
    const log = () => {};
    const processes = [];
    const host = openHost({
      cgroupRoot: ${JSON.stringify(cgroupRoot)}, procRoot: '/proc',
      logger: { debug: log, info: log, warn: log, error: log },
    });
    const watch = host.follow({
      sweepMs: 100,
      onCgroup() {}, onCgroupGone() {}, onProcess: ({ pid, path }) => processes.push({ pid, path }),
    });
    await watch.ready;
    const sleep = (await import('node:child_process')).spawn('sleep', ['600']);
    const swept = () => Number(/last of (\\d+)/.exec(watch.sources()[3].detail)?.[1] ?? 0);
    for (const from = swept(); swept() < from + 5; ) await new Promise((resolve) => setTimeout(resolve, 20));
    console.log(JSON.stringify({ self: process.pid, child: sleep.pid, sources: watch.sources(), cgroups: host.cgroups.size, processes }));
    sleep.kill();
    await watch[Symbol.asyncDispose]();`;
  const cwd = fileURLToPath(new URL('../..', import.meta.url));
  const { code, stdout, stderr } = await run({
    cmd: before[0]!,
    args: [...before.slice(1), process.execPath, '--input-type=module', '-e', script],
    cwd,
    cgroup: sandbox.hostCgroup,
  });
  assert.equal(code, 0, stderr);
  return JSON.parse(stdout) as {
    self: number;
    child: number;
    sources: { name: string; state: string; detail: string }[];
    cgroups: number;
    processes: { pid: number; path: string }[];
  };
}

test('a watch limit reached (said, and the sweep goes on): with its remedy', async () => {
  await using sandbox = await makeSandbox('watch');
  for (let i = 0; i < 20; i++) sandbox.cgroup(`/p${i}`);
  const limited = [
    'unshare',
    '--user',
    '--map-root-user',
    'sh',
    '-c',
    'echo 8 >/proc/sys/user/max_inotify_watches && exec "$@"',
    'sh',
  ];
  const { sources, cgroups } = await watchedBy(sandbox, limited);
  const [, processes, watch, sweep] = sources;
  assert.equal(watch?.state, 'failed');
  assert.match(
    watch.detail,
    /limit of \d+ on inotify watches is reached.*sysctl fs\.inotify\.max_user_watches.*the sweep/,
  );
  assert.equal(processes?.state, 'failed', 'a user namespace hears no process events');
  assert.match(processes.detail, /hostPID: true/);
  assert.equal(sweep?.state, 'ok');
  assert.ok(Number(/last of (\d+)/.exec(sweep.detail)?.[1]) > 1, sweep.detail);
  assert.equal(cgroups, 22);
});

test('outside the host network namespace process events are refused with the remedy', async () => {
  await using sandbox = await makeSandbox('watch');
  const { sources } = await watchedBy(sandbox, ['unshare', '--net']);
  assert.equal(sources[1]?.state, 'failed');
  assert.match(sources[1].detail, /hostNetwork: true/);
  assert.equal(sources[2]?.state, 'ok');
});

test('in a cgroup namespace of its own the agent finds its own cgroup and those beside it', async () => {
  await using sandbox = await makeSandbox('watch');
  const beside = sandbox.cgroup('/beside/c');
  await using program = sandbox.spawn({ cmd: 'sleep', args: ['600'], cgroup: beside });
  const { self, child, processes } = await watchedBy(sandbox, ['unshare', '--cgroup']);
  assert.deepEqual(
    processes.find(({ pid }) => pid === program.pid),
    { pid: program.pid, path: '/beside/c' },
  );
  const own = processes.filter(({ pid }) => pid === self || pid === child);
  assert.ok(own.length > 0 && own.every(({ path }) => path === '/host'), JSON.stringify(own));
});
