import assert from 'node:assert/strict';
import { chmodSync, chownSync, readlinkSync, rmdirSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { subscribe as parcelSubscribe } from '@parcel/watcher';
import { pino } from 'pino';
import { CgrouteError } from '../../native/error.ts';
import type { ProcConnectorOptions } from '../../native/netlink/proc-connector.ts';
import type { HostEvents, HostProcess } from '../../watcher/host-watch.ts';
import { openHost, type HostOptions } from '../../watcher/open-host.ts';
import { makeNetwork } from '../../deploy/stage/netns.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';

function watched(sandbox: Sandbox, { logger, ...options }: Partial<HostEvents & HostOptions> = {}) {
  const cgroups = new Map<string, bigint>();
  const gone: string[] = [];
  const processes: HostProcess[] = [];
  const host = openHost({
    cgroupRoot: sandbox.cgroupRoot,
    procRoot: '/proc',
    logger: logger ?? pino({ level: 'silent' }),
  });
  const watch = host.follow({
    sweepMs: 600_000,
    onCgroup: ({ path, id }) => void cgroups.set(path, id),
    onCgroupGone: ({ path }) => void gone.push(path),
    onProcess: (process) => void processes.push(process),
    ...options,
  });
  const source = (name: string) => watch.sources().find((each) => each.name === name)!;
  return { host, watch, cgroups, gone, processes, source };
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
  const { host: asked, watch, cgroups, processes } = watched(sandbox, { subscribe: noWatch });
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
  const addresses = asked.addressesOf(program.pid);
  assert.deepEqual(
    { ...addresses, startedTicks: 0 },
    { netns: seen.netns, isHost: false, ips: [host.ip4, host.ip6], startedTicks: 0 },
  );
  assert.ok(
    (addresses?.startedTicks ?? 0) > (asked.addressesOf(process.pid)?.startedTicks ?? Infinity),
    'this test began before it',
  );
  assert.notEqual(asked.hostNetns(), seen.netns);
  assert.deepEqual(asked.pidsOf('/a/b/c'), [program.pid]);
});

test('processes of a cgroup that may not be looked into count as there, and that is logged', async () => {
  await using sandbox = await makeSandbox('watch');
  const { absolute } = sandbox.cgroup('/theirs');
  chownSync(absolute, 65534, 65534);
  chmodSync(absolute, 0o700);
  const script = `import { pino } from 'pino';
    import { openHost } from '${resolve(import.meta.dirname, '../../watcher/open-host.ts')}';
    const host = openHost({ cgroupRoot: '${sandbox.cgroupRoot}', procRoot: '/proc', logger: pino() });
    for (const path of ['/theirs', '/theirs', '/none', '/host'])
      console.log(JSON.stringify([path, host.isPopulated(path), host.hasUserProcess(path), host.pidsOf(path).length]));`;
  const stdout = await must({
    cmd: 'setpriv',
    args: [
      ...['--inh-caps=-all', '--bounding-set=-dac_override,-dac_read_search'],
      ...[process.execPath, '--input-type=module', '-e', script],
    ],
    cwd: resolve(import.meta.dirname, '../..'),
  });
  const lines = stdout.split('\n');
  const answers = lines.filter((line) => line.startsWith('['));
  assert.deepEqual(answers, [
    '["/theirs",true,true,0]',
    '["/theirs",true,true,0]',
    '["/none",false,false,0]',
    '["/host",false,false,0]',
  ]);
  const warnings = lines.filter((line) => line.includes('processes of a cgroup cannot be listed: EACCES'));
  assert.equal(warnings.length, 1, stdout);
});

test('what a question has met before the events begin is reported with them', async () => {
  await using sandbox = await makeSandbox('watch');
  const { id } = sandbox.cgroup('/a/b');
  const host = openHost({
    cgroupRoot: sandbox.cgroupRoot,
    procRoot: '/proc',
    logger: pino({ level: 'silent' }),
  });
  assert.equal(host.ensure('/a/b')?.id, id);
  const told: string[] = [];
  await using watch = host.follow({
    sweepMs: 600_000,
    onCgroup: ({ path }) => void told.push(path),
    onCgroupGone: () => {},
    subscribe: noWatch,
    openProcessEvents: noEvents,
  });
  assert.deepEqual(told, ['/', '/a', '/a/b']);
  await watch.ready;
  assert.equal(told.filter((path) => path === '/a/b').length, 1);
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
  const { host, watch, processes } = watched(sandbox, {
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
    () => host.pidsOf('/one').includes(first.pid) && host.pidsOf('/two').includes(second.pid),
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
