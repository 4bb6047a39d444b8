/** A pod whose connections were refused before any agent knew it, and its Event in a real API server. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FOR_NOW } from '../harness/for-now.ts';
import { servingPod, startMesh } from '../harness/kube-mesh.ts';
import { namespaceObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { MODE } from '../harness/label-names.ts';
import { eventually } from '../../deploy/stage/process.ts';

interface EventObject {
  readonly reason: string;
  readonly message: string;
  readonly type: string;
  readonly involvedObject: { readonly name: string };
}

test('a pod that is made while no agent runs is refused, and told so once an agent knows it', {
  skip: KUBE_MISSING,
}, async () => {
  await using mesh = await startMesh('unknown');
  const node = await mesh.addNode({ name: 'node-a' });
  await mesh.cluster.apply(namespaceObject('shop', { [MODE]: 'ambient' }));
  await mesh.cluster.apply(servingPod('known', { node: 'node-a', namespace: 'shop' }));
  const known = await node.kubelet.running('shop', 'known');
  await eventually('it is redirected', async () => (await node.travel(known.place())) === 'redirected');
  await node.agent.stop();

  for (const [namespace, name] of [
    ['shop', 'late'],
    ['default', 'outside'],
  ] as const) {
    await mesh.cluster.apply(servingPod(name, { node: 'node-a', namespace }));
    const pod = await node.kubelet.running(namespace, name);
    assert.equal(await node.travel(pod.place()), FOR_NOW);
  }
  assert.equal(await node.travel(known.place()), 'redirected');
  await node.startAgent();
  for (const [namespace, name, now] of [
    ['shop', 'late', 'redirected'],
    ['default', 'outside', 'direct'],
  ] as const) {
    const pod = await node.kubelet.running(namespace, name);
    assert.equal(await node.travel(pod.place()), now);
    await eventually(`${name} is told`, async () =>
      (
        await mesh.cluster.api.get<{ items: EventObject[] }>(`/api/v1/namespaces/${namespace}/events`)
      ).items.some(
        ({ reason, type, message, involvedObject }) =>
          reason === 'KnownLate' &&
          type === 'Warning' &&
          involvedObject.name === name &&
          message ===
            'nobody knew this pod until now, and 2 connections of such pods were refused meanwhile (unknownPods: deny)',
      ),
    );
  }
});
