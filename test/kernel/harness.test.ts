/** The harness's own promises: what it makes is real, and nothing of it stays. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, readdirSync, rmdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { cgroup2Mount, processesBelow } from '../../deploy/stage/cgroup.ts';
import { redirectByIptables } from '../harness/iptables-redirect.ts';
import { makeNetwork } from '../../deploy/stage/netns.ts';
import { eventually, must, run } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';
import { type Connected, SOCK, connect, listen, sock } from '../../deploy/stage/sock.ts';

/** Everything on the machine that carries this token. */
function traces(token: string): string[] {
  const names = [cgroup2Mount(), '/run/netns', tmpdir()].flatMap((directory) =>
    existsSync(directory) ? readdirSync(directory).map((name) => join(directory, name)) : [],
  );
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8').split('\n');
  return [...names, ...mounts].filter((name) => name.includes(token));
}

test('a sandbox leaves no cgroup, process, mount, namespace or file behind', async () => {
  let token = '';
  {
    await using sandbox = await makeSandbox('traces');
    token = sandbox.token;
    const network = await makeNetwork(sandbox);
    const host = await network.addHost('pod');
    const cgroup = sandbox.cgroup('kubepods/burstable/pod1/container');
    sandbox.spawn({ cmd: 'sleep', args: ['1000'], cgroup, netns: host.netns });
    await eventually('the process is in its cgroup', () => processesBelow(cgroup.absolute).length === 1);
    assert.ok(traces(token).length >= 4, traces(token).join('\n'));
  }
  assert.deepEqual(traces(token), []);
});

test('a sandbox goes away when its test throws', async () => {
  let token = '';
  await assert.rejects(async () => {
    await using sandbox = await makeSandbox('throws');
    token = sandbox.token;
    sandbox.cgroup('a/b/c');
    throw new Error('as a test does');
  }, /as a test does/);
  assert.deepEqual(traces(token), []);
});

const OWNER = `
  import { makeSandbox } from '${join(import.meta.dirname, '../../deploy/stage/sandbox.ts')}';
  import { makeNetwork } from '${join(import.meta.dirname, '../../deploy/stage/netns.ts')}';
  const sandbox = await makeSandbox('owner');
  await (await makeNetwork(sandbox)).addHost('pod');
  sandbox.spawn({ cmd: 'sleep', args: ['1000'] });
  console.log(sandbox.token);
  if (process.argv[1] === 'throw') setTimeout(() => { throw new Error('uncaught'); });
`;

async function startOwner(
  argument: string,
): Promise<{ token: string; kill: (signal: NodeJS.Signals) => void; exit: Promise<unknown> }> {
  const child = spawn(process.execPath, ['--input-type=module', '-e', OWNER, argument], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const exit = once(child, 'exit');
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  return { token: line.toString().trim(), kill: (signal) => void child.kill(signal), exit };
}

test('a sandbox goes away when its owner dies of an uncaught exception', async () => {
  const owner = await startOwner('throw');
  await owner.exit;
  assert.match(owner.token, /^\d+-\d+-\d+$/);
  assert.deepEqual(traces(owner.token), []);
});

test('a sandbox goes away when its owner gets SIGTERM', async () => {
  const owner = await startOwner('wait');
  assert.notDeepEqual(traces(owner.token), []);
  owner.kill('SIGTERM');
  assert.deepEqual(await owner.exit, [null, 'SIGTERM']);
  assert.deepEqual(traces(owner.token), []);
});

test('what a killed owner left is swept away by the next one', async () => {
  const owner = await startOwner('wait');
  owner.kill('SIGKILL');
  await owner.exit;
  assert.notDeepEqual(traces(owner.token), []);
  const next = await startOwner('throw');
  await next.exit;
  assert.deepEqual(traces(owner.token), []);
});

test('a program is in its cgroup and namespace from its first instruction, under one PID', async () => {
  await using sandbox = await makeSandbox('place');
  const host = await (await makeNetwork(sandbox)).addHost('pod');
  const cgroup = sandbox.cgroup('kubepods.slice/kubepods-pod1.slice/cri-containerd-1.scope');
  const running = sandbox.spawn({
    cmd: 'sh',
    args: ['-c', 'echo $$; grep ^0:: /proc/self/cgroup; readlink /proc/self/ns/net; cat'],
    cgroup,
    netns: host.netns,
  });
  assert.equal(Number(await running.line()), running.pid);
  assert.ok((await running.line()).endsWith(cgroup.path));
  const inode = await must({ cmd: 'stat', args: ['-L', '-c', '%i', `/run/netns/${host.netns}`] });
  assert.equal(await running.line(), `net:[${inode}]`);
  running.end();
  assert.deepEqual(await running.exit, { code: 0, signal: null });
});

test('a program that cannot start says why', async () => {
  await using sandbox = await makeSandbox('missing');
  const { code, stderr } = await run({ cmd: 'no-such-program' });
  assert.equal(code, 127);
  assert.match(stderr, /no-such-program/);
  const running = sandbox.spawn({ cmd: 'sh', args: ['-c', 'echo broken >&2; exit 3'] });
  await assert.rejects(running.line(), /exited with 3[^]*broken/);
});

test('hosts of a network reach each other at once over IPv4 and IPv6, and nobody else', async () => {
  await using sandbox = await makeSandbox('reach');
  const network = await makeNetwork(sandbox);
  const [a, b] = [await network.addHost('a'), await network.addHost('b')];
  await listen(sandbox, { netns: b.netns }, 'serve', '*', [80], '--dual');
  const over4 = await connect({ netns: a.netns }, b.ip4, 80);
  assert.ok(over4.ok);
  assert.equal(over4.reply, `server [::ffff:${b.ip4}]:80 [::ffff:${over4.local.replace(':', ']:')}`);
  const over6 = await connect({ netns: a.netns }, b.ip6, 80);
  assert.ok(over6.ok);
  assert.equal(over6.peer, `[${b.ip6}]:80`);
  const nowhere = await connect({ netns: a.netns }, '192.0.2.1', 80);
  assert.ok(!nowhere.ok);
  assert.equal(nowhere.errno, 'EHOSTUNREACH');
});

test('two sandboxes at once do not meet, with equal names and addresses', async () => {
  await using first = await makeSandbox('twice');
  await using second = await makeSandbox('twice');
  const [hostA, hostB] = await Promise.all(
    [first, second].map(async (sandbox) => (await makeNetwork(sandbox)).addHost('pod')),
  );
  assert.ok(hostA && hostB);
  assert.equal(hostA.ip4, hostB.ip4);
  await listen(first, { netns: hostA.netns }, 'serve', hostA.ip4, [80]);
  const other = await connect({ netns: hostB.netns }, hostB.ip4, 80);
  assert.ok(!other.ok);
  assert.equal(other.errno, 'ECONNREFUSED');
  assert.notEqual(first.cgroup('pod').id, second.cgroup('pod').id);
});

/** A namespace in which iptables sends all of port 80 to 15001 on the same host. */
async function redirected(
  sandbox: Awaited<ReturnType<typeof makeSandbox>>,
): Promise<{ netns: string; ip4: string; ip6: string }> {
  const host = await (await makeNetwork(sandbox)).addHost('pod');
  for (const tool of ['iptables', 'ip6tables'] as const)
    await redirectByIptables(host.netns, tool, { port: 80 }, 15001);
  return host;
}

test('the socket tool reads SO_ORIGINAL_DST of connections that iptables redirected', async () => {
  await using sandbox = await makeSandbox('redirect');
  const { netns, ip4, ip6 } = await redirected(sandbox);
  const proxy = await listen(sandbox, { netns }, 'proxy', '*', [15001], '--dual');
  const over4 = await connect({ netns }, '192.0.2.7', 80);
  assert.ok(over4.ok, JSON.stringify(over4));
  assert.equal(over4.reply, `proxy 192.0.2.7:80 [::ffff:${ip4}]:${over4.local.split(':').at(-1)}`);
  const over6 = await connect({ netns }, '2001:db8::7', 80);
  assert.ok(over6.ok, JSON.stringify(over6));
  assert.equal(over6.reply, `proxy [2001:db8::7]:80 ${over6.local}`);
  assert.ok(over6.local.startsWith(`[${ip6}]`));
  await eventually('both were printed', () => proxy.accepted().length === 2);
  assert.deepEqual(
    proxy.accepted().map(({ orig }) => orig),
    ['192.0.2.7:80', '[2001:db8::7]:80'],
  );
});

test('many connections are told apart, and a wrong original destination is noticed', async () => {
  await using sandbox = await makeSandbox('many');
  const { netns } = await redirected(sandbox);
  await listen(sandbox, { netns }, 'proxy', '0.0.0.0', [15001], '--quiet');
  const result = await sock<Record<string, unknown>>({ netns }, 'many', 1, '192.0.2.1', 80);
  assert.deepEqual({ ok: result['ok'], wrong: result['wrong'] }, { ok: 1, wrong: 0 });
  // A dual-stack server spells the address in another way than it was asked for.
  await listen(sandbox, { netns }, 'serve', '*', [81], '--dual');
  const direct = await sock<Record<string, unknown>>({ netns }, 'many', 2, '127.0.0.1', 81);
  assert.deepEqual(
    { ok: direct['ok'], wrong: direct['wrong'], failed: direct['failed'] },
    { ok: 0, wrong: 1, failed: 1 },
  );
  assert.equal(direct['asked'], '127.0.0.1:81');
});

for (const option of [
  '--nonblock',
  '--tfo',
  '--tfo-connect',
  '--io-uring',
  '--mapped',
  '--mptcp',
  '--unconnected-first',
  '--reconnect',
]) {
  const skip =
    option === '--mptcp' && !existsSync('/proc/sys/net/mptcp') && 'this kernel is built without MPTCP';
  test(`the socket tool connects with ${option}`, { skip }, async () => {
    await using sandbox = await makeSandbox('options');
    const host = await (await makeNetwork(sandbox)).addHost('pod');
    await listen(sandbox, { netns: host.netns }, 'serve', host.ip4, [80]);
    const result = await connect({ netns: host.netns }, host.ip4, 80, option);
    assert.ok(result.ok, JSON.stringify(result));
    assert.match(result.reply, new RegExp(`^server ${host.ip4}:80 ${host.ip4}:\\d+$`));
    const refused = await connect({ netns: host.netns }, host.ip4, 81, option);
    assert.ok(!refused.ok);
    assert.equal(refused.errno, 'ECONNREFUSED');
  });
}

test('the socket tool gives birth to a process in a cgroup that it has just made', async () => {
  await using sandbox = await makeSandbox('first');
  const host = await (await makeNetwork(sandbox)).addHost('pod');
  await listen(sandbox, { netns: host.netns }, 'serve', host.ip4, [80]);
  const directory = join(sandbox.cgroupRoot, 'pod-new');
  const result = await sock<Connected>({ netns: host.netns }, 'first', '--mkdir', directory, host.ip4, 80);
  assert.ok(result.ok);
  rmdirSync(directory);
});

test('the socket tool loops until its input ends, and counts who answered', async () => {
  await using sandbox = await makeSandbox('loop');
  const host = await (await makeNetwork(sandbox)).addHost('pod');
  const server = await listen(sandbox, { netns: host.netns }, 'serve', host.ip4, [80]);
  const loop = sandbox.spawn({
    cmd: SOCK,
    args: ['loop', '--every', '1000', host.ip4, '80', '0'],
    netns: host.netns,
  });
  await eventually('it has connected', () => server.accepted().length > 10);
  loop.kill('SIGUSR1');
  const { server: early } = await loop.json<{ server: number }>();
  assert.ok(early > 0);
  loop.end();
  await loop.exit;
  const totals = JSON.parse(loop.stdout.at(-1) ?? '') as Record<string, number>;
  assert.ok((totals['server'] ?? 0) >= early);
  assert.deepEqual([totals['total'], totals['inTime']], [totals['server'], totals['server']]);

  const atLeast = sandbox.spawn({
    cmd: SOCK,
    args: ['loop', '--every', '1000', '--least', '30', host.ip4, '80', '0'],
    netns: host.netns,
  });
  atLeast.end();
  await atLeast.exit;
  const late = await atLeast.json<{ total: number; inTime: number }>();
  assert.ok(late.total >= 30 && late.inTime < late.total, 'what comes after its end is told apart');
});

test('misuse of the socket tool is told in a sentence', () => {
  const { status, stderr } = spawnSync(SOCK, ['connect', '10.0.0.1', 'http'], { encoding: 'utf8' });
  assert.equal(status, 1);
  assert.match(stderr, /port must be a number from 0 to 65535, not "http"/);
});
