import assert from 'node:assert/strict';
import { readlinkSync, rmdirSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { subscribe as parcelSubscribe } from '@parcel/watcher';
import { pino } from 'pino';
import { CgrouteError } from '../../native/error.ts';
import type { ProcConnectorOptions } from '../../native/netlink/proc-connector.ts';
import { watchHost, type HostProcess, type HostWatchOptions } from '../../watcher/host-watch.ts';
import { makeNetwork } from '../../deploy/stage/netns.ts';
import { eventually, run } from '../../deploy/stage/process.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';

function watched(sandbox: Sandbox, options: Partial<HostWatchOptions> = {}) {
  const cgroups = new Map<string, bigint>();
  const gone: string[] = [];
  const processes: HostProcess[] = [];
  const watch = watchHost({
    cgroupRoot: sandbox.cgroupRoot,
    procRoot: '/proc',
    sweepMs: 600_000,
    logger: pino({ level: 'silent' }),
    onCgroup: ({ path, id }) => void cgroups.set(path, id),
    onCgroupGone: ({ path }) => void gone.push(path),
    onProcess: (process) => void processes.push(process),
    ...options,
  });
  const source = (name: string) => watch.sources().find((each) => each.name === name)!;
  return { watch, cgroups, gone, processes, source };
}

const netnsOf = (pid: number | 'self'): number =>
  Number(/\d+/.exec(readlinkSync(`/proc/${pid}/ns/net`))?.[0]);

/** Nothing to watch with: as on a host where both witnesses are missing. */
const noEvents = async (): Promise<never> => {
  throw new CgrouteError('EPROCEVENTS', 'process events were refused with EPERM', { errno: 'EPERM' });
};
const noWatch = async (): Promise<never> => {
  throw new Error("inotify_add_watch on '/x' failed: Interrupted system call");
};

test('everything that already runs is reported before the watch is ready', async () => {
  await using sandbox = await makeSandbox('watch');
  const cgroup = sandbox.cgroup('/pods/pod1/c1');
  await using program = sandbox.spawn({ cmd: 'sleep', args: ['600'], cgroup });
  await eventually('it sleeps', () => readlinkSync(`/proc/${program.pid}/exe`).endsWith('sleep'));
  const { watch, cgroups, processes, source } = watched(sandbox);
  await using _ = watch;
  await watch.ready;
  assert.equal(cgroups.get('/pods/pod1/c1'), cgroup.id);
  assert.deepEqual(processes, [
    { pid: program.pid, path: '/pods/pod1/c1', netns: netnsOf('self'), cgroupId: cgroup.id },
  ]);
  assert.equal(source('process-events').state, 'ok');
  await eventually('the cgroup watch is ok', () => source('cgroup-watch').state === 'ok');
  assert.equal(source('sweep').state, 'ok');
});

test('a process event alone brings a nested cgroup, its process and its addresses', async () => {
  await using sandbox = await makeSandbox('watch');
  const network = await makeNetwork(sandbox);
  const host = await network.addHost('pod');
  const { watch, cgroups, processes } = watched(sandbox, { subscribe: noWatch });
  await using _ = watch;
  await watch.ready;
  const cgroup = sandbox.cgroup('/a/b/c');
  await using program = sandbox.spawn({ cmd: 'sleep', args: ['600'], cgroup, netns: host.netns });
  const seen = await eventually('the process in its namespace', () =>
    processes.find(({ netns }) => netns !== netnsOf('self')),
  );
  assert.equal(seen.cgroupId, cgroup.id);
  assert.equal(seen.pid, program.pid);
  assert.equal(cgroups.get('/a/b/c'), cgroup.id);
  const addresses = watch.addressesOf(program.pid);
  assert.deepEqual(
    { ...addresses, startedTicks: 0 },
    { netns: seen.netns, isHost: false, ips: [host.ip4, host.ip6], startedTicks: 0 },
  );
  assert.ok(
    (addresses?.startedTicks ?? 0) > (watch.addressesOf(process.pid)?.startedTicks ?? Infinity),
    'this test began before it',
  );
  assert.notEqual(watch.hostNetns(), seen.netns);
  assert.deepEqual(watch.pidsOf('/a/b/c'), [program.pid]);
});

test('the cgroup watch alone sees cgroups come, go, and come again', async () => {
  await using sandbox = await makeSandbox('watch');
  const { watch, cgroups, gone, source } = watched(sandbox, { openProcessEvents: noEvents });
  await using _ = watch;
  await watch.ready;
  await eventually('the cgroup watch is ok', () => source('cgroup-watch').state === 'ok');
  assert.equal(source('process-events').state, 'failed');
  assert.match(source('process-events').detail, /EPERM.*cgroup watch and the sweep/);
  const first = sandbox.cgroup('/a/b/c'); // in one go: only /a is named
  await eventually('the nested creation', () => cgroups.get('/a/b/c') === first.id);
  rmdirSync(first.absolute);
  const second = sandbox.cgroup('/a/b/c');
  rmdirSync(sandbox.cgroup('/d').absolute);
  // Below a nested creation the watch may have gone blind: then a hint above it, or the sweep, tells.
  await watch.sweep();
  assert.equal(cgroups.get('/a/b/c'), second.id);
  assert.ok(gone.includes('/a/b/c'));
  const plain = sandbox.cgroup('/e');
  await eventually('a cgroup of its own', () => cgroups.get('/e') === plain.id);
  rmdirSync(plain.absolute);
  await eventually('its end', () => gone.includes('/e'));
});

test('a process that is moved into a cgroup is reported there', async () => {
  await using sandbox = await makeSandbox('watch');
  const [one, two] = [sandbox.cgroup('/one'), sandbox.cgroup('/two')];
  const { watch, processes, source } = watched(sandbox);
  await using _ = watch;
  await watch.ready;
  await eventually('the cgroup watch is ok', () => source('cgroup-watch').state === 'ok');
  await using program = sandbox.spawn({ cmd: 'sleep', args: ['600'], cgroup: one });
  await eventually('it is seen in the first', () =>
    processes.some(({ pid, cgroupId }) => pid === program.pid && cgroupId === one.id),
  );
  writeFileSync(`${two.absolute}/cgroup.procs`, String(program.pid));
  await eventually('it is seen in the second', () =>
    processes.some(({ pid, cgroupId }) => pid === program.pid && cgroupId === two.id),
  );
});

test('a process of no use is not reported, and one of use is found by the sweep too', async () => {
  await using sandbox = await makeSandbox('watch');
  const [one, two] = [sandbox.cgroup('/one'), sandbox.cgroup('/two')];
  const wanted = new Set([two.id]);
  const { watch, processes } = watched(sandbox, {
    subscribe: noWatch,
    openProcessEvents: noEvents,
    wantsProcess: (id) => wanted.has(id),
  });
  await using _ = watch;
  await watch.ready;
  await using first = sandbox.spawn({ cmd: 'sleep', args: ['600'], cgroup: one });
  await using second = sandbox.spawn({ cmd: 'sleep', args: ['600'], cgroup: two });
  await eventually(
    'both run',
    () => watch.pidsOf('/one').includes(first.pid) && watch.pidsOf('/two').includes(second.pid),
  );
  await watch.sweep();
  assert.deepEqual(
    processes.map(({ pid }) => pid),
    [second.pid],
  );
});

test('processes that are gone at once cost nothing but their report', async () => {
  await using sandbox = await makeSandbox('watch');
  const cgroup = sandbox.cgroup('/short');
  const { watch, processes, source } = watched(sandbox);
  await using _ = watch;
  await watch.ready;
  await using program = sandbox.spawn({
    cmd: 'sh',
    args: ['-c', 'for i in $(seq 200); do /bin/true & done; wait'],
    cgroup,
  });
  assert.equal((await program.exit).code, 0);
  rmdirSync(cgroup.absolute);
  await delay(100);
  assert.ok(processes.every(({ cgroupId, netns }) => cgroupId === cgroup.id && netns === netnsOf('self')));
  assert.equal(source('process-events').state, 'ok');
});

test('events lost (the sweep repairs): one follows at once, and finds what was missed', async () => {
  await using sandbox = await makeSandbox('watch');
  let lose = (): void => {};
  let lost = 0;
  const openProcessEvents = async ({ onLost }: ProcConnectorOptions) => {
    lose = onLost;
    return { fd: -1, [Symbol.dispose]() {} };
  };
  const { watch, cgroups, source } = watched(sandbox, {
    subscribe: noWatch,
    openProcessEvents,
    onLost: () => void lost++,
  });
  await using _ = watch;
  await watch.ready;
  for (const path of ['/a/b', '/c']) {
    const cgroup = sandbox.cgroup(path);
    assert.equal(cgroups.has(path), false);
    lose();
    lose();
    await eventually(`${path} is found`, () => cgroups.get(path) === cgroup.id);
  }
  assert.equal(lost, 4);
  assert.match(source('process-events').detail, /4 times events were lost/);
});

test('the sweep alone finds all, and says so', async () => {
  await using sandbox = await makeSandbox('watch');
  const { watch, cgroups, gone, source } = watched(sandbox, {
    subscribe: noWatch,
    openProcessEvents: noEvents,
    sweepMs: 50,
  });
  await using _ = watch;
  await watch.ready;
  const cgroup = sandbox.cgroup('/a/b');
  await eventually('it is found', () => cgroups.get('/a/b') === cgroup.id);
  rmdirSync(cgroup.absolute);
  await eventually('it is missed', () => gone.includes('/a/b'));
  await eventually('it is said', () => /2 were found by it alone/.test(source('sweep').detail));
});

test('subscribe failing: it is tried again, and what came meanwhile is found', async () => {
  await using sandbox = await makeSandbox('watch');
  let tries = 0;
  const subscribe: typeof parcelSubscribe = (...args) => (++tries < 3 ? noWatch() : parcelSubscribe(...args));
  const { watch, cgroups, source } = watched(sandbox, { openProcessEvents: noEvents, subscribe });
  await using _ = watch;
  await watch.ready;
  assert.equal(source('cgroup-watch').state, 'degraded');
  assert.match(source('cgroup-watch').detail, /Interrupted system call.*tried again in \d/);
  const cgroup = sandbox.cgroup('/meanwhile');
  await eventually('it is subscribed', () => source('cgroup-watch').state === 'ok');
  assert.equal(tries, 3);
  await eventually('the cgroup is found', () => cgroups.get('/meanwhile') === cgroup.id);
});

const SUBSCRIBE_MS = 150;

test('a subscription that takes long, as there are very many cgroups, is not made anew all the time', async () => {
  await using sandbox = await makeSandbox('watch');
  const begun: number[] = [];
  const subscribe: typeof parcelSubscribe = async (...args) => {
    begun.push(performance.now());
    await delay(SUBSCRIBE_MS);
    return parcelSubscribe(...args);
  };
  const { watch, source } = watched(sandbox, { openProcessEvents: noEvents, subscribe });
  await using _ = watch;
  await watch.ready;
  await eventually('it is subscribed', () => source('cgroup-watch').state === 'ok');
  // Made in one go, so that the watch cannot have got into all of them.
  for (let n = 0; n < 20; n++) {
    sandbox.cgroup(`/${n}/a/b/c/d`);
    await delay(100);
  }
  await eventually('it is made anew in the end', () => begun.length === 2);
  const [first = NaN, second = NaN] = begun;
  assert.ok(second - first >= 20 * SUBSCRIBE_MS, `made anew after ${Math.round(second - first)} ms`);
});

test('a handler that throws is survived by every witness', async () => {
  await using sandbox = await makeSandbox('watch');
  sandbox.cgroup('/a/b');
  let calls = 0;
  const bad = (): never => {
    calls++;
    throw new Error('handler');
  };
  const { watch, source } = watched(sandbox, {
    onCgroup: bad,
    onCgroupGone: bad,
    onProcess: bad,
    onLost: bad,
  });
  await using _ = watch;
  await using program = sandbox.spawn({ cmd: 'true', cgroup: sandbox.cgroup('/c') });
  await watch.ready;
  await program.exit;
  rmdirSync(sandbox.cgroup('/a/b').absolute);
  await watch.sweep();
  assert.ok(calls > 4);
  assert.equal(source('process-events').state, 'ok');
});

test('a closed watch reports nothing and lets the process end', async () => {
  await using sandbox = await makeSandbox('watch');
  const { watch, cgroups, processes, source } = watched(sandbox, { sweepMs: 20 });
  await watch[Symbol.asyncDispose]();
  await watch.ready;
  await watch[Symbol.asyncDispose]();
  const before = [cgroups.size, processes.length];
  await using program = sandbox.spawn({ cmd: 'true', cgroup: sandbox.cgroup('/late') });
  await program.exit;
  await delay(100);
  assert.deepEqual([cgroups.size, processes.length], before);
  assert.deepEqual(
    ['process-events', 'cgroup-watch', 'sweep'].map((name) => source(name).state),
    ['off', 'off', 'off'],
  );
});

/** Watches the sandbox in a process of its own, wrapped by `before`; returns what it printed after some sweeps. */
async function watchedBy(sandbox: Sandbox, before: string[], cgroupRoot = sandbox.cgroupRoot) {
  const script = `
    const { watchHost } = await import(${JSON.stringify(new URL('../../watcher/host-watch.ts', import.meta.url).href)});
    const log = () => {};
    const processes = [];
    const watch = watchHost({
      cgroupRoot: ${JSON.stringify(cgroupRoot)}, procRoot: '/proc', sweepMs: 100,
      logger: { debug: log, info: log, warn: log, error: log },
      onCgroup() {}, onCgroupGone() {}, onProcess: ({ pid, path }) => processes.push({ pid, path }),
    });
    await watch.ready;
    const sleep = (await import('node:child_process')).spawn('sleep', ['600']);
    const swept = () => Number(/last of (\\d+)/.exec(watch.sources()[3].detail)?.[1] ?? 0);
    for (const from = swept(); swept() < from + 5; ) await new Promise((resolve) => setTimeout(resolve, 20));
    console.log(JSON.stringify({ self: process.pid, child: sleep.pid, sources: watch.sources(), cgroups: watch.cgroups.size, processes }));
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

test('without file descriptors to list a cgroup with, that is said once, and what is new is found as soon as there are some', async () => {
  await using sandbox = await makeSandbox('watch');
  const said: string[] = [];
  const logger = pino(
    { level: 'info' },
    { write: (line: string) => void said.push((JSON.parse(line) as { msg: string }).msg) },
  );
  const { watch, cgroups, source } = watched(sandbox, {
    logger,
    subscribe: noWatch,
    openProcessEvents: noEvents,
  });
  await using _ = watch;
  await watch.ready;
  const limit = sandbox.spawn({
    cmd: 'sh',
    cgroup: sandbox.hostCgroup,
    args: [
      '-c',
      'all=$(prlimit --pid $1 --nofile --noheadings --output SOFT) && prlimit --pid $1 --nofile=3: && echo low && cat && prlimit --pid $1 --nofile=$all: && echo high',
      'sh',
      String(process.pid),
    ],
  });
  await limit.line(/low/);
  try {
    sandbox.cgroup('/new');
    await watch.sweep();
    await watch.sweep();
    assert.equal(cgroups.has('/new'), false);
    assert.equal(source('sweep').state, 'degraded');
    assert.match(source('sweep').detail, /\/ could not be listed \(.*EMFILE/);
  } finally {
    limit.end();
    await limit.line(/high/);
  }
  await eventually('it is found', () => cgroups.has('/new') && source('sweep').state === 'ok');
  const about = said.filter((text) => /listed/.test(text));
  assert.equal(about.length, 2, about.join());
  assert.match(about[0] ?? '', /could not be listed.*raise the limit/);
});
