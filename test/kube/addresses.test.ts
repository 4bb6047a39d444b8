/** An address that another pod had a moment ago: connections to it go by the pod that has it now. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { servingPod, startMesh } from '../harness/kube-mesh.ts';
import { SERVER_PORT } from '../../deploy/stage/node.ts';
import { namespaceObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { MODE } from '../harness/label-names.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { agree } from './agreement.ts';

test('a pod has the address of one that is gone and still listed, whatever either is labelled', {
  skip: KUBE_MISSING,
}, async () => {
  await using mesh = await startMesh('addresses');
  const { cluster } = mesh;
  const node = await mesh.addNode({ name: 'node-a', reuse: 'at-once', statusDelayMs: 50 });
  await cluster.apply(namespaceObject('shop', { [MODE]: 'ambient' }));
  const pod = (name: string, mode: string) =>
    servingPod(name, { node: 'node-a', namespace: 'shop', labels: { [MODE]: mode } });
  for (const [before, after] of [
    ['none', 'ambient'],
    ['ambient', 'none'],
  ] as const) {
    const [old, next] = [`old-${before}`, `next-${after}`];
    await cluster.apply(pod(old, before));
    const ip = (await node.kubelet.running('shop', old)).worker.network?.ip4 ?? '';
    await agree(mesh, node);
    // Something holds the object, and its kubelet says nothing more: by the API it goes on to run and to have the address.
    const path = `/api/v1/namespaces/shop/pods/${old}`;
    await cluster.api.patch(path, 'merge-patch+json', { metadata: { finalizers: ['test.invalid/hold'] } });
    await delay(1100); // creation times have seconds
    node.kubelet.setStatusDelay(Infinity);
    await cluster.kubectl('-n', 'shop', 'delete', 'pod', old, '--wait=false', '--grace-period=1');
    await eventually('it runs no more', () =>
      node.kubelet.pods().every(({ name, worker }) => name !== old || worker.cgroup === undefined),
    );
    const { metadata, status } = (await cluster.pod('shop', old)) ?? {};
    assert.deepEqual(
      [status?.phase, status?.podIP, metadata?.deletionTimestamp === undefined],
      ['Running', ip, false],
    );

    await cluster.apply(pod(next, after));
    const now = await node.kubelet.started('shop', next);
    assert.equal(now.worker.network?.ip4, ip);
    const [inbound, outbound] = after === 'ambient' ? ['inbound', 'redirected'] : ['direct', 'direct'];
    await node.until(`${next} is known`, ({ pods }) =>
      pods.some(({ name, cgroups }) => name === next && cgroups.length === 3),
    );
    assert.equal(await node.travel(now.place()), outbound);
    node.kubelet.setStatusDelay(50);
    await node.kubelet.running('shop', next);
    await eventually(
      `the host reaches it ${inbound}`,
      async () => (await node.travel(node.hostPlace, { ip, port: SERVER_PORT })) === inbound,
    );

    await cluster.api.patch(path, 'merge-patch+json', { metadata: { finalizers: null } });
    await agree(mesh, node);
    assert.equal(await node.travel(node.hostPlace, { ip, port: SERVER_PORT }), inbound);
    await cluster.kubectl('-n', 'shop', 'delete', 'pod', next, '--grace-period=0', '--force');
  }
});
