/** Who gets room in the kernel's maps: those that run before those that do not, and the proxy before all. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { test } from 'node:test';
import { cgroute } from '../../deploy/stage/agent.ts';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { newUid } from '../../deploy/stage/pod-cgroup.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { listen } from '../../deploy/stage/sock.ts';
import { FOR_NOW } from '../harness/for-now.ts';
import { MODE } from '../harness/label-names.ts';
import { startNode, type TestNode } from '../harness/node.ts';

const ROOM = 16;
const PHASES = ['Succeeded', 'Failed'];

/** A node whose maps have room for {@link ROOM} pods, and whose manifest says nothing yet of its proxy. */
async function startSmall(name: string, unknownPods = 'deny'): Promise<TestNode> {
  const node = await startNode(name, { agent: false });
  writeFileSync(
    node.sandbox.file('config.yaml'),
    `sweepSeconds: 1\nmaxPods: ${ROOM}\nunknownPods: ${unknownPods}\n`,
  );
  node.manifest.remove(node.proxyPod.uid);
  return node;
}

const config = (node: TestNode): { readonly args: readonly string[] } => ({
  args: ['--config', node.sandbox.file('config.yaml')],
});

/** Pods of the manifest that have no cgroup. */
function list(node: TestNode, count: number, phaseOf: (n: number) => string | undefined): void {
  for (let n = 0; n < count; n++) {
    const phase = phaseOf(n);
    node.manifest.pod({
      name: `listed-${n}`,
      namespace: 'demo',
      uid: newUid(),
      ips: [`10.9.${n >> 8}.${n & 255}`],
      ...(phase === undefined ? {} : { phase }),
    });
  }
}

const names = async (node: TestNode): Promise<string[]> => (await node.status()).pods.map(({ name }) => name);
const isFull = async (node: TestNode): Promise<boolean> =>
  (await node.entries('pod_info_map')).length === ROOM;

test('pods that have ended take no room: the enrolled pod and the proxy behind 4,200 of them are served', async () => {
  await using node = await startNode('ended', { agent: false });
  node.manifest.remove(node.proxyPod.uid);
  list(node, 4200, (n) => PHASES[n % 2]);
  const pod = await node.addPod({ name: 'pod' });
  node.manifest.pod(node.proxyPod.object);
  await node.startAgent();
  assert.equal(await node.travel(pod.place), 'redirected');
  assert.deepEqual(await names(node), ['pod', 'ztunnel']);
  assert.equal((await node.entries('pod_info_map')).length, 2);
});

test('a pod that ends gives up its room once its cgroup is gone', async () => {
  await using node = await startSmall('ends');
  const ending: NodePod[] = [];
  for (let n = 0; n < ROOM; n++)
    ending.push(await node.addPod({ name: `job-${n}`, ...(n > 0 ? { host: must(ending[0]).host } : {}) }));
  await node.startAgent(config(node));
  assert.ok(await isFull(node));
  for (const { uid, cgroup } of ending.slice(0, 4)) {
    node.manifest.change(uid, { phase: 'Succeeded' });
    removeCgroup(dirname(cgroup.absolute));
  }
  node.manifest.write();
  await eventually('they have gone', async () => (await node.entries('pod_info_map')).length === ROOM - 4);
  assert.deepEqual(
    (await names(node)).filter((name) => /^job-[0-3]$/.test(name)),
    [],
  );
  const late = await node.addPod({ name: 'late', host: must(ending[0]).host });
  node.manifest.pod(node.proxyPod.object);
  node.manifest.write();
  await eventually('it is redirected', async () => (await node.travel(late.place)) === 'redirected');
});

test('at the start the proxy is written first, then enrolled pods that run, and pods without a cgroup last', async () => {
  await using node = await startSmall('order');
  list(node, 2 * ROOM, () => 'Pending');
  const others: NodePod[] = [];
  for (let n = 0; n < ROOM; n++)
    others.push(
      await node.addPod({
        name: `out-${n}`,
        labels: { [MODE]: 'none' },
        ...(n > 0 ? { host: must(others[0]).host } : {}),
      }),
    );
  const pod = await node.addPod({ name: 'pod' });
  node.manifest.pod(node.proxyPod.object);
  await node.startAgent(config(node));
  assert.equal(await node.travel(pod.place), 'redirected');
  const there = await names(node);
  assert.equal(there.length, ROOM);
  assert.deepEqual(
    there.filter((name) => !name.startsWith('out-')),
    ['pod', 'ztunnel'],
  );
});

test('a pod that runs takes the room of one that does not', async () => {
  await using node = await startSmall('pending');
  list(node, 2 * ROOM, () => 'Pending');
  await node.startAgent(config(node));
  assert.ok(await isFull(node));
  const pod = await node.addPod({ name: 'pod' });
  node.manifest.pod(node.proxyPod.object);
  node.manifest.write();
  await eventually('it is redirected', async () => (await node.travel(pod.place)) === 'redirected');
  const there = await names(node);
  assert.deepEqual([there.length, there.includes('pod'), there.includes('ztunnel')], [ROOM, true, true]);
});

test('a new proxy takes the room of another pod, which is then treated as unknown and said', async () => {
  await using node = await startSmall('rollout');
  const out = await node.addPod({ name: 'out', labels: { [MODE]: 'none' } });
  const pods: NodePod[] = [];
  for (let n = 1; n < ROOM; n++) pods.push(await node.addPod({ name: `pod-${n}`, host: out.host }));
  await node.startAgent(config(node));
  assert.ok(await isFull(node));
  assert.equal(await node.travel(out.place), 'direct');
  node.manifest.pod(node.proxyPod.object);
  node.manifest.write();
  await node.until('the proxy is known', ({ proxy }) => proxy.ready);
  assert.equal(await node.travel(must(pods[0]).place), 'redirected');
  assert.notEqual(await node.travel(out.place), 'direct');
  const status = await node.status();
  assert.ok(status.unknown.some(({ id }) => id === String(out.cgroup.id)));
  assert.ok(
    node.agent
      .log()
      .some(
        ({ podUid, level, msg }) =>
          podUid === out.uid && level === 'error' && /pod_info_map/.test(String(msg)),
      ),
  );
});

test('a pod with very many addresses takes no room of others, which the host reaches through the proxy', async () => {
  await using node = await startSmall('addresses');
  node.manifest.pod(node.proxyPod.object);
  const { host } = await node.addPod({
    name: 'many',
    ips: Array.from({ length: 8 * ROOM }, (_, n) => `10.8.0.${n + 1}`),
  });
  const pod = await node.addPod({ name: 'pod' });
  await listen(node.sandbox, { netns: pod.host.netns }, 'serve', '*', [80], '--dual');
  await node.startAgent(config(node));
  const to = { ip: pod.host.ip4, port: 80 };
  assert.equal(await node.travel(node.hostPlace, { to }), 'inbound');
  assert.equal((await node.entries('pod_ip_map')).length, 2);
  assert.notEqual(host.netns, pod.host.netns);
});

test('a pod whose cgroups find no room is refused and said, and reached through the proxy all the same', async () => {
  await using node = await startSmall('cgroups');
  node.manifest.pod(node.proxyPod.object);
  const greedy = await node.addPod({ name: 'greedy' });
  for (let n = 0; n < 8 * ROOM; n++) greedy.startContainer();
  await node.startAgent(config(node));
  const pod = await node.addPod({ name: 'pod' });
  await listen(node.sandbox, { netns: pod.host.netns }, 'serve', '*', [80], '--dual');
  node.manifest.write();
  await eventually('it is said', () =>
    node.agent
      .log()
      .some(({ podUid, msg }) => podUid === pod.uid && /cgroup_info_map.*E2BIG/.test(String(msg))),
  );
  assert.equal(await node.travel(pod.place), FOR_NOW);
  assert.equal(
    await node.travel(greedy.place),
    'redirected',
    'by its own cgroup, if its container has no entry',
  );
  const to = { ip: pod.host.ip4, port: 80 };
  await eventually(
    'the host reaches it through the proxy',
    async () => (await node.travel(node.hostPlace, { to })) === 'inbound',
  );
  const { code, stdout } = await cgroute(node.sandbox, ['status'], {
    bpffsRoot: `${node.sandbox.bpffs}/cgroute`,
  });
  assert.equal(code, 3);
  assert.match(
    stdout,
    /^WRONG +cgroup_info_map has no room for more than its 128 entries; pods that are not in it/m,
  );
  removeCgroup(dirname(greedy.cgroup.absolute));
  await eventually('there is room', async () => (await node.travel(pod.place)) === 'redirected');
});

function must<T>(value: T | undefined): T {
  if (value === undefined) throw new Error('there is none');
  return value;
}
