/**
 * To another version with other layouts, and back: open connections and new ones
 * notice nothing, wherever the new agent is killed on the way.
 */
import assert from 'node:assert/strict';
import { globSync, readdirSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { after, before, describe, test } from 'node:test';
import { allBy, dial, type Dialler } from '../harness/dialler.ts';
import { type Agent, cgroute, startAgent } from '../../deploy/stage/agent.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { plain } from '../harness/travel.ts';
import { makeRandom } from '../harness/random.ts';
import { otherBuild } from '../harness/other-build.ts';
import { BYPASS } from '../harness/label-names.ts';
import { eventually, must, type Running } from '../../deploy/stage/process.ts';
import {
  SOCK,
  type Accepted,
  type Connected,
  type Listener,
  type Place,
  listen,
} from '../../deploy/stage/sock.ts';
import { freeze } from '../kernel/mesh.ts';
import { PIN_VERSION as OWN } from '../../native/pins/pin-directory.ts';
import { LAYOUTS, OTHER_VERSION as OTHER } from './other-layouts.ts';

interface Held {
  readonly asked: string;
  readonly local: string;
  readonly running: Running;
}

describe('another version with other layouts', () => {
  let node: TestNode;
  let pod: NodePod;
  let bypassed: NodePod;
  let proxying: Listener;
  /** The program of the other version; this one's is that of the checkout. */
  let other: string | undefined;

  before(async () => {
    node = await startNode('upgrade', { proxy: false, agent: false });
    other = await otherBuild(LAYOUTS);
    proxying = await listen(
      node.sandbox,
      node.proxyPod.place,
      'proxy',
      '*',
      [15001, 15006],
      '--dual',
      '--again',
    );
    node.manifest.change(node.proxyPod.uid, { ips: [node.proxyPod.host.ip4, node.proxyPod.host.ip6] });
    pod = await node.addPod({ name: 'pod', style: 'systemd' });
    bypassed = await node.addPod({ name: 'bypassed', labels: { [BYPASS]: 'enabled' } });
    await start(OTHER);
  });
  after(() => node?.[Symbol.asyncDispose]());

  const options = (version: string): { program?: string } =>
    version === OWN || other === undefined ? {} : { program: other };
  const start = (version: string): Promise<Agent> => node.startAgent(options(version));
  const versions = (): string[] => readdirSync(`${node.sandbox.bpffs}/cgroute`);
  const links = (): string[] =>
    globSync(`${node.sandbox.bpffs}/cgroute/*/links/*`).map((path) => path.replace(/.*\//, ''));
  const attached = async (): Promise<number> =>
    (
      JSON.parse(await must({ cmd: 'bpftool', args: ['-j', 'cgroup', 'tree', node.sandbox.cgroupRoot] })) as {
        programs: unknown[];
      }[]
    ).flatMap((each) => each.programs).length;
  const redirected = async (): Promise<number> => (await node.podStatus(pod)).connections['redirected'] ?? 0;

  async function hold(place: Place, ip: string): Promise<Held> {
    const running = node.sandbox.spawn({ ...place, cmd: SOCK, args: ['connect', '--hold', ip, '8080'] });
    const result = await running.json<Connected>();
    assert.ok(result.ok && result.reply.startsWith('proxy '), JSON.stringify(result));
    return { asked: `${ip}:8080`, local: plain(result.local), running };
  }

  /** Its peer is the one that it asked for, and the proxy is still told so. */
  async function release({ asked, local, running }: Held): Promise<void> {
    running.end();
    const last = await running.json<{ alive: boolean; peer: string }>();
    await running.exit;
    assert.deepEqual({ alive: last.alive, peer: last.peer }, { alive: true, peer: asked });
    const { again } = await eventually(`the proxy has asked again about ${local}`, () =>
      (proxying.accepted() as (Accepted & { again?: string })[]).findLast(
        (line) => plain(line.peer) === local && line.again !== undefined,
      ),
    );
    assert.equal(again, asked);
  }

  /** New connections of all kinds go on meanwhile, each as it should. */
  async function whileDialling<T>(run: () => Promise<T>): Promise<T> {
    const loop = (place: Place, ip: string): Dialler =>
      dial(node.sandbox, place, { ip, port: 8080 }, 300, 21);
    const loops = [
      ['proxy', loop(pod.place, node.server.ip4)],
      ['proxy', loop(pod.place, node.server.ip6)],
      ['proxy', loop(node.hostPlace, pod.host.ip4)],
      ['server', loop(bypassed.place, node.server.ip4)],
    ] as const;
    const result = await run();
    for (const [to, running] of loops) {
      const totals = await running.end();
      assert.deepEqual(totals, allBy(to, totals.total));
      assert.ok(totals.total > 20, JSON.stringify(totals));
    }
    return result;
  }

  /** What one version alone leaves: its directory, one link for each program and place, and nothing of closed connections. */
  async function consistent(version: string): Promise<void> {
    assert.deepEqual(versions(), [version]);
    const now = links();
    const places = now.filter((name) => !/^original_dst@\d+_/.test(name));
    assert.deepEqual(
      places
        .filter((name) => /connect/.test(name))
        .map((name) => name.replace(/@.*/, ''))
        .toSorted(),
      ['pod_connect4', 'pod_connect4', 'pod_connect6', 'pod_connect6', 'root_connect4', 'root_connect6'],
    );
    for (const program of ['sock_release', 'getpeername4', 'getpeername6', 'cgroup_mkdir', 'cgroup_rmdir']) {
      assert.equal(places.filter((name) => name.startsWith(`${program}@`)).length, 1, places.join(' '));
    }
    const pinned = now.filter((name) => !name.endsWith('@0')).length;
    await eventually('nothing is attached that is not pinned', async () => (await attached()) === pinned);
    for (const map of ['connection_map', 'connection_overflow_map', 'original_dst_map']) {
      await eventually(`${map} is empty`, async () => (await node.entries(map)).length === 0);
    }
  }

  for (const [from, to] of [
    [OTHER, OWN],
    [OWN, OTHER],
    [OTHER, OWN],
  ] as const) {
    test(`${from} is replaced by ${to} and no connection notices, open or new`, async () => {
      const held = [
        await hold(pod.place, node.server.ip4),
        await hold(pod.place, node.server.ip4),
        await hold(node.hostPlace, pod.host.ip4),
      ];
      const before = await redirected();
      await whileDialling(async () => {
        await node.agent.kill9();
        const agent = await start(to);
        const done = agent.log().find(({ msg }) => msg?.startsWith('version') === true)?.msg ?? '';
        const [, count] =
          new RegExp(
            `^version ${from} of the pins has been replaced by ${to}, with (\\d+) open connections$`,
          ).exec(done) ?? [];
        assert.ok(Number(count) >= held.length, done);
        await delay(200);
      });
      assert.ok((await redirected()) > before, 'the counters go on');
      const { pods } = await node.status();
      assert.deepEqual(pods.map(({ name, verdict, reason }) => [name, verdict, reason]).toSorted(), [
        ['bypassed', 'bypass', 'bypass'],
        ['pod', 'in', 'namespace-label'],
        ['ztunnel', 'out', 'proxy'],
      ]);
      for (const each of held) await release(each);
      await consistent(to);
    });
  }

  test('a handshake that is under way, and a connection that the proxy has not looked at, arrive where they were meant to', async () => {
    const syn = ['INPUT', '-p', 'tcp', '--syn', '-m', 'multiport', '--dports', '15001,15006', '-j', 'DROP'];
    const firewall = (verb: '-I' | '-D'): Promise<string> =>
      must({ netns: node.proxyPod.host.netns, cmd: 'iptables', args: ['-w', verb, ...syn] });
    const dial = (): Running =>
      node.sandbox.spawn({ ...pod.place, cmd: SOCK, args: ['connect', node.server.ip4, '8080'] });
    for (const to of [OTHER, OWN]) {
      await node.agent.stop();
      await start(to === OWN ? OTHER : OWN);
      await freeze(node.proxyPod.cgroup, true);
      const waiting = dial();
      await eventually('it is filed', async () => (await node.entries('original_dst_map')).length === 1);
      await firewall('-I');
      const under = dial();
      await eventually('it is on its way', async () => (await node.entries('connection_map')).length === 2);
      await node.agent.stop();
      await start(to);
      await firewall('-D');
      await freeze(node.proxyPod.cgroup, false);
      for (const each of [waiting, under]) {
        const result = await each.json<Connected>();
        assert.ok(result.ok, JSON.stringify(result));
        assert.equal(
          result.reply.split(' ').map(plain).join(' '),
          `proxy ${node.server.ip4}:8080 ${plain(result.local)}`,
        );
      }
      await consistent(to);
    }
  });

  test('more connections than the small map holds are taken over', async () => {
    await node.agent.stop();
    await start(OWN);
    const many = node.sandbox.spawn({
      ...pod.place,
      cmd: SOCK,
      args: ['many', '4500', '198.51.0.1', '8080'],
    });
    const result = await many.json<{ ok: number; failed: number }>();
    assert.deepEqual([result.ok, result.failed], [4500, 0]);
    await node.agent.stop();
    const agent = await start(OTHER);
    assert.ok(
      agent
        .log()
        .some(
          ({ msg }) =>
            msg === `version ${OWN} of the pins has been replaced by ${OTHER}, with 4500 open connections`,
        ),
      agent
        .log()
        .map(({ msg }) => msg)
        .join('\n'),
    );
    const counts = await Promise.all(
      ['connection_map', 'connection_overflow_map'].map(async (map) => (await node.entries(map)).length),
    );
    assert.deepEqual(counts, [4096, 404]);
    many.end();
    await many.exit;
    await consistent(OTHER);
    await node.agent.stop();
    await start(OWN);
  });

  test('status, explain and doctor read what another version has pinned', async () => {
    await node.agent.stop();
    await start(OTHER);
    const { pods, proxy, agent } = await node.status();
    assert.deepEqual(pods.map(({ name, verdict, cgroups }) => [name, verdict, cgroups.length]).toSorted(), [
      ['bypassed', 'bypass', 2],
      ['pod', 'in', 2],
      ['ztunnel', 'out', 2],
    ]);
    assert.deepEqual(
      [proxy.address, proxy.pod, agent.running, agent.pid],
      [node.proxyPod.host.ip4, 'mesh/ztunnel', true, node.agent.running.pid],
    );
    const explained = await cgroute(node.sandbox, ['explain', 'demo/pod']);
    assert.equal(explained.code, 0, explained.stderr);
    const doctor = await cgroute(node.sandbox, ['doctor']);
    assert.match(doctor.stdout, /root_connect4/);
    assert.match(
      doctor.stdout,
      new RegExp(
        `version ${OTHER} of the pins is there; an agent of this version, ${OWN}, takes over from it`,
      ),
    );
    assert.doesNotMatch(doctor.stdout, /left by/, "its programs are known as cgroute's");
  });

  test('the new agent may be killed at any point of the handover, and the old one may come back', async () => {
    const agents: string[] = [];
    const random = makeRandom(4711);
    const held = [await hold(pod.place, node.server.ip4), await hold(node.hostPlace, pod.host.ip4)];
    await whileDialling(async () => {
      await node.agent.kill9();
      for (let i = 0; i < 20; i++) {
        const version = random.next() < 0.7 ? OWN : OTHER;
        const agent = startAgent(node.sandbox, { manifest: node.manifest.path, ...options(version) });
        const ms = Math.round(60 + random.next() * 900);
        await delay(ms);
        await agent.kill9();
        agents.push(
          `${version} ${ms} ms: ${versions().join('+')}${agent.log().some(({ msg }) => msg === 'ready') ? ', ready' : ''}`,
        );
      }
      await start(OWN);
      await delay(100);
    }).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${agents.join('\n')}`);
    });
    assert.ok(
      agents.some((line) => line.includes('+')),
      `none was killed in the middle\n${agents.join('\n')}`,
    );
    for (const each of held) await release(each);
    await consistent(OWN);
  });

  test('what was kept for connections of before goes with the proxy', async () => {
    assert.ok(
      links().some((name) => /^original_dst@\d+_v/.test(name)),
      links().join(' '),
    );
    const next = await node.addPod({ name: 'ztunnel-b', namespace: 'mesh', labels: { app: 'ztunnel' } });
    node.manifest.remove(node.proxyPod.uid);
    await node.apply();
    await node.agent.stop();
    await start(OWN);
    assert.deepEqual(
      links().filter((name) => name.startsWith('original_dst@') && name.includes('_v')),
      [],
    );
    assert.ok(
      links().some((name) => name === `original_dst@${next.cgroup.id}` || name.startsWith('original_dst@')),
    );
  });

  test('a start that fails leaves the other version as it was', async () => {
    await node.agent.stop();
    const before = links();
    const broken = startAgent(node.sandbox, {
      manifest: node.sandbox.file('none/pods.yaml'),
      ...options(OTHER),
    });
    assert.notEqual((await broken.running.exit).code, 0);
    assert.deepEqual([versions(), links()], [[OWN], before]);
  });

  test('cleanup removes all versions', async () => {
    await node.agent.stop();
    await start(OWN);
    await node.agent.stop();
    const agent = startAgent(node.sandbox, { manifest: node.manifest.path, ...options(OTHER) });
    const pinned = (): number =>
      [OWN, OTHER].filter((version) => globSync(`${node.sandbox.bpffs}/cgroute/${version}/maps/*`).length > 0)
        .length;
    await eventually('both are there', () => pinned() === 2);
    await agent.kill9();
    if (pinned() === 2)
      assert.match(
        (await cgroute(node.sandbox, ['doctor'])).stdout,
        new RegExp(`versions ${OWN} and ${OTHER} of the pins are there: taking over has not come to its end`),
      );
    assert.equal((await cgroute(node.sandbox, ['cleanup'])).code, 0);
    assert.deepEqual(
      readdirSync(node.sandbox.bpffs).filter((name) => name === 'cgroute'),
      [],
    );
    // The kernel frees an unpinned link a little later.
    await eventually('nothing is attached', async () => (await attached()) === 0);
  });
});
