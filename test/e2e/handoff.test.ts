/** sock_ops runs where connections are redirected and nowhere else, and wherever host processes may be. */
import assert from 'node:assert/strict';
import { globSync, readdirSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { Cgroup } from '../../deploy/stage/cgroup.ts';
import { ENROLLED, type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { listen, type Place } from '../../deploy/stage/sock.ts';
import { FOR_NOW } from '../harness/for-now.ts';

describe('where original destinations are handed over', () => {
  let node: TestNode;
  let pod: NodePod;
  let plain: NodePod;
  /** The enrolled pod, whom host processes dial. */
  let to: { readonly ip: string; readonly port: number };
  before(async () => {
    node = await startNode('handoff', { agent: false });
    writeFileSync(node.sandbox.file('config.yaml'), 'sweepSeconds: 1\n');
    node.manifest.namespace('plain');
    pod = await node.addPod({ name: 'pod' });
    plain = await node.addPod({ name: 'plain', namespace: 'plain' });
    await listen(node.sandbox, pod.place, 'serve', '*', [8080], '--dual', '--quiet');
    to = { ip: pod.host.ip4, port: 8080 };
    await start();
  });
  after(() => node?.[Symbol.asyncDispose]());

  const start = () => node.startAgent({ args: ['--config', node.sandbox.file('config.yaml')] });
  const idOf = (path: string): bigint => node.sandbox.cgroup(path).id;
  const hostIn = (cgroup: Cgroup): Place => ({ ...node.hostPlace, cgroup });
  function places(): string[] {
    const links = globSync(`${node.sandbox.bpffs}/cgroute/*/links/sock_ops@*`).map((path) =>
      path.replace(/.*@/, ''),
    );
    return links.toSorted();
  }
  /** How often this agent's program ran, as it counts while statistics are on. */
  async function runs(): Promise<number> {
    const [link] = globSync(`${node.sandbox.bpffs}/cgroute/*/links/sock_ops@*`);
    const { prog_id: id } = JSON.parse(
      await must({ cmd: 'bpftool', args: ['-j', 'link', 'show', 'pinned', String(link)] }),
    ) as { prog_id: number };
    const { run_cnt: runs = 0 } = JSON.parse(
      await must({ cmd: 'bpftool', args: ['-j', 'prog', 'show', 'id', String(id)] }),
    ) as { run_cnt?: number };
    return runs;
  }

  test('it is at the redirected pod and at the branches of host processes, not at the root, the proxy or a pod that is out', async () => {
    const branches = readdirSync(node.sandbox.cgroupRoot, { withFileTypes: true })
      .filter((entry) => entry.isDirectory() && !entry.name.startsWith('kubepods'))
      .map(({ name }) => name);
    assert.ok(branches.length > 0);
    const wanted = [dirname(pod.cgroup.path), ...branches].map((path) => String(idOf(path)));
    await eventually('they are all', () => places().length === wanted.length).catch(() => undefined);
    assert.deepEqual(places(), wanted.toSorted());
    assert.deepEqual(
      [
        await node.travel(pod.place),
        await node.travel(plain.place),
        await node.travel(node.hostPlace, { to }),
      ],
      ['redirected', 'direct', 'inbound'],
    );
  });

  test('a pod that is out and the proxy are spared it', async () => {
    const other = await node.addPod({ name: 'other', namespace: 'plain' });
    await node.apply();
    await listen(node.sandbox, other.place, 'serve', '*', [8080], '--dual', '--quiet');
    const between = { to: { ip: other.host.ip4, port: 8080 } };
    await must({ cmd: 'sysctl', args: ['-qw', 'kernel.bpf_stats_enabled=1'] });
    try {
      const before = await runs();
      assert.equal(await node.travel(plain.place, between), 'direct');
      const out = (await runs()) - before;
      assert.equal(await node.travel(pod.place, between), 'redirected');
      const redirected = (await runs()) - before - out;
      // At each end the kernel asks some five times; here only the client's is asked.
      assert.deepEqual(
        [out, redirected > 0 && redirected <= 6],
        [0, true],
        `${redirected} for a redirected connection`,
      );
    } finally {
      await must({ cmd: 'sysctl', args: ['-qw', 'kernel.bpf_stats_enabled=0'] });
    }
  });

  test('a pod joins, and has it before its first redirected connection', async () => {
    node.manifest.namespace('plain', ENROLLED);
    node.manifest.write();
    const seen = new Set<string>();
    await eventually('it is redirected', async () => {
      const travel = await node.travel(plain.place);
      seen.add(travel);
      return travel === 'redirected';
    });
    assert.deepEqual(
      [...seen].toSorted(),
      ['direct', 'redirected'].filter((travel) => seen.has(travel)),
    );
    assert.ok(places().includes(String(idOf(dirname(plain.cgroup.path)))));
    node.manifest.namespace('plain');
    await node.apply();
    assert.equal(await node.travel(plain.place), 'direct');
  });

  test('host processes of a branch that is new get through the proxy', async () => {
    const branch = node.sandbox.cgroup('machine.slice/vm');
    await eventually('the branch is seen', () => places().includes(String(idOf('machine.slice'))));
    assert.equal(await node.travel(hostIn(branch), { to }), 'inbound');
  });

  test('a process in the root itself, where nobody looked for one, is denied once and gets through the proxy from then on', async () => {
    const root: Cgroup = { ...node.sandbox.hostCgroup, path: '/', absolute: node.sandbox.cgroupRoot };
    assert.equal(await node.travel(hostIn(root), { to }), FOR_NOW);
    assert.equal((await node.status()).host['errorDenied'], 1);
    await node.agent.logged(
      'host processes of a cgroup that was not known dialled pods of the mesh and were denied: from now on their connections get to the proxy',
    );
    assert.equal(await node.travel(hostIn(root), { to }), 'inbound');
    assert.deepEqual(
      [await node.travel(pod.place), await node.travel(node.hostPlace, { to })],
      ['redirected', 'inbound'],
    );
  });

  test('an agent that leaves covers the branches that come after it', async () => {
    await node.agent.stop();
    await start();
    const root = String((await node.sandbox.cgroup('machine.slice')).id);
    assert.ok(places().includes(root));
    await node.agent.stop();
    const late = node.sandbox.cgroup('late.slice');
    assert.deepEqual(
      [await node.travel(hostIn(late), { to }), await node.travel(pod.place)],
      ['inbound', 'redirected'],
    );
    await start();
    assert.deepEqual(
      [await node.travel(hostIn(late), { to }), await node.travel(pod.place)],
      ['inbound', 'redirected'],
    );
  });
});
