/** `/metrics` of an agent that runs. */
import assert from 'node:assert/strict';
import { globSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { test } from 'node:test';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import { ENROLLED, type TestNode, startNode } from '../harness/node.ts';
import { eventually, must } from '../../deploy/stage/process.ts';

async function addressOf(node: TestNode): Promise<string> {
  return String((await node.agent.logged('serving'))['http']);
}

/** The values by name and labels, as they stand in the text. */
async function scrape(node: TestNode): Promise<Map<string, number>> {
  const response = await fetch(`http://${await addressOf(node)}/metrics`);
  assert.equal(response.status, 200);
  assert.match(response.headers.get('content-type') ?? '', /^text\/plain; version=0\.0\.4/);
  const lines = (await response.text()).split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  return new Map(
    lines.map((line) => [
      line.slice(0, line.lastIndexOf(' ')),
      Number(line.slice(line.lastIndexOf(' ') + 1)),
    ]),
  );
}

test('metrics tell of pods, maps, sources and connections', async () => {
  await using node = await startNode('metrics');
  const pod = await node.addPod({ name: 'secret-name' });
  await node.addPod({ name: 'waiting', running: false });
  await node.apply();
  const before = await scrape(node);
  const is = (values: ReadonlyMap<string, number>, wanted: Readonly<Record<string, number>>): void =>
    assert.deepEqual(Object.fromEntries(Object.keys(wanted).map((name) => [name, values.get(name)])), wanted);
  // The harness's marker pod is listed and does not run.
  is(before, {
    cgroute_ready: 1,
    cgroute_proxy_known: 1,
    cgroute_cgroups_tracked: 4,
    cgroute_cgroups_unresolved: 0,
    cgroute_drift_repaired_total: 0,
    'cgroute_pods_intended{verdict="in"}': 2,
    'cgroute_pods_intended{verdict="out"}': 2,
    'cgroute_pods_mapped{verdict="in"}': 1,
    'cgroute_pods_mapped{verdict="out"}': 1,
    'cgroute_map_entries{map="cgroup_info_map"}': 4,
    'cgroute_map_capacity{map="pod_info_map"}': 4096,
    'cgroute_source_state{source="sweep",state="ok"}': 1,
    'cgroute_connections_total{branch="redirected"}': 0,
    cgroute_pods_failed: 0,
    'cgroute_pods_unmapped{verdict="in"}': 1,
    cgroute_cgroups_unresolved_age_seconds: 0,
    'cgroute_map_entries{map="connection_overflow_map"}': 0,
    'cgroute_map_capacity{map="connection_overflow_map"}': 131_072,
    'cgroute_map_errors_total{errno="E2BIG"}': 0,
  });
  assert.equal(
    [...before.keys()].some((name) => name.includes('secret-name')),
    false,
  );

  assert.equal(await node.travel(pod.place), 'redirected');
  is(await scrape(node), { 'cgroute_connections_total{branch="redirected"}': 1 });

  const told = (await scrape(node)).get('cgroute_enrolment_latency_seconds_count') ?? NaN;
  node.manifest.change(pod.uid, { labels: { 'istio.io/dataplane-mode': 'none' } });
  await node.apply();
  await eventually(
    'the change is in the metrics',
    async () => (await scrape(node)).get('cgroute_pods_mapped{verdict="out"}') === 2,
  );
  is(await scrape(node), {
    cgroute_enrolment_latency_seconds_count: told + 1,
    'cgroute_pods_intended{verdict="in"}': 1,
  });

  node.sandbox.cgroup('kubepods/burstable/pod99999999-9999-4999-8999-999999999999');
  await eventually(
    'a pod that nobody knows is counted',
    async () => (await scrape(node)).get('cgroute_cgroups_unresolved') === 1,
  );
  const age = await eventually(
    'and for how long',
    async () => (await scrape(node)).get('cgroute_cgroups_unresolved_age_seconds') || undefined,
  );
  assert.ok(age < 10);
  const older = await eventually('which grows', async () => {
    const now = (await scrape(node)).get('cgroute_cgroups_unresolved_age_seconds') ?? NaN;
    return now > age ? now : undefined;
  });
  assert.ok(older < 10);
});

test('what cannot be written is counted by errno, for pods and for the proxy', async () => {
  await using node = await startNode('metrics-errors', { agent: false });
  writeFileSync(node.sandbox.file('config.yaml'), 'sweepSeconds: 1\nmaxPods: 16\n');
  const { host } = await node.addPod({ name: 'first' });
  await node.startAgent({ args: ['--config', node.sandbox.file('config.yaml')] });
  for (let n = 0; n < 16; n++) await node.addPod({ name: `many-${n}`, host });
  node.manifest.write();
  const errors = async (errno: string): Promise<number> =>
    (await scrape(node)).get(`cgroute_map_errors_total{errno="${errno}"}`) ?? NaN;
  await eventually('the map is full', async () => (await errors('E2BIG')) > 0);
  const values = await scrape(node);
  assert.equal(values.get('cgroute_map_entries{map="pod_info_map"}'), 16);
  // The proxy and the first are mapped, too.
  assert.deepEqual(
    [values.get('cgroute_pods_failed'), values.get('cgroute_pods_unmapped{verdict="in"}')],
    [2, 2],
  );

  assert.equal(await errors('EPERM'), 0);
  const [settings = ''] = globSync(`${node.sandbox.bpffs}/cgroute/*/maps/settings`);
  await must({ cmd: 'bpftool', args: ['map', 'freeze', 'pinned', settings] });
  node.manifest.change(node.proxyPod.uid, { ready: false });
  node.manifest.write();
  await eventually('the proxy could not be forgotten', async () => (await errors('EPERM')) > 0);
});

test('connections of a pod that is gone still count, also when another has its place', async () => {
  await using node = await startNode('metrics-slots');
  const first = await node.addPod({ name: 'first' });
  await node.apply();
  assert.equal(await node.travel(first.place), 'redirected');
  node.manifest.remove(first.uid);
  removeCgroup(dirname(first.cgroup.absolute));
  await node.apply();
  const second = await node.addPod({ name: 'second', labels: ENROLLED });
  await node.apply();
  assert.equal(await node.travel(second.place), 'redirected');
  assert.equal((await scrape(node)).get('cgroute_connections_total{branch="redirected"}'), 2);
});

test('explain answers this host, by its address too', async () => {
  await using node = await startNode('metrics-http', { proxy: false });
  const http = await addressOf(node);
  assert.equal((await fetch(`http://${http}/explain?pod=mesh/ztunnel`)).status, 200);
  assert.equal((await fetch(`http://${http}/explain?pod=mesh/nobody`)).status, 404);
  assert.equal((await fetch(`http://${http}/nothing`)).status, 404);
});
