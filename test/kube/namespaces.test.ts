/** A cluster with very many namespaces. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { servingPod } from '../harness/kube-mesh.ts';
import { namespaceObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { MODE } from '../harness/label-names.ts';
import { type FaultNode, startFaultNode } from './fault-node.ts';

describe('with a thousand namespaces', { skip: KUBE_MISSING }, () => {
  let f: FaultNode;
  const names = Array.from({ length: 1000 }, (_, at) => `ns-${at}`);

  before(async () => {
    f = await startFaultNode('namespaces');
    await f.start();
  });
  after(() => f?.[Symbol.asyncDispose]());

  test('the agent follows them as they come, flips them all at once, and starts with them', async () => {
    const { cluster } = f.mesh;
    const asked = async (): Promise<number> =>
      (await f.node.metrics()).get('cgroute_api_requests_total') ?? NaN;
    const before = await asked();
    const homes = ['ns-0', 'ns-500', 'ns-999'];
    await cluster.apply(
      ...names.map((name) => namespaceObject(name)),
      ...homes.map((namespace) => servingPod('web', { node: 'node-a', namespace })),
    );
    for (const namespace of homes) await f.node.kubelet.running(namespace, 'web');
    await f.isBack();
    for (const mode of ['ambient', 'none', 'KMESH']) {
      await cluster.kubectl('label', 'namespace', '--all', '--overwrite', `${MODE}=${mode}`);
      await f.isBack();
    }
    // Two watches tell of everything. What is written, on the pods, is their annotations and Events.
    const pods = f.node.kubelet.pods().length;
    const requests = (await asked()) - before;
    assert.ok(requests <= pods * 12, `${requests} requests for three thousand changes of labels`);
    await f.node.agent.stop();
    await f.start();
    assert.ok((await asked()) <= 4 + pods, String(await asked()));
    await f.isBack();
  });
});
