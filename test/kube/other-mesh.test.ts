/** Pods that another mesh redirects, as it says by an annotation of its own, with a real API server that keeps account of writers. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';
import { cgroute } from '../../deploy/stage/agent.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { type ClusterNode, startClusterNode } from '../harness/cluster-node.ts';
import { namespaceObject, podObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import type { Cluster } from '../harness/kube.ts';
import { KMESH_REDIRECTION, MODE, REDIRECTION } from '../harness/label-names.ts';

describe('a pod of another mesh', { skip: KUBE_MISSING }, () => {
  let node: ClusterNode;
  let cluster: Cluster;
  let pods = 0;
  /** Of the pod that the test is about: new for each. */
  let name = '';

  before(async () => {
    node = await startClusterNode('kube-other-mesh');
    ({ cluster } = node);
    await cluster.apply(namespaceObject('shop', { [MODE]: 'ambient' }));
  });
  after(() => node?.[Symbol.asyncDispose]());
  beforeEach(async () => {
    name = `pod-${++pods}`;
    await cluster.apply(podObject(name, { node: 'node-a', namespace: 'shop' }));
    await node.startPod('shop', name);
  });

  const path = (): string => `/api/v1/namespaces/shop/pods/${name}`;
  /** As istio-cni and Kmesh write it. */
  const annotate = (as: string, key: string, value: string | null) =>
    cluster.api.patch(`${path()}/status?fieldManager=${as}`, 'merge-patch+json', {
      metadata: { annotations: { [key]: value } },
    });
  /** As controllers of a newer kind do, which also own what is so already. */
  const apply = (as: string, annotations: Readonly<Record<string, string>>) =>
    cluster.api.patch(`${path()}?fieldManager=${as}&force=true`, 'apply-patch+yaml', {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name, annotations },
    });
  const annotation = async (): Promise<string | undefined> =>
    (await cluster.pod('shop', name))?.metadata.annotations?.[REDIRECTION];
  const becomes = (reason: string) =>
    node.until(`${name} is ${reason}`, (status) =>
      status.pods.some((pod) => pod.name === name && pod.reason === reason),
    );
  const isAnnotated = (value: string | undefined) =>
    eventually(`${name} has the annotation ${value}`, async () => (await annotation()) === value);
  const hasEvent = (reason: string, message: RegExp) =>
    eventually(`${name} has an Event ${reason}`, async () => {
      const { items } = await cluster.api.get<{
        items: { reason: string; message: string; involvedObject: { name: string } }[];
      }>('/api/v1/namespaces/shop/events');
      return items.some(
        (event) =>
          event.involvedObject.name === name && event.reason === reason && message.test(event.message),
      );
    });

  test('that was there first is left alone, said, and enrolled as soon as that has gone', async () => {
    await annotate('istio-cni', REDIRECTION, 'enabled');
    await using agent = await node.startAgent();
    await becomes('other-mesh');
    await hasEvent('OtherMesh', /"enabled", written by istio-cni: another mesh redirects it/);
    const { stdout } = await cgroute(node.sandbox, ['status']);
    assert.match(stdout, new RegExp(`^OTHER MESH +its annotation is on 1 of the pods.*: shop/${name}$`, 'm'));
    const explained = await cgroute(node.sandbox, ['explain', `shop/${name}`]);
    assert.match(explained.stdout, /^7 +DECIDES .*redirection = "enabled" by istio-cni/m);

    // It was never in, so nobody is told that it has left.
    assert.equal(await annotation(), 'enabled');
    await annotate('istio-cni', REDIRECTION, null);
    await becomes('namespace-label');
    await isAnnotated('enabled');
    await agent.stop();
  });

  test('that comes later takes it, and gives it back', async () => {
    await using agent = await node.startAgent();
    await isAnnotated('enabled');
    await apply('other-cni', { [REDIRECTION]: 'enabled' });
    await becomes('other-mesh');
    await cluster.kubectl('-n', 'shop', 'label', 'pod', name, `${MODE}=ambient`);
    await agent.stop();
    await using next = await node.startAgent();
    await becomes('other-mesh');
    assert.equal(await annotation(), 'enabled');
    // It owns the annotation no more, and cgroute still does.
    await apply('other-cni', {});
    await becomes('pod-label');
    assert.equal(await annotation(), 'enabled');

    await annotate('istio-cni', REDIRECTION, 'pending');
    await becomes('other-mesh');
    await annotate('istio-cni', REDIRECTION, 'enabled');
    await hasEvent('OtherMesh', /"enabled", written by istio-cni/);
    await annotate('istio-cni', REDIRECTION, null);
    await becomes('pod-label');
    await isAnnotated('enabled');
    await next.stop();
  });

  test('may be of Kmesh, by its own annotation, and loses that of cgroute', async () => {
    await using agent = await node.startAgent();
    await isAnnotated('enabled');
    await annotate('kmesh-daemon', KMESH_REDIRECTION, 'enabled');
    await becomes('other-mesh');
    await isAnnotated(undefined);
    await hasEvent('OtherMesh', /kmesh\.net\/redirection="enabled", written by kmesh-daemon/);
    await annotate('kmesh-daemon', KMESH_REDIRECTION, null);
    await becomes('namespace-label');
    await isAnnotated('enabled');
    await agent.stop();
  });

  test('is taken over where that is configured, with the annotation', async () => {
    await annotate('istio-cni', REDIRECTION, 'enabled');
    await annotate('kmesh-daemon', KMESH_REDIRECTION, 'enabled');
    await using agent = await node.startAgent({ config: 'takeOver: true' });
    await becomes('namespace-label');
    assert.equal(await annotation(), 'enabled');
    await cluster.kubectl('-n', 'shop', 'label', 'pod', name, `${MODE}=none`);
    await isAnnotated(undefined);
    await agent.stop();
  });

  test('is none that an earlier cgroute has annotated, or of whose writers nobody knows any more', async () => {
    await annotate('cgroute', REDIRECTION, 'enabled');
    await using agent = await node.startAgent();
    await becomes('namespace-label');
    // Nor one whose account of writers somebody has emptied.
    await cluster.api.patch(path(), 'merge-patch+json', { metadata: { managedFields: [{}] } });
    await apply('somebody', { 'example.com/else': 'x' });
    await cluster.kubectl('-n', 'shop', 'label', 'pod', name, `${MODE}=ambient`);
    await becomes('pod-label');
    const { managedFields = [] } = (await cluster.pod('shop', name))?.metadata ?? {};
    assert.ok(
      managedFields.some(
        ({ manager, fieldsV1 }) =>
          manager === 'before-first-apply' && JSON.stringify(fieldsV1).includes(REDIRECTION),
      ),
      JSON.stringify(managedFields),
    );
    await agent.stop();
  });
});
