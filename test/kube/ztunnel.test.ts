/** The node's ztunnel pod, followed through everything that happens to a DaemonSet's pod, under connections all the while. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { dial, type Totals } from '../harness/dialler.ts';
import { setTimeout as delay } from 'node:timers/promises';
import { type Mesh, type MeshNode, servingPod, startMesh } from '../harness/kube-mesh.ts';
import { namespaceObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import type { PodOnNode } from '../harness/kubelet-view.ts';
import { MODE } from '../harness/label-names.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { agree } from './agreement.ts';
import { FOR_NOW } from '../harness/for-now.ts';

const NAMESPACE = 'istio-system';

describe("the node's ztunnel is followed", { skip: KUBE_MISSING }, () => {
  let mesh: Mesh;
  let a: MeshNode;
  let b: MeshNode;
  const clients = new Map<MeshNode, PodOnNode>();

  before(async () => {
    mesh = await startMesh('ztunnel');
    a = await mesh.addNode({ name: 'node-a', range: [10, 99], statusDelayMs: 50 });
    b = await mesh.addNode({ name: 'node-b', range: [100, 199], statusDelayMs: 50 });
    await mesh.cluster.apply(namespaceObject('shop', { [MODE]: 'ambient' }));
    for (const node of [a, b]) {
      await mesh.cluster.apply(servingPod(`client-${node.name}`, { node: node.name, namespace: 'shop' }));
      clients.set(node, await node.kubelet.running('shop', `client-${node.name}`));
      await agree(mesh, node);
    }
  });
  after(() => mesh?.[Symbol.asyncDispose]());

  const clientOf = (node: MeshNode): PodOnNode => clients.get(node) as PodOnNode;
  const ipOf = (pod: PodOnNode): string => pod.worker.network?.ip4 ?? 'none';
  const travel = (node: MeshNode): Promise<string> => node.travel(clientOf(node).place());
  const isProxy = (node: MeshNode, pod: PodOnNode) =>
    node.until(
      `${pod.name} is the proxy`,
      ({ proxy }) => proxy.address === ipOf(pod) && proxy.pod === `${NAMESPACE}/${pod.name}`,
    );
  /** Creation times have seconds, and of two pods the newest counts. */
  const aSecondLater = () => delay(1100);
  const remove = async (node: MeshNode, name: string): Promise<void> => {
    await mesh.cluster.kubectl('-n', NAMESPACE, 'delete', 'pod', name);
    await eventually(`${name} is gone`, () => node.kubelet.pods().every((pod) => pod.name !== name));
  };

  /** Connections of a node's client while something happens, each from a new socket; none may pass the proxy by. */
  async function connecting(node: MeshNode, during: () => Promise<void>): Promise<Totals> {
    const before = mesh.server.listener.accepted().length;
    const client = clientOf(node);
    const loop = dial(mesh.sandbox, client.place(), mesh.server, 2000, 60);
    await delay(200);
    await during();
    await delay(200);
    const totals = await loop.end();
    assert.ok(totals.server > 10, JSON.stringify(totals));
    const peers = mesh.server.listener
      .accepted()
      .slice(before)
      .map(({ peer }) => peer.replace(/^\[::ffff:([\d.]+)\]/, '$1').replace(/:\d+$/, ''));
    assert.equal(
      peers.filter((peer) => peer === ipOf(client)).length,
      0,
      'connections that were not redirected',
    );
    return totals;
  }

  test('through a rolling update, without a connection lost', async () => {
    for (const node of [a, b]) {
      const { failed, errors } = await connecting(node, async () => {
        await aSecondLater();
        const next = await node.startProxy(`ztunnel-${node.name}-2`);
        await isProxy(node, next);
        await remove(node, `ztunnel-${node.name}`);
        await isProxy(node, next);
      });
      assert.equal(failed, 0, JSON.stringify(errors));
      assert.equal(await travel(node), 'redirected');
      await agree(mesh, node);
    }
  });

  test("only in its namespace: anybody's pod with its label is none, however new and ready", async () => {
    for (const namespace of ['shop', 'default']) {
      await mesh.cluster.apply(
        servingPod('impostor', { node: 'node-a', namespace, labels: { app: 'ztunnel' } }),
      );
      const impostor = await a.kubelet.running(namespace, 'impostor');
      const { proxy, pods } = await a.until('the impostor is known', (status) =>
        status.pods.some(({ uid, cgroups }) => uid === impostor.uid && cgroups.length > 0),
      );
      assert.match(proxy.pod ?? 'none', /^istio-system\//);
      assert.equal(
        pods.find(({ uid }) => uid === impostor.uid)?.reason,
        namespace === 'shop' ? 'namespace-label' : 'not-enrolled',
      );
      assert.equal(await travel(a), 'redirected');
      await mesh.cluster.kubectl('-n', namespace, 'delete', 'pod', 'impostor');
      await eventually('it is gone', () => a.kubelet.pods().every(({ name }) => name !== 'impostor'));
    }
    await agree(mesh, a);
  });

  test('only of its own node, and while it runs, be it not ready as after a restart of the kubelet', async () => {
    const [, second] = [a, b].map((node) =>
      node.kubelet.pods().find(({ namespace }) => namespace === NAMESPACE),
    ) as [PodOnNode, PodOnNode];
    second.setReady(false);
    const { proxy } = await b.until('it is known not to be ready', (status) => status.proxy.unready !== null);
    assert.deepEqual([proxy.address, proxy.ready], [ipOf(second), false]);
    assert.match(proxy.unready ?? '', /^Ready=False since \d{4}-\d\d-\d\dT[\d:]{8}Z$/);
    assert.deepEqual([await travel(a), await travel(b)], ['redirected', 'redirected']);
    second.setReady(true);
    await isProxy(b, second);
    assert.deepEqual([await travel(a), await travel(b)], ['redirected', 'redirected']);
  });

  test('through restarts of its container, and nothing goes around it', async () => {
    const [proxy] = a.kubelet.pods().filter(({ namespace }) => namespace === NAMESPACE) as [PodOnNode];
    const { total, failed } = await connecting(a, async () => {
      const before = proxy.place().cgroup?.absolute;
      await proxy.restart('main');
      assert.notEqual(proxy.place().cgroup?.absolute, before, 'another container has another cgroup');
      await a.until('it is not ready', ({ proxy: { ready } }) => !ready);
      await a.probe(proxy);
      await isProxy(a, proxy);
      assert.equal(await travel(a), 'redirected');
    });
    assert.ok(failed > 0 && failed < total, `${failed} of ${total}`);
    await agree(mesh, a);
  });

  test('when it is made again under its name, and while there is none', async () => {
    const { name } = a.kubelet.pods().find(({ namespace }) => namespace === NAMESPACE) as PodOnNode;
    await remove(a, name);
    await a.until('no proxy is known', ({ proxy }) => proxy.address === null);
    assert.equal(await travel(a), FOR_NOW);
    await isProxy(a, await a.startProxy(name));
    assert.equal(await travel(a), 'redirected');
    await agree(mesh, a);
  });

  test('of two that are ready, the newest; of two of which one is going, the other', async () => {
    const { name } = a.kubelet.pods().find(({ namespace }) => namespace === NAMESPACE) as PodOnNode;
    await aSecondLater();
    const newer = await a.startProxy('ztunnel-newer');
    await isProxy(a, newer);
    const path = `/api/v1/namespaces/${NAMESPACE}/pods/ztunnel-newer`;
    await mesh.cluster.api.patch(path, 'merge-patch+json', {
      metadata: { finalizers: ['test.invalid/hold'] },
    });
    const { failed } = await connecting(a, async () => {
      await mesh.cluster.kubectl(
        '-n',
        NAMESPACE,
        'delete',
        'pod',
        'ztunnel-newer',
        '--wait=false',
        '--grace-period=1',
      );
      await a.until('the older one is the proxy', ({ proxy }) => proxy.pod === `${NAMESPACE}/${name}`);
    });
    await mesh.cluster.api.patch(path, 'merge-patch+json', { metadata: { finalizers: null } });
    assert.equal(await travel(a), 'redirected');
    // Its containers and the agent are told at the same moment.
    assert.ok(failed <= 20, `${failed} connections failed`);
    await eventually('it is gone', () => a.kubelet.pods().every((pod) => pod.name !== 'ztunnel-newer'));
    await agree(mesh, a);
  });

  test('by an agent that is killed and started again', async () => {
    const { failed, errors } = await connecting(a, async () => {
      await a.agent.kill9();
      await aSecondLater();
      const next = await a.startProxy('ztunnel-after');
      await a.startAgent();
      await isProxy(a, next);
    });
    assert.equal(failed, 0, JSON.stringify(errors));
    await agree(mesh, a);
    assert.deepEqual([...a.kubelet.problems, ...b.kubelet.problems], []);
  });
});
