/** Leaving and coming back: redirection does not depend on the agent, and nothing is lost or left over. */
import assert from 'node:assert/strict';
import { mkdirSync, readdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { after, before, describe, test } from 'node:test';
import { allBy, dial, type Dialler } from '../harness/dialler.ts';
import { isLocked } from '../../native/boundary/lock.ts';
import { lockPinDirectory } from '../../native/pins/pin-directory.ts';
import { type Agent, cgroute, startAgent } from '../../deploy/stage/agent.ts';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import { ENROLLED, type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { eventually, must, spawnIn } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';
import { SOCK, connect, listen } from '../../deploy/stage/sock.ts';
import { BYPASS } from '../harness/label-names.ts';

/** Programs that are attached anywhere below a node's root. */
async function attached(node: TestNode): Promise<unknown[]> {
  return JSON.parse(
    await must({ cmd: 'bpftool', args: ['-j', 'cgroup', 'tree', node.sandbox.cgroupRoot] }),
  ) as unknown[];
}

const pins = (node: TestNode): string[] =>
  readdirSync(node.sandbox.bpffs).filter((name) => !name.endsWith('.debug'));

describe('an agent that comes and goes', () => {
  let node: TestNode;
  let pod: NodePod;
  let plain: NodePod;

  before(async () => {
    // A proxy that names itself in its reply, so that each connection of a loop tells how it went.
    node = await startNode('restart', { proxy: false, agent: false });
    await listen(node.sandbox, node.proxyPod.place, 'proxy', '*', [15001, 15006], '--dual', '--quiet');
    node.manifest.namespace('plain');
    pod = await node.addPod({ name: 'pod', style: 'systemd' });
    plain = await node.addPod({ name: 'plain', namespace: 'plain' });
    await node.startAgent();
  });
  after(() => node?.[Symbol.asyncDispose]());

  const loop = (from: NodePod): Dialler => dial(node.sandbox, from.place, node.server, 300, 101);
  /** Who answered: `proxy` or `server`. */
  async function answers(from: NodePod): Promise<string> {
    const line = await must({ ...from.place, cmd: SOCK, args: ['connect', node.server.ip4, '8080'] });
    const result = JSON.parse(line) as {
      readonly ok: boolean;
      readonly reply?: string;
      readonly errno?: string;
    };
    return result.reply?.split(' ')[0] ?? result.errno ?? '';
  }

  test('leaves redirection on when it gets SIGTERM, and status says that it is down', async () => {
    assert.deepEqual(await node.agent.stop(), { code: 0, signal: null });
    assert.deepEqual([await answers(pod), await answers(plain)], ['proxy', 'server']);
    const { code, stdout } = await cgroute(node.sandbox, ['status']);
    assert.equal(code, 3);
    assert.match(
      stdout,
      /^WRONG +no agent runs: what it left pinned goes on redirecting, .*\n(?:.*\n)?node .*\nagent +DOWN$/m,
    );
    assert.match(stdout, /demo +pod +in +namespace-label/);
    const status = await node.status();
    assert.deepEqual({ running: status.agent.running, pid: status.agent.pid }, { running: false, pid: null });
    assert.deepEqual(status.proxy, { ...status.proxy, address: node.proxyPod.host.ip4, ready: true });
  });

  test('takes over again with the counters as they stood', async () => {
    const before = (await node.podStatus(pod)).connections['redirected'] ?? 0;
    assert.ok(before > 0);
    await node.startAgent();
    assert.equal((await node.podStatus(pod)).connections['redirected'], before);
    assert.equal(await answers(pod), 'proxy');
    assert.equal((await node.podStatus(pod)).connections['redirected'], before + 1);
  });

  for (const [what, end] of [
    ['SIGTERM', (agent: Agent) => agent.stop()],
    ['SIGKILL', (agent: Agent) => agent.kill9()],
  ] as const) {
    test(`is replaced after ${what}, as in an upgrade with the same map layout, without one connection that is not redirected`, async () => {
      const [redirected, untouched] = [loop(pod), loop(plain)];
      for (let round = 0; round < 2; round++) {
        await delay(50);
        await end(node.agent);
        await delay(50);
        await node.startAgent();
      }
      await delay(50);
      const [inMesh, outside] = [await redirected.end(), await untouched.end()];
      assert.ok(inMesh.total > 100, `only ${inMesh.total} connections were made`);
      assert.deepEqual(inMesh, allBy('proxy', inMesh.total));
      assert.deepEqual(outside, allBy('server', outside.total));
    });
  }

  test('catches up at its start with what was changed meanwhile', async () => {
    const leaver = await node.addPod({ name: 'leaver' });
    const unlisted = await node.addPod({ name: 'unlisted' });
    await node.apply();
    assert.equal(await answers(leaver), 'proxy');
    await node.agent.stop();

    removeCgroup(dirname(leaver.cgroup.absolute));
    node.manifest.remove(leaver.uid);
    node.manifest.remove(unlisted.uid); // its cgroup still runs
    node.manifest.change(pod.uid, { labels: { [BYPASS]: 'enabled' } });
    node.manifest.namespace('plain', ENROLLED);
    const newcomer = await node.addPod({ name: 'newcomer', style: 'crio' });
    node.manifest.write();
    await node.startAgent();

    assert.deepEqual(
      [await answers(pod), await answers(plain), await answers(newcomer), await answers(unlisted)],
      ['server', 'proxy', 'proxy', 'proxy'],
    );
    const inbound = await connect(node.hostPlace, unlisted.host.ip4, 9999);
    assert.ok(
      inbound.ok && inbound.reply.startsWith('proxy '),
      'what it had, it keeps in both directions until its cgroup goes',
    );
    const { pods } = await node.status();
    assert.equal(
      pods.find(({ uid }) => uid === leaver.uid),
      undefined,
    );
    const wanted = [pod, plain, newcomer, unlisted, node.proxyPod].flatMap(({ cgroup }) => {
      const parent = node.sandbox.cgroup(dirname(cgroup.path));
      return [String(cgroup.id), String(parent.id)];
    });
    assert.deepEqual(await node.knownCgroups(), wanted.toSorted());

    node.manifest.change(pod.uid, { labels: {} });
    node.manifest.namespace('plain');
    await node.apply();
    assert.deepEqual([await answers(pod), await answers(plain)], ['proxy', 'server']);
  });

  test('refuses to be one started twice on the same root (refused), and the first goes on', async () => {
    const second = startAgent(node.sandbox, {
      manifest: node.manifest.path,
      bpffsRoot: `${node.sandbox.bpffs}/second`,
    });
    const { code } = await second.running.exit;
    assert.equal(code, 1);
    assert.match(
      second.running.stderr.join('\n'),
      /^cgroute: another cgroute agent runs with --cgroup-root \S+: expected to be the only one[^\n]*$/,
    );
    assert.deepEqual(pins(node), ['bypass', 'cgroute']);
    assert.equal(await answers(pod), 'proxy');
    assert.equal((await node.status()).agent.pid, node.agent.running.pid);
  });

  test('refuses to be attached beside the programs that another one has left', async () => {
    await node.agent.kill9();
    const beside = startAgent(node.sandbox, {
      manifest: node.manifest.path,
      bpffsRoot: `${node.sandbox.bpffs}/third`,
    });
    assert.equal((await beside.running.exit).code, 1);
    assert.match(
      beside.running.stderr.join('\n'),
      /^cgroute: programs of another cgroute are attached at \S+: expected none [^\n]*`cgroute cleanup`[^\n]*$/,
    );
    assert.equal(await answers(pod), 'proxy');
    await node.startAgent();
  });

  test('starts although a user without privileges locks the cgroup root', async () => {
    await node.agent.stop();
    // The process that took the lock ends; what it has started holds it.
    const script = 'exec 9<"$1"; flock -n 9 && echo locked; exec sleep 60';
    await using user = spawnIn({
      cmd: 'setpriv',
      args: ['--reuid=65534', '--clear-groups', 'sh', '-c', script, 'sh', node.sandbox.cgroupRoot],
    });
    await user.line(/locked/);
    const agent = await node.startAgent();
    assert.match(
      agent
        .log()
        .map(({ msg }) => msg)
        .join('\n'),
      /--cgroup-root \S+ is locked by a process that has ended, which is no agent/,
    );
    assert.equal(await answers(pod), 'proxy');
  });

  test('refuses to share the pins of another one, and the other goes on', async () => {
    const root = node.sandbox.cgroup('elsewhere');
    const second = startAgent(node.sandbox, { manifest: node.manifest.path, cgroupRoot: root.absolute });
    const { code } = await second.running.exit;
    assert.equal(code, 1);
    assert.match(
      second.running.stderr.join('\n'),
      /^cgroute: another cgroute agent runs with --bpffs-root \S+: expected to be the only one[^\n]*$/,
    );
    assert.equal(await answers(pod), 'proxy');
    assert.equal((await node.status()).agent.pid, node.agent.running.pid);
  });

  test('removes all with --on-exit detach', async () => {
    await node.agent.stop();
    const agent = await node.startAgent({ args: ['--on-exit', 'detach'] });
    assert.equal(await answers(pod), 'proxy');
    assert.deepEqual(await agent.stop(), { code: 0, signal: null });
    assert.deepEqual([pins(node), await attached(node), await answers(pod)], [[], [], 'server']);
  });
});

test('an agent that waits for a cleanup locks the directory of pins that is there then, not the one that is gone', async () => {
  await using sandbox = await makeSandbox('lock');
  const root = `${sandbox.bpffs}/cgroute`;
  mkdirSync(root);
  await using cleanup = spawnIn({
    cmd: 'flock',
    args: [root, 'sh', '-c', 'echo held; sleep 0.06; exec rmdir "$1"', 'sh', root],
  });
  await cleanup.line(/held/);
  const attempt = (): Disposable | undefined => {
    try {
      return lockPinDirectory(root);
    } catch {
      return undefined;
    }
  };
  using _lock = await eventually('it has the lock', attempt);
  assert.equal(isLocked(root), true);
});

test('two agents on one host under different cgroup roots do not touch each other, with equal addresses and ports', async () => {
  await using first = await startNode('first');
  await using second = await startNode('second');
  const [one, two] = [
    await first.addPod({ name: 'pod' }),
    await second.addPod({ name: 'pod', style: 'systemd' }),
  ];
  await first.apply();
  await second.apply();
  assert.equal(one.host.ip4, two.host.ip4);
  // The same connection in both, at the same time.
  const held = [[first, one] as const, [second, two] as const].map(([node, pod]) =>
    node.sandbox.spawn({
      ...pod.place,
      cmd: SOCK,
      args: ['connect', '--hold', '--bind', `${pod.host.ip4}:40000`, node.server.ip4, '8080'],
    }),
  );
  for (const [index, node] of [first, second].entries()) {
    await held[index]?.line();
    const seen = await node.proxy.connection(`${node.server.ip4}:8080`);
    assert.equal(seen.client, `${one.host.ip4}:40000`);
    assert.equal(node.proxy.connections().length, 1);
  }
  first.manifest.namespace('demo');
  await first.apply();
  assert.deepEqual([await first.travel(one.place), await second.travel(two.place)], ['direct', 'redirected']);
  assert.equal((await first.status()).pods.find(({ name }) => name === 'pod')?.uid, one.uid);
  assert.equal((await second.status()).pods.find(({ name }) => name === 'pod')?.uid, two.uid);
  await first.agent.stop();
  await cgroute(first.sandbox, ['cleanup']);
  assert.deepEqual([await first.travel(one.place), await second.travel(two.place)], ['direct', 'redirected']);
});
