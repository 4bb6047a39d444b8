/** `/metrics` of an agent that runs. */
import assert from 'node:assert/strict';
import { globSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { test } from 'node:test';
import { branch } from '../../native/layout/layouts.ts';
import { metricsReference } from '../../mapper/reports/metrics.ts';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import { ENROLLED, startNode } from '../harness/node.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { MODE } from '../harness/label-names.ts';

test('an agent serves what is documented, and nothing else', async () => {
  await using node = await startNode('metrics-names');
  const { text } = await node.http('metrics');
  assert.deepEqual(
    [...text.matchAll(/^# TYPE (\w+) (\w+)/gm)].map(([, name, type]) => ({ name, type })),
    metricsReference.map(({ name, type }) => ({ name, type })),
  );
});

test('metrics tell of pods, maps, sources and connections', async () => {
  await using node = await startNode('metrics');
  const pod = await node.addPod({ name: 'secret-name' });
  await node.addPod({ name: 'waiting', running: false });
  await node.apply();
  const before = await node.metrics();
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
    'cgroute_map_capacity{map="connection_overflow_map"}': 262_144,
    'cgroute_map_errors_total{errno="E2BIG"}': 0,
  });
  assert.equal(
    [...before.keys()].some((name) => name.includes('secret-name')),
    false,
  );

  assert.equal(await node.travel(pod.place), 'redirected');
  is(await node.metrics(), { 'cgroute_connections_total{branch="redirected"}': 1 });

  const branches = Object.keys(branch).filter((name) => name !== 'count');
  assert.deepEqual(Object.keys((await node.podStatus(pod)).connections), branches, 'and no others');
  assert.deepEqual(
    [...before.keys()].filter((name) => name.startsWith('cgroute_connections_total')),
    branches.map((name) => `cgroute_connections_total{branch="${name}"}`),
  );

  const told = (await node.metrics()).get('cgroute_enrolment_latency_seconds_count') ?? NaN;
  node.manifest.change(pod.uid, { labels: { [MODE]: 'none' } });
  await node.apply();
  await eventually(
    'the change is in the metrics',
    async () => (await node.metrics()).get('cgroute_pods_mapped{verdict="out"}') === 2,
  );
  is(await node.metrics(), {
    cgroute_enrolment_latency_seconds_count: told + 1,
    'cgroute_pods_intended{verdict="in"}': 1,
  });

  node.sandbox.cgroup('kubepods/burstable/pod99999999-9999-4999-8999-999999999999');
  await eventually(
    'a pod that nobody knows is counted',
    async () => (await node.metrics()).get('cgroute_cgroups_unresolved') === 1,
  );
  const age = await eventually(
    'and for how long',
    async () => (await node.metrics()).get('cgroute_cgroups_unresolved_age_seconds') || undefined,
  );
  assert.ok(age < 10);
  const older = await eventually('which grows', async () => {
    const now = (await node.metrics()).get('cgroute_cgroups_unresolved_age_seconds') ?? NaN;
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
    (await node.metrics()).get(`cgroute_map_errors_total{errno="${errno}"}`) ?? NaN;
  await eventually('the map is full', async () => (await errors('E2BIG')) > 0);
  const values = await node.metrics();
  assert.equal(values.get('cgroute_map_entries{map="pod_info_map"}'), 16);
  // The proxy and the first are mapped, too.
  assert.deepEqual(
    [values.get('cgroute_pods_failed'), values.get('cgroute_pods_unmapped{verdict="in"}')],
    [2, 2],
  );

  assert.equal(await errors('EPERM'), 0);
  const [settings = ''] = globSync(`${node.sandbox.bpffs}/cgroute/*/maps/settings`);
  await must({ cmd: 'bpftool', args: ['map', 'freeze', 'pinned', settings] });
  node.manifest.remove(node.proxyPod.uid);
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
  assert.equal((await node.metrics()).get('cgroute_connections_total{branch="redirected"}'), 2);
});

test('explain answers this host, by its address too', async () => {
  await using node = await startNode('metrics-http', { proxy: false });
  assert.equal((await node.http('explain?pod=mesh/ztunnel')).status, 200);
  assert.equal((await node.http('explain?pod=mesh/nobody')).status, 404);
  assert.equal((await node.http('nothing')).status, 404);
});
