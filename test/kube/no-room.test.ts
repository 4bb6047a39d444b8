/** A pod whose connections find no room in the kernel's maps, and its Event in a real API server. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { servingPod, startMesh } from '../harness/kube-mesh.ts';
import { namespaceObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { MODE } from '../harness/label-names.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { SOCK } from '../../deploy/stage/sock.ts';

interface EventObject {
  readonly reason: string;
  readonly message: string;
  readonly type: string;
  readonly involvedObject: { readonly name: string };
}

test('a full map is told in one Event on each pod that it keeps from connecting', {
  skip: KUBE_MISSING,
}, async () => {
  await using mesh = await startMesh('no-room');
  const node = await mesh.addNode({
    name: 'node-a',
    agent: { config: 'sweepSeconds: 1\nmaxConnections: 1024\nmaxConnectionsPerPod: 1024\n' },
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
  assert.equal(denied, 6000 - 4096 - 1024);
  const told = (name: string): string =>
    `Warning ${name}: connections of this pod, or from the host to it, are refused (errorDenied): the node's map of open connections is full, which has room for 1024 (maxConnections)`;
  await eventually('greedy is told', async () => (await events()).includes(told('greedy')));
  for (let second = 0; second < 3; second++) {
    assert.equal(await node.travel(quiet.place()), 'EPERM');
    await delay(1000);
  }
  await eventually('quiet is told', async () => (await events()).includes(told('quiet')));
  assert.deepEqual(await events(), [told('greedy'), told('quiet')]);
  grabbing.end();
  await grabbing.exit;
  assert.equal(await node.travel(quiet.place()), 'redirected');
});
