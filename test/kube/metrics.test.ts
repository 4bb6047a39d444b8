/** `/metrics` of an agent that follows a real API server, as Prometheus reads it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { metricsReference } from '../../mapper/reports/metrics.ts';
import { startClusterNode } from '../harness/cluster-node.ts';
import type { KubeObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { eventually, run } from '../../deploy/stage/process.ts';
import { promtool } from '../harness/promtool.ts';
import { MODE } from '../harness/label-names.ts';

const namespace = (name: string, labels: Readonly<Record<string, string>>): KubeObject => ({
  apiVersion: 'v1',
  kind: 'Namespace',
  metadata: { name, labels },
});
const pod = (name: string): KubeObject => ({
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: { name, namespace: 'shop' },
  spec: { nodeName: 'node-a', containers: [{ name: 'c', image: 'none' }] },
});

test('metrics tell how the API server is followed, and are as Prometheus wants them', {
  skip: KUBE_MISSING,
}, async () => {
  await using node = await startClusterNode('kube-metrics');
  const { cluster } = node;
  await cluster.apply(namespace('shop', { [MODE]: 'ambient' }), pod('web'), pod('lost'));
  await node.startPod('shop', 'web');
  for (const name of ['web', 'lost'])
    await cluster.kubectl(
      '-n',
      'shop',
      'patch',
      'pod',
      name,
      '--subresource=status',
      '--type=merge',
      '-p',
      '{"status":{"phase":"Running"}}',
    );
  await node.startAgent();
  const text = async (): Promise<string> => (await node.http('metrics')).text;
  const value = async (series: string): Promise<number> => (await node.metrics()).get(series) ?? NaN;
  await eventually('it is ready', async () => (await value('cgroute_ready')) === 1);

  const all = await text();
  assert.deepEqual(
    metricsReference
      .map(({ name }) => name)
      .filter((name) => !new RegExp(`^${name}(?:_count)?[{ ]`, 'm').test(all)),
    [],
    'each metric has a value',
  );
  for (const source of ['pods', 'namespaces']) {
    const age = await value(`cgroute_source_last_event_age_seconds{source="${source}"}`);
    assert.ok(age >= 0 && age < 30, `${source}: ${age}`);
    assert.equal(await value(`cgroute_source_restarts_total{source="${source}",reason="cut"}`), 0);
  }
  assert.ok((await value('cgroute_api_requests_total')) >= 4);
  assert.equal(await value('cgroute_proxy_known'), 0);
  // The API server says that it runs, and it has no cgroup.
  assert.equal(await value('cgroute_pods_unmapped{verdict="in"}'), 1);
  assert.equal(await value('cgroute_pods_mapped{verdict="in"}'), 1);

  const before = await value('cgroute_enrolment_latency_seconds_count');
  await cluster.kubectl('label', 'namespace', 'shop', `${MODE}-`);
  await eventually('the pod is out', async () => (await value('cgroute_pods_mapped{verdict="out"}')) === 1);
  assert.equal(await value('cgroute_enrolment_latency_seconds_count'), before + 1, 'of the pod that runs');

  const program = await promtool().catch((error: unknown) => {
    if (process.env['CI']) throw error;
    return undefined;
  });
  if (program === undefined) return;
  const { code, stdout, stderr } = await run({
    cmd: program,
    args: ['check', 'metrics'],
    stdin: await text(),
  });
  assert.deepEqual({ code, stdout, stderr }, { code: 0, stdout: '', stderr: '' });
});
