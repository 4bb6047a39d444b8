/** The agent, the proxy and the node come and go, at any moment and all at once. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { after, before, describe, test } from 'node:test';
import { allBy, dial, type Dialler } from '../harness/dialler.ts';
import { cgroute, startAgent } from '../../deploy/stage/agent.ts';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import { PIN_VERSION } from '../../native/pins/pin-directory.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { makeRandom } from '../harness/random.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { connect, listen, type Place } from '../../deploy/stage/sock.ts';
import { MODE } from '../harness/label-names.ts';
import { FOR_NOW } from '../harness/for-now.ts';

/** A program, map or link, as bpftool shows it. */
interface Shown {
  readonly id: number;
  readonly pinned?: readonly string[];
  /** Of a link. */
  readonly prog_id?: number;
}

const OUT = { [MODE]: 'none' };

/** Connects all the time. */
const loop = (node: TestNode, place: Place): Dialler => dial(node.sandbox, place, node.server, 300, 501);

/** The ids that `cgroup_info_map` should have: each pod's own cgroup and its latest container's. */
function wanted(node: TestNode, pods: readonly NodePod[]): string[] {
  return pods
    .flatMap(({ cgroup }) => [cgroup.id, node.sandbox.cgroup(dirname(cgroup.path)).id])
    .map(String)
    .toSorted();
}

/** Programs at the node's cgroups, as bpftool lists them; empty for none. */
async function attachedBelow(node: TestNode): Promise<string> {
  return (await must({ cmd: 'bpftool', args: ['-j', 'cgroup', 'tree', node.sandbox.cgroupRoot] })).replace(
    '[]',
    '',
  );
}

describe('in the life of an agent,', () => {
  let node: TestNode;
  let pod: NodePod;
  let outside: NodePod;

  before(async () => {
    // A proxy that names itself in its reply, so that each connection of a loop tells how it went.
    node = await startNode('life', { proxy: false, agent: false });
    await listen(node.sandbox, node.proxyPod.place, 'proxy', '*', [15001, 15006], '--dual', '--quiet');
    pod = await node.addPod({ name: 'pod', style: 'systemd' });
    outside = await node.addPod({ name: 'outside', labels: OUT });
  });
  after(() => node?.[Symbol.asyncDispose]());

  test('kill -9 at any moment, or SIGTERM, and nothing is let through, caught, lost or left over', async (t) => {
    const random = makeRandom();
    t.diagnostic(`SEED=${random.seed}`);
    await (await node.startAgent()).kill9();
    const loops = [loop(node, pod.place), loop(node, outside.place)];
    const comers: NodePod[] = [];
    for (let round = 0; round < 24; round++) {
      const agent = startAgent(node.sandbox, { manifest: node.manifest.path });
      const life = Math.floor(random.next() * 350);
      const change = Math.floor(random.next() * life);
      await delay(change);
      // In the middle of a pod that comes, of one that goes, of one that changes, or of nothing.
      const what = round % 4;
      if (what === 0) comers.push(await node.addPod({ name: `comer-${round}`, host: pod.host }));
      const [last] = comers.slice(-1);
      if (what === 1 && last !== undefined)
        node.manifest.change(last.uid, { labels: random.next() < 0.5 ? OUT : {} });
      if (what === 2 && last !== undefined) {
        comers.pop();
        removeCgroup(dirname(last.cgroup.absolute));
        node.manifest.remove(last.uid);
      }
      node.manifest.write();
      await delay(life - change);
      await agent.running.stop(random.next() < 0.2 ? 'SIGTERM' : 'SIGKILL');
    }
    await node.startAgent();
    const [inMesh, out] = [await loops[0]!.end(), await loops[1]!.end()];
    t.diagnostic(`${inMesh.total} and ${out.total} connections`);
    assert.ok(inMesh.total > 500, `only ${inMesh.total} connections were made`);
    assert.deepEqual(inMesh, allBy('proxy', inMesh.total));
    assert.deepEqual(out, allBy('server', out.total));
    assert.deepEqual(await node.knownCgroups(), wanted(node, [node.proxyPod, pod, outside, ...comers]));
    assert.deepEqual(
      (await node.status()).pods.map(({ uid }) => uid).toSorted(),
      [node.proxyPod, pod, outside, ...comers].map(({ uid }) => uid).toSorted(),
    );
    for (const each of comers) {
      removeCgroup(dirname(each.cgroup.absolute));
      node.manifest.remove(each.uid);
    }
    await node.apply();
  });

  test('uninstall leaves nothing behind, and may be done twice', async () => {
    const tool = async (...args: readonly string[]): Promise<readonly Shown[]> =>
      JSON.parse((await must({ cmd: 'bpftool', args: ['-j', '-f', ...args] })) || '[]') as Shown[];
    const directories = readdirSync(node.sandbox.bpffs).filter((name) => !name.endsWith('.debug'));
    assert.deepEqual(directories, ['bypass', 'cgroute']);
    const ours = ({ pinned = [] }: Shown): boolean =>
      pinned.some((path) => path.startsWith(`${node.sandbox.bpffs}/`));
    const maps = (await tool('map', 'show')).filter(ours).map(({ id }) => id);
    const links = (await tool('link', 'show')).filter(ours);
    assert.ok(maps.length >= 15 && links.length >= 10, `${maps.length} maps, ${links.length} links`);
    const held = loop(node, pod.place);
    await node.agent.stop();
    const first = await cgroute(node.sandbox, ['cleanup']);
    assert.equal(first.code, 0, first.stderr);
    assert.match(first.stdout, /^removed \d+ pins below \S+\/cgroute$/);
    assert.deepEqual(
      readdirSync(node.sandbox.bpffs).filter((name) => !name.endsWith('.debug')),
      [],
    );
    await eventually('nothing is attached', async () => (await attachedBelow(node)) === '');
    // The kernel frees them some milliseconds after their last user is gone.
    await eventually('programs and maps are gone from the kernel', async () => {
      const left = new Set([
        ...(await tool('map', 'show')).map(({ id }) => `map ${id}`),
        ...(await tool('prog', 'show')).map(({ id }) => `prog ${id}`),
        ...(await tool('link', 'show')).map(({ id }) => `link ${id}`),
      ]);
      return [
        ...maps.map((id) => `map ${id}`),
        ...links.flatMap(({ id, prog_id }) => [`link ${id}`, `prog ${prog_id}`]),
      ].every((what) => !left.has(what));
    });
    const { total, proxy, server, other, failed } = await held.end();
    assert.deepEqual([proxy + server, other, failed], [total, 0, 0], 'no connection fails by it');
    const direct = await connect(pod.place, node.server.ip4, 8080);
    assert.ok(direct.ok && direct.reply.startsWith('server '));
    const second = await cgroute(node.sandbox, ['cleanup']);
    assert.deepEqual([second.code, /^nothing of cgroute is pinned below/.test(second.stdout)], [0, true]);
    const status = await cgroute(node.sandbox, ['status']);
    assert.deepEqual([status.code, /nothing of cgroute is pinned here/.test(status.stdout)], [3, true]);
    await node.startAgent();
    const again = await connect(pod.place, node.server.ip4, 8080);
    assert.ok(again.ok && again.reply.startsWith('proxy '));
  });

  test('an agent that starts while cleanup is at work is refused, and not robbed of its pins', async () => {
    await node.agent.kill9();
    const links = `${node.sandbox.bpffs}/cgroute/${PIN_VERSION}/links`;
    const cleaning = node.sandbox.spawn({
      cmd: resolve(import.meta.dirname, '../../dist/cgroute'),
      args: [
        'cleanup',
        '--cgroup-root',
        node.sandbox.cgroupRoot,
        '--bpffs-root',
        `${node.sandbox.bpffs}/cgroute`,
      ],
    });
    while (readdirSync(links).some((name) => /_connect/.test(name))) await delay(1);
    process.kill(cleaning.pid, 'SIGSTOP');
    const early = startAgent(node.sandbox, { manifest: node.manifest.path });
    const refused = await early.running.exit;
    process.kill(cleaning.pid, 'SIGCONT');
    assert.deepEqual([refused.code, (await cleaning.exit).code], [1, 0], early.running.stderr.join('\n'));
    await node.startAgent();
    const again = await connect(pod.place, node.server.ip4, 8080);
    assert.ok(again.ok && again.reply.startsWith('proxy '));
  });

  test('node rebooted: all pins and cgroups are gone, and the same pods are back', async () => {
    const before = (await node.podStatus(pod)).connections['redirected'] ?? 0;
    assert.ok(before > 0);
    await node.agent.kill9();
    // What a reboot takes along: the BPF file system with all that it holds, and every cgroup.
    // Its files one by one, as a mount namespace of somebody else's may hold the whole.
    await must({ cmd: 'rm', args: ['-r', `${node.sandbox.bpffs}/cgroute`] });
    await must({ cmd: 'umount', args: [node.sandbox.bpffs] });
    await must({ cmd: 'mount', args: ['-t', 'bpf', 'cgroute-test', node.sandbox.bpffs] });
    for (const name of readdirSync(node.sandbox.cgroupRoot, { withFileTypes: true }))
      if (name.isDirectory() && name.name !== 'host') removeCgroup(`${node.sandbox.cgroupRoot}/${name.name}`);
    // The kernel lets go of programs a moment after their pins.
    await eventually('nothing is attached', async () => (await attachedBelow(node)) === '');
    const old = pod.cgroup.id;

    // The proxy's container is made before the agent starts; the pod's afterwards.
    node.proxyPod.startContainer();
    await listen(node.sandbox, node.proxyPod.place, 'proxy', '*', [15001, 15006], '--dual', '--quiet');
    await node.startAgent();
    for (const each of [pod, outside]) each.startContainer();
    assert.notEqual(pod.cgroup.id, old);
    for (const [each, by] of [
      [pod, 'proxy '],
      [outside, 'server '],
    ] as const) {
      const result = await connect(each.place, node.server.ip4, 8080);
      assert.ok(result.ok && result.reply.startsWith(by), `${each.name}: ${JSON.stringify(result)}`);
    }
    await eventually(
      'all are known, and nothing else',
      async () => (await node.knownCgroups()).join() === wanted(node, [node.proxyPod, pod, outside]).join(),
    );
    assert.equal((await node.podStatus(pod)).connections['redirected'], 1, 'counted from the reboot on');
    assert.deepEqual((await node.status()).unknown, []);
  });
});

test('ztunnel down and back: what cannot be redirected is refused, and nothing goes around it', async () => {
  await using node = await startNode('ztunnel');
  const pod = await node.addPod({ name: 'pod' });
  await node.apply();
  assert.equal(await node.travel(pod.place), 'redirected');
  const clients = loop(node, pod.place);
  for (let round = 0; round < 2; round++) {
    // It dies, and nobody has noticed yet: its port is closed, or its host is gone.
    await node.proxy.running.stop('SIGKILL');
    assert.equal(await node.travel(pod.place), 'ECONNREFUSED');
    node.manifest.change(node.proxyPod.uid, { ready: false });
    await node.apply();
    await node.until('no proxy is known', ({ proxy: { address } }) => address === null);
    assert.equal(await node.travel(pod.place), FOR_NOW);
    // The agent may go down with it, too.
    if (round === 1) await node.agent.kill9();
    assert.equal(await node.travel(pod.place), FOR_NOW);
    if (round === 1) await node.startAgent();
    node.proxyPod.startContainer();
    await node.startProxy();
    assert.equal(await node.travel(pod.place), FOR_NOW, 'it is not ready before it says so');
    node.manifest.change(node.proxyPod.uid, { ready: true });
    await node.apply();
    await eventually('it is redirected again', async () => (await node.travel(pod.place)) === 'redirected');
  }
  await delay(50);
  await clients.end();
  const peers = new Set(
    node.server.listener
      .accepted()
      .map(({ peer }) => peer.replace(/^\[::ffff:([\d.]+)\]/, '$1').replace(/:\d+$/, '')),
  );
  assert.deepEqual([...peers], [node.proxyPod.host.ip4], 'the server has seen nobody but the proxy');
});
