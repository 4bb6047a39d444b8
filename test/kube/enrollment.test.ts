/** `enrollment: new-pods` and `existingConnections: reset` with a real API server and kubectl. */
import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';
import { after, before, describe, test } from 'node:test';
import { REDIRECTION } from '../../mapper/pod-annotator.ts';
import { type Mesh, type MeshNode, servingPod, startMesh } from '../harness/kube-mesh.ts';
import { namespaceObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import type { PodOnNode } from '../harness/kubelet-view.ts';
import { eventually } from '../harness/process.ts';
import { type Connected, SOCK } from '../harness/sock.ts';

const MODE = 'istio.io/dataplane-mode';

describe('with new-pods and reset, on a node of a real API server', { skip: KUBE_MISSING }, () => {
  let mesh: Mesh;
  let node: MeshNode;
  const config = 'enrollment: new-pods\nexistingConnections: reset\n';

  before(async () => {
    mesh = await startMesh('kube-new-pods');
    node = await mesh.addNode({ name: 'node-a', agent: { config } });
    await label('none');
  });
  after(() => mesh?.[Symbol.asyncDispose]());

  /** Not by kubectl, whose start would give the watches time. */
  const label = (mode: string): Promise<void> => mesh.cluster.apply(namespaceObject('shop', { [MODE]: mode }));
  async function run(name: string): Promise<PodOnNode> {
    await mesh.cluster.apply(servingPod(name, { node: 'node-a', namespace: 'shop' }));
    return node.kubelet.running('shop', name);
  }
  const reasonOf = async (name: string): Promise<string | undefined> => {
    const { pods } = await node.until(`${name} is known`, ({ pods: known }) => known.some((pod) => pod.name === name));
    return pods.find((pod) => pod.name === name)?.reason;
  };
  const isAnnotated = async (name: string): Promise<boolean> => (await mesh.cluster.pod('shop', name))?.metadata.annotations?.[REDIRECTION] === 'enabled';

  // The two watches have no common order: a pod that is made in the same moment as the label may be told of first, and keeps the old mode.
  test('a pod that is made after its namespace was labelled follows the label, again and again', async () => {
    const expected: string[] = [];
    const names: string[] = [];
    for (let round = 0; round < 10; round++) {
      const mode = round % 2 === 0 ? 'ambient' : 'none';
      await label(mode);
      await delay(500);
      names.push(`quick-${round}`);
      expected.push(mode === 'ambient' ? 'namespace-label' : 'not-enrolled');
      await mesh.cluster.apply(servingPod(`quick-${round}`, { node: 'node-a', namespace: 'shop' }));
    }
    const reasons: (string | undefined)[] = [];
    for (const name of names) reasons.push(await reasonOf(name));
    assert.deepEqual(reasons, expected);
    await mesh.cluster.kubectl('-n', 'shop', 'delete', 'pod', '--all', '--grace-period=0', '--force');
  });

  test('pods keep what they had through labels, and through an agent that was away', async () => {
    const old = await run('old');
    await mesh.cluster.kubectl('label', 'namespace', 'shop', '--overwrite', `${MODE}=ambient`);
    const young = await run('young');
    await eventually('its annotation says so', () => isAnnotated('young'));
    assert.deepEqual([await node.travel(old.place()), await node.travel(young.place())], ['direct', 'redirected']);
    assert.equal(await isAnnotated('old'), false);
    await node.agent.stop();
    await mesh.cluster.kubectl('label', 'namespace', 'shop', `${MODE}-`);
    await node.startAgent({ config });
    assert.deepEqual([await node.travel(old.place()), await node.travel(young.place())], ['direct', 'redirected']);
    assert.deepEqual([await isAnnotated('old'), await isAnnotated('young')], [false, true]);
  });

  test("a pod's own label flips it at once, and resets what it had open", async () => {
    const old = await run('own');
    const held = mesh.sandbox.spawn({ ...old.place(), cmd: SOCK, args: ['connect', '--hold', mesh.server.ip, String(mesh.server.port)] });
    assert.ok((await held.json<Connected>()).ok);
    await mesh.cluster.kubectl('-n', 'shop', 'label', 'pod', 'own', `${MODE}=ambient`);
    await eventually('it is in the mesh', async () => (await node.travel(old.place())) === 'redirected');
    await eventually('the agent says that it is through', () => node.agent.log().some(({ msg, closed }) => /shop\/own changed: connections that it had open were reset/.test(msg ?? '') && closed === 1));
    held.end();
    assert.equal((await held.json<{ alive: boolean }>()).alive, false);
  });
});
