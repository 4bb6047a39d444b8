/** Pods that want what is not theirs: they harm no other, gain no identity, and the agent stays responsive. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { after, before, describe, test, type TestContext } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { allBy, dial } from '../harness/dialler.ts';
import { watchAgent } from '../harness/alive.ts';
import { makeCgroup, removeCgroup, type Cgroup } from '../../deploy/stage/cgroup.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { containerId } from '../../deploy/stage/pod-cgroup.ts';
import { eventually, type Running } from '../../deploy/stage/process.ts';
import { SOCK, type Connected, connect, listen, type Place, sock } from '../../deploy/stage/sock.ts';
import { MODE } from '../harness/label-names.ts';
import { FOR_NOW } from '../harness/for-now.ts';

const OUT = { [MODE]: 'none' };
const PORT = '8080';
/** Of one CPU, however much a pod does. */
const MOST_CPU = 1.2;
/** The node's first connections are not counted; see bpf/lib/maps.bpf.h. */
const UNCOUNTED = 4096;

describe('a hostile pod', () => {
  let node: TestNode;
  let hostile: NodePod;
  let victim: NodePod;
  let outside: NodePod;

  before(async () => {
    // A proxy that names itself in its reply.
    node = await startNode('hostile', { proxy: false, agent: false });
    writeFileSync(
      node.sandbox.file('config.yaml'),
      'sweepSeconds: 1\nmaxConnections: 8192\nmaxConnectionsPerPod: 1000\nproxy:\n  namespaces: [mesh]\n',
    );
    await listen(node.sandbox, node.proxyPod.place, 'proxy', '*', [15001, 15006], '--dual', '--quiet');
    hostile = await node.addPod({ name: 'hostile', style: 'systemd' });
    victim = await node.addPod({ name: 'victim' });
    outside = await node.addPod({ name: 'outside', labels: OUT });
    await node.startAgent({ args: ['--config', node.sandbox.file('config.yaml')] });
  });
  after(() => node?.[Symbol.asyncDispose]());

  const tool = (place: Place, ...args: readonly (string | number)[]): Running =>
    node.sandbox.spawn({ ...place, cmd: SOCK, args: args.map(String) });
  const ended = async (running: Running): Promise<void> => {
    running.end();
    await running.exit;
  };
  /** Who answers a connection to the server: `proxy` or `server`; or the errno. */
  async function answers(place: Place): Promise<string> {
    const result = await connect(place, node.server.ip4, Number(PORT));
    return result.ok ? (result.reply.split(' ')[0] ?? '') : result.errno;
  }
  const counters = async (pod: NodePod): Promise<Readonly<Record<string, number>>> =>
    (await node.podStatus(pod)).connections;

  /** While the function runs, each connection of the victim goes through the proxy, and the agent answers. */
  async function harmless<T>(t: TestContext, run: () => Promise<T>): Promise<T> {
    const loop = dial(node.sandbox, victim.place, node.server, 1000, 50);
    // A few seconds at least, or a moment would count as much as it should not.
    const [result, vitals] = await watchAgent(
      node.agent,
      async () => (await Promise.all([run(), delay(3000)]))[0],
    );
    const totals = await loop.end();
    const { total } = totals;
    assert.deepEqual(totals, allBy('proxy', total));
    assert.ok(total >= 50, `the victim made ${total} connections only`);
    t.diagnostic(
      `/healthz within ${vitals.slowestMs} ms, the agent's CPU ${vitals.cpu}, ${total} connections of the victim`,
    );
    assert.equal(vitals.bad, 0, 'answers of /healthz');
    assert.ok(vitals.cpu < MOST_CPU, `the agent took ${vitals.cpu} of a CPU`);
    assert.deepEqual([await answers(victim.place), await answers(outside.place)], ['proxy', 'server']);
    return result;
  }

  test("that makes cgroups with other pods' names gains no identity", async (t) => {
    const known = await node.knownCgroups();
    const fakes: Cgroup[] = [];
    const inside = node.sandbox.cgroup(`${hostile.cgroup.path}/inside`);
    await harmless(t, async () => {
      // The names of the victim, of a pod that is out, and of the proxy itself, in the ways of all drivers.
      for (const [n, { uid }] of [victim, outside, node.proxyPod].entries()) {
        for (let k = 0; k < 30; k++) {
          fakes.push(
            node.sandbox.cgroup(
              `${inside.path}/kubepods/burstable/pod${uid}/${containerId(`fake ${n} ${k}`)}`,
            ),
          );
          fakes.push(
            node.sandbox.cgroup(
              `${inside.path}/kubepods.slice/kubepods-pod${uid.replaceAll('-', '_')}.slice/crio-${containerId(`fake ${n} ${k}`)}.scope`,
            ),
          );
        }
      }
      // Before the agent has looked: the first act of a process that is born in one.
      for (const { uid } of [victim, outside, node.proxyPod]) {
        for (const name of [
          `kubepods/burstable/pod${uid}`,
          `kubepods.slice/kubepods-pod${uid.replaceAll('-', '_')}.slice`,
        ]) {
          const born = node.sandbox.cgroup(`${inside.path}/born ${uid}/${dirname(name)}`);
          const result = await sock<Connected>(
            { netns: hostile.host.netns },
            'first',
            '--mkdir',
            `${born.absolute}/${basename(name)}`,
            node.server.ip4,
            PORT,
          );
          assert.ok(result.ok && result.reply.startsWith('proxy '), `${name}: ${JSON.stringify(result)}`);
        }
      }
      const before = await counters(hostile);
      const dialled = fakes.filter((_, i) => i % 12 === 0);
      for (const cgroup of dialled)
        assert.equal(await answers({ cgroup, netns: hostile.host.netns }), 'proxy');
      const now = await counters(hostile);
      assert.equal(
        (now['redirected'] ?? 0) - (before['redirected'] ?? 0),
        dialled.length,
        'each is counted as its own',
      );
      await delay(1100); // a sweep has seen them too
      assert.deepEqual(await node.knownCgroups(), known, 'none of them has an entry');
      assert.equal(await answers({ cgroup: fakes[0]!, netns: hostile.host.netns }), 'proxy');
      // Named like the proxy's, it is not answered like the proxy.
      assert.equal(await answers({ cgroup: fakes.at(-1)!, netns: hostile.host.netns }), 'proxy');
    });
    removeCgroup(inside.absolute);
  });

  test('that makes and removes cgroups as fast as it can keeps nobody waiting', async (t) => {
    const known = await node.knownCgroups();
    const script =
      'cd "$1"; mkdir churn; end=$(( $(date +%s) + 3 )); n=0; while [ $(date +%s) -lt $end ]; do mkdir -p $(seq -f "churn/%g/pod$2" 50); rmdir churn/*/pod$2 churn/[0-9]*; n=$((n + 100)); done; rmdir churn; echo $n';
    const made = await harmless(t, async () => {
      const churn = node.sandbox.spawn({
        ...hostile.place,
        cmd: 'sh',
        args: ['-c', script, 'sh', hostile.cgroup.absolute, victim.uid],
      });
      // A pod that comes meanwhile is known with its first connection.
      const late = await node.addPod({ name: 'late' });
      await node.apply();
      assert.equal(await answers(late.place), 'proxy');
      const count = Number(await churn.line());
      node.manifest.remove(late.uid);
      removeCgroup(dirname(late.cgroup.absolute));
      await node.apply();
      return count;
    });
    assert.ok(made > 500, `${made} cgroups only`);
    await eventually(
      'the entries are as before',
      async () => (await node.knownCgroups()).join() === known.join(),
    );
  });

  test('that runs systemd or Docker inside is itself in all that these make', async () => {
    const inside = [
      'init.scope',
      'user.slice/user-1000.slice/user@1000.service/app.slice',
      'system.slice/containerd.service',
      `system.slice/docker-${containerId('inner')}.scope`,
      `docker/${containerId('inner')}`,
      `kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod${victim.uid.replaceAll('-', '_')}.slice`,
      `kubelet/kubepods/burstable/pod${outside.uid}/${containerId('kind in a pod')}`,
      'machine.slice/libpod-conmon.scope',
      `crio-conmon-${containerId('inner')}.scope`,
    ];
    const before = await counters(hostile);
    for (const name of inside) {
      const cgroup = node.sandbox.cgroup(`${hostile.cgroup.path}/${name}`);
      assert.equal(await answers({ cgroup, netns: hostile.host.netns }), 'proxy', name);
    }
    assert.equal((await counters(hostile))['redirected'], (before['redirected'] ?? 0) + inside.length);
    assert.deepEqual((await node.status()).unknown, []);
    for (const name of inside) removeCgroup(`${hostile.cgroup.absolute}/${name.split('/')[0]}`);
  });

  test('that opens and drops connections as fast as it can', async (t) => {
    const count = await harmless(t, async () => {
      const before = (await counters(hostile))['redirected'] ?? 0;
      const storms = [0, 1, 2, 3].map((n) =>
        tool(hostile.place, 'bench', 10_000_000, node.server.ip4, Number(PORT) + n),
      );
      const opened = async (): Promise<number> => ((await counters(hostile))['redirected'] ?? 0) - before;
      await Promise.all([delay(3000), eventually('very many', async () => (await opened()) > 100)]);
      for (const storm of storms) await storm.stop('SIGKILL');
      return opened();
    });
    t.diagnostic(`${count} connections`);
    await eventually(
      'nothing is left of them',
      async () => (await node.entries('connection_map')).length === 0,
    );
    assert.equal((await counters(victim))['handoffLost'], 0);
  });

  test('that fills its own quota of map entries is denied, and nobody else', async (t) => {
    const before = (await counters(hostile))['errorDenied'] ?? 0;
    await harmless(t, async () => {
      const grabbing = tool(hostile.place, 'grab', 12_000, node.server.ip4, PORT);
      const { held, denied } = await grabbing.json<{ held: number; denied: number }>();
      assert.ok(Math.abs(held - (UNCOUNTED + 1000)) < 20, `${held} sockets were redirected`);
      assert.equal((await counters(hostile))['errorDenied'], before + denied);
      assert.equal(await answers(hostile.place), 'EPERM', 'it has its share');
      await delay(500);
      // As long as it holds them, the others connect as ever.
      assert.equal((await counters(victim))['errorDenied'], 0);
      await ended(grabbing);
    });
    assert.equal(await answers(hostile.place), 'proxy', 'its room is free again');
  });

  test("that connects to the proxy's ports directly is refused, and from outside the mesh learns nothing", async (t) => {
    const { ip4, ip6 } = node.proxyPod.host;
    const before = await counters(hostile);
    await harmless(t, async () => {
      for (const port of [15001, 15006]) {
        for (let n = 0; n < 100; n++) {
          const result = await connect(hostile.place, ip4, port);
          assert.deepEqual([result.ok, 'errno' in result && result.errno], [false, 'EPERM']);
        }
        // The proxy has no IPv6 address in `settings`: as any destination, by the policy for none.
        const other = await connect(hostile.place, ip6, port);
        assert.deepEqual([other.ok, 'errno' in other && other.errno], [false, FOR_NOW]);
        // A pod that is out is not looked after: the proxy finds no destination, and says so.
        const direct = await connect(outside.place, ip4, port);
        assert.ok(direct.ok && !direct.reply.includes(node.server.ip4), JSON.stringify(direct));
      }
    });
    const now = await counters(hostile);
    assert.equal((now['loopDenied'] ?? 0) - (before['loopDenied'] ?? 0), 200);
    assert.equal((await counters(outside))['redirected'], 0);
  });

  test("that gives the proxy's address to a listener in a network namespace of its own leaves nothing for the proxy", async (t) => {
    const { ip4, netns } = node.proxyPod.host;
    const wanted = Buffer.alloc(16);
    wanted.writeBigUInt64LE(statSync(`/run/netns/${netns}`, { bigint: true }).ino);
    await eventually('it is known where the proxy is', async () =>
      (await node.entries('settings')).some(({ value }) =>
        isDeepStrictEqual((value['bytes'] as readonly (string | number)[]).map(Number), [...wanted]),
      ),
    );
    await harmless(t, async () => {
      const running = node.sandbox.spawn({
        ...hostile.place,
        cmd: 'unshare',
        args: [
          ...['--user', '--map-root-user', '--net', 'sh', '-ec'],
          `ip link set lo up; ip address add ${ip4}/32 dev lo
           ${SOCK} serve --quiet ${ip4} 15001 &
           read go; ${SOCK} bench 500 ${node.server.ip4} ${PORT}; kill $!`,
        ],
      });
      await running.json();
      running.write('\n');
      const { count, errors } = await running.json<{ count: number; errors: number }>();
      // Where the pod's network is known, they are nested, and left alone in a network that leads nowhere.
      assert.equal(count + errors, 500);
      await ended(running);
    });
    assert.deepEqual(await node.entries('original_dst_map'), []);
  });

  test('that has 60,000 threads', async (t) => {
    // As many as this machine has room for beside everything else that runs on it.
    const room =
      Number(readFileSync('/proc/sys/kernel/pid_max', 'utf8')) -
      Number(/\/(\d+)/.exec(readFileSync('/proc/loadavg', 'utf8'))?.[1]);
    const wanted = Math.min(60_000, Math.floor(room * 0.6));
    const threads = await harmless(t, async () => {
      const crowd = tool(hostile.place, 'threads', wanted);
      const { threads: made } = await crowd.json<{ threads: number }>();
      await delay(2500); // two sweeps
      assert.equal(await answers(hostile.place), 'proxy');
      const late = await node.addPod({ name: 'beside' });
      await node.apply();
      assert.equal(await answers(late.place), 'proxy');
      await ended(crowd);
      return made;
    });
    t.diagnostic(`${threads} threads`);
    assert.ok(threads > wanted * 0.9, `${threads} of ${wanted} threads`);
  });

  test('that has thousands of processes which come and go', async (t) => {
    const storm = await harmless(t, async () =>
      tool(hostile.place, 'storm', 3000, 3000).json<{ execs: number }>(),
    );
    t.diagnostic(`${storm.execs} programs in three seconds`);
    assert.ok(storm.execs > 100);
    assert.ok(
      existsSync(hostile.cgroup.absolute) &&
        makeCgroup(node.sandbox.cgroupRoot, hostile.cgroup.path).id === hostile.cgroup.id,
    );
  });
});
