/** A pod whose connections find no room in the kernel's maps, as it has its share of it, and its Event in a real API server. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { servingPod, startMesh } from '../harness/kube-mesh.ts';
import { namespaceObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { MODE } from '../harness/label-names.ts';
import { freePart } from '../../native/layout/layouts.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { SOCK } from '../../deploy/stage/sock.ts';

const ROOM = 1024;
/** Of a map that nobody else is in, as what one has is free no more. */
const SHARE = Math.ceil(ROOM / (freePart.connections + 1));

interface EventObject {
  readonly reason: string;
  readonly message: string;
  readonly type: string;
  readonly involvedObject: { readonly name: string };
}

test('a pod that takes all that it may have is told in one Event, and another connects', {
  skip: KUBE_MISSING,
}, async () => {
  await using mesh = await startMesh('no-room');
  const node = await mesh.addNode({
    name: 'node-a',
    agent: { config: `sweepSeconds: 1\nmaxConnections: ${ROOM}\nmaxConnectionsPerPod: ${ROOM}\n` },
  });
  await mesh.cluster.apply(namespaceObject('shop', { [MODE]: 'ambient' }));
  await mesh.cluster.apply(servingPod('greedy', { node: 'node-a', namespace: 'shop' }));
  await mesh.cluster.apply(servingPod('quiet', { node: 'node-a', namespace: 'shop' }));
  const greedy = await node.kubelet.running('shop', 'greedy');
  const quiet = await node.kubelet.running('shop', 'quiet');
  for (const pod of [greedy, quiet])
    await eventually('it is redirected', async () => (await node.travel(pod.place())) === 'redirected');
  const events = async (): Promise<string[]> =>
    (await mesh.cluster.api.get<{ items: EventObject[] }>('/api/v1/namespaces/shop/events')).items
      .filter(({ reason }) => reason === 'NoRoom')
      .map(({ involvedObject, type, message }) => `${type} ${involvedObject.name}: ${message}`)
      .sort();

  const grabbing = mesh.sandbox.spawn({
    ...greedy.place(),
    cmd: SOCK,
    args: ['grab', '6000', mesh.server.ip, String(mesh.server.port)],
  });
  const { denied } = await grabbing.json<{ denied: number }>();
  assert.equal(denied, 6000 - 4096 - SHARE);
  const told = `Warning greedy: connections of this pod, or from the host to it, are refused (errorDenied): it has ${SHARE} open beside the node's first 4,096, which is what one pod may have while the node has ${SHARE} of the ${ROOM} for which there is room (maxConnections)`;
  await eventually('greedy is told', async () => (await events()).includes(told));
  for (let second = 0; second < 3; second++) {
    assert.equal(await node.travel(quiet.place()), 'redirected');
    await delay(1000);
  }
  assert.deepEqual(await events(), [told]);
  grabbing.end();
  await grabbing.exit;
  assert.equal(await node.travel(greedy.place()), 'redirected');
});
