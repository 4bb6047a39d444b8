/** The agent over time: what it answers over HTTP, what its maps hold after churn, and what it repairs. */
import assert from 'node:assert/strict';
import { globSync, readdirSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { startAgent } from '../../deploy/stage/agent.ts';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import { addressOf, ask } from '../harness/agent-http.ts';
import { ENROLLED, type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { connect } from '../../deploy/stage/sock.ts';
import { BYPASS, MODE } from '../harness/label-names.ts';
import { FOR_NOW } from '../harness/for-now.ts';

/** Status code and text of an answer. */
async function get(address: string, path: string): Promise<readonly [number, string]> {
  const { status, text } = await ask(address, path);
  return [status, text];
}

describe('an agent with a short sweep', () => {
  let node: TestNode;
  let pod: NodePod;
  before(async () => {
    node = await startNode('upkeep', { agent: false });
    writeFileSync(node.sandbox.file('config.yaml'), 'sweepSeconds: 1\n');
    pod = await node.addPod({ name: 'pod' });
    await node.startAgent({ args: ['--config', node.sandbox.file('config.yaml')] });
  });
  after(() => node?.[Symbol.asyncDispose]());

  const links = (): string => globSync(`${node.sandbox.bpffs}/cgroute/*/links`)[0] ?? '';
  const pinned = (): string[] => readdirSync(links()).toSorted();

  test('answers over HTTP: alive, ready, its sources, and nothing else', async () => {
    const address = await addressOf(node.agent);
    assert.deepEqual(await get(address, 'healthz'), [200, 'ok\n']);
    assert.deepEqual(await get(address, 'readyz'), [200, 'ok\n']);
    const [code, text] = await get(address, 'status');
    const status = JSON.parse(text) as {
      readonly ready: boolean;
      readonly sources: readonly { readonly name: string; readonly state: string }[];
    };
    assert.deepEqual([code, status.ready], [200, true]);
    assert.deepEqual(
      status.sources.map(({ name, state }) => `${name} ${state}`),
      [
        'manifest ok',
        'kernel ok',
        'process-events ok',
        'cgroup-watch ok',
        'sweep ok',
        'sidecars ok',
        'connections ok',
      ],
    );
    assert.equal((await get(address, 'nothing'))[0], 404);
  });

  test('removes the links of a proxy, of a pod tree and of a branch of host processes that are gone', async () => {
    const before = pinned();
    const tree = node.sandbox.cgroup('other/kubepods.slice');
    const next = await node.addPod({ name: 'ztunnel-2', namespace: 'mesh', labels: { app: 'ztunnel' } });
    await node.apply();
    await eventually('all are attached', () => pinned().length === before.length + 4);
    removeCgroup(dirname(tree.absolute));
    removeCgroup(dirname(next.cgroup.absolute));
    node.manifest.remove(next.uid);
    await node.apply();
    await eventually('their links are gone', () => pinned().length === before.length).catch(() =>
      assert.deepEqual(pinned(), before),
    );
    assert.deepEqual(pinned(), before);
    assert.equal(await node.travel(pod.place), 'redirected');
  });

  test('has exactly the entries that it should when fifty pods have come, flipped and gone', async () => {
    const styles = ['cgroupfs', 'systemd', 'crio', 'docker', 'kind-cgroupfs', 'kind-systemd'] as const;
    const pods: NodePod[] = [];
    for (let n = 0; n < 50; n++) {
      const style = styles[n % styles.length] ?? 'cgroupfs';
      pods.push(
        await node.addPod({
          name: `churn-${n}`,
          style,
          host: pod.host,
          ips: [`10.99.0.${n + 1}`],
          labels: n % 3 === 0 ? { [MODE]: 'none' } : {},
        }),
      );
    }
    await node.apply();
    const staying = new Set([node.proxyPod, pod, ...pods]);
    for (const [n, each] of pods.entries()) {
      if (n % 5 === 0) node.manifest.change(each.uid, { labels: { [BYPASS]: 'outbound' } });
      if (n % 5 === 1) each.startContainer();
      if (n % 5 === 2) removeCgroup(dirname(each.cgroup.absolute));
      if (n % 5 === 2 || n % 5 === 3) node.manifest.remove(each.uid);
      if (n % 5 === 2) staying.delete(each);
      if (n % 10 === 5) node.manifest.namespace('demo', n % 20 === 5 ? {} : ENROLLED);
      if (n % 7 === 0) node.manifest.write();
    }
    node.manifest.namespace('demo', ENROLLED);
    await node.apply();

    const wanted = new Map(
      [...staying].flatMap((each) => {
        const own = node.sandbox.cgroup(dirname(each.cgroup.path));
        const containers = readdirSync(own.absolute, { withFileTypes: true }).filter((entry) =>
          entry.isDirectory(),
        );
        return [own, ...containers.map(({ name }) => node.sandbox.cgroup(`${own.path}/${name}`))].map(
          ({ id }) => [String(id), each] as const,
        );
      }),
    );
    await eventually(
      'every entry is there',
      async () => (await node.entries('cgroup_info_map')).length === wanted.size,
    ).catch(() => undefined);
    const entries = await node.entries('cgroup_info_map');
    assert.deepEqual(entries.map(({ key }) => String(key)).toSorted(), [...wanted.keys()].toSorted());

    const status = await node.status();
    assert.deepEqual(
      status.pods.map(({ uid }) => uid).toSorted(),
      [...staying].map(({ uid }) => uid).toSorted(),
    );
    assert.deepEqual(status.unknown, []);
    for (const { verdict, uid, cgroups } of status.pods) {
      const mine = [...wanted].filter(([, owner]) => owner.uid === uid).map(([id]) => id);
      assert.deepEqual(cgroups.map(({ id }) => id).toSorted(), mine.toSorted());
      const inMesh = entries
        .filter(({ key }) => mine.includes(String(key)))
        .map(({ value }) => value['is_in_mesh']);
      assert.deepEqual(new Set(inMesh), new Set([verdict === 'out' ? 0 : 1]), `${uid} is ${verdict}`);
    }
    const slots = new Set((await node.entries('pod_info_map')).map(({ value }) => value['slot']));
    assert.equal(slots.size, (await node.entries('pod_info_map')).length, 'each pod has counters of its own');

    for (const each of pods) {
      if (staying.has(each)) removeCgroup(dirname(each.cgroup.absolute));
      node.manifest.remove(each.uid);
    }
    await node.apply();
    await eventually('the pods are gone', async () => (await node.entries('cgroup_info_map')).length === 4);
    const addresses = await node.entries('pod_ip_map');
    assert.equal(addresses.length, 1, 'the address of the one enrolled pod');
    assert.equal(
      (await node.entries('pod_info_map')).length,
      3,
      'it, the proxy, and the marker of the last change',
    );
    assert.equal(await node.travel(pod.place), 'redirected');
  });

  test('keeps no original destination of connections that have ended', async () => {
    for (let n = 0; n < 20; n++) assert.ok((await connect(pod.place, node.server.ip4, 8080)).ok);
    await eventually(
      'the connections are forgotten',
      async () =>
        (await node.entries('connection_map')).length +
          (await node.entries('connection_overflow_map')).length ===
        0,
    );
    assert.deepEqual(await node.entries('original_dst_map'), []);
  });
});

test('a pod that no map has room for is said, counted, treated as unknown, and taken in when there is room', async () => {
  await using node = await startNode('full', { agent: false });
  writeFileSync(node.sandbox.file('config.yaml'), 'sweepSeconds: 1\nmaxPods: 16\nunknownPods: deny\n');
  const first = await node.addPod({ name: 'first' });
  await node.startAgent({ args: ['--config', node.sandbox.file('config.yaml')] });
  const many: NodePod[] = [];
  for (let n = 0; n < 14; n++) many.push(await node.addPod({ name: `many-${n}`, host: first.host }));
  node.manifest.write();
  await eventually('the map is full', async () => (await node.entries('pod_info_map')).length === 16);
  const late = await node.addPod({ name: 'late', host: first.host });
  node.manifest.write();
  const report = await eventually('it is said', () =>
    node.agent.log().find(({ level, msg }) => level === 'error' && /pod_info_map/.test(String(msg))),
  );
  assert.equal(report['podUid'], late.uid);
  const refused = (await node.metrics()).get('cgroute_map_errors_total{errno="E2BIG"}') ?? NaN;
  assert.ok(refused >= 1, 'it is counted');
  assert.ok(
    (await node.status()).unknown.some(({ id }) => id === String(late.cgroup.id)),
    'it is in status',
  );
  assert.deepEqual([await node.travel(first.place), await node.travel(late.place)], ['redirected', FOR_NOW]);
  for (const each of many.splice(0, 5)) {
    removeCgroup(dirname(each.cgroup.absolute));
    node.manifest.remove(each.uid);
  }
  node.manifest.write();
  await eventually('it is taken in', async () => (await node.travel(late.place)) === 'redirected');
});

test('is alive and not ready while it starts', async () => {
  await using node = await startNode('starting', { agent: false, proxy: false });
  // So many cgroups that the first look at them takes a while.
  await must({
    cmd: 'sh',
    args: [
      '-c',
      'cd "$1" && for a in 0 1 2 3 4 5 6 7 8 9; do mkdir -p $(seq -f "many-$a/%g" 300); done',
      'sh',
      node.sandbox.cgroupRoot,
    ],
  });
  node.manifest.write();
  const http = '127.0.0.1:15271';
  const agent = startAgent(node.sandbox, { manifest: node.manifest.path, http });
  const seen = new Set<string>();
  await eventually('it is ready', async () => {
    const [health, ready] = await Promise.all([get(http, 'healthz'), get(http, 'readyz')]).catch(() => [
      undefined,
      undefined,
    ]);
    if (health === undefined || ready === undefined) return false;
    seen.add(`healthz ${health[0]}, readyz ${ready[0]}`);
    return ready[0] === 200;
  });
  assert.deepEqual([...seen], ['healthz 200, readyz 503', 'healthz 200, readyz 200']);
  await agent.stop();
  await assert.rejects(get(http, 'healthz'));
});
