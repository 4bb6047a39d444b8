/** The annotation and the Events on pods, with the agent and a real API server, and no more rights than it needs. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { pino } from 'pino';
import { kubeAccess } from '../../mapper/kube/kube-access.ts';
import { openKubeClient } from '../../mapper/kube/kube-client.ts';
import { podOf, type Pod } from '../../mapper/objects/pod.ts';
import { makePodAnnotator } from '../../mapper/reports/pod-annotator.ts';
import type { Agent } from '../../deploy/stage/agent.ts';
import type { NodeStatus } from '../../deploy/stage/node-status.ts';
import { type ClusterNode, startClusterNode } from '../harness/cluster-node.ts';
import type { ServiceAccount } from '../harness/kube-account.ts';
import { AGENT_RULES, type KubeAgentOptions } from '../harness/kube-agent.ts';
import { namespaceObject, podObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import type { Cluster } from '../harness/kube.ts';
import { startKubelet } from '../harness/kubelet.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { BYPASS, MODE, REDIRECTION } from '../harness/label-names.ts';

interface EventObject {
  readonly reason: string;
  readonly message: string;
  readonly type: string;
  readonly involvedObject: { readonly name: string; readonly uid: string };
  readonly source: { readonly component: string; readonly host: string };
}

describe('on pods of a real API server, the agent', { skip: KUBE_MISSING }, () => {
  let node: ClusterNode;
  let cluster: Cluster;
  let account: ServiceAccount;

  before(async () => {
    node = await startClusterNode('kube-annotation', { audit: true });
    ({ cluster } = node);
    account = await cluster.serviceAccount({ name: 'agent', rules: AGENT_RULES });
    await cluster.apply(
      namespaceObject('shop', { [MODE]: 'ambient' }),
      podObject('web', { node: 'node-a', namespace: 'shop' }),
    );
    await node.startPod('shop', 'web');
  });
  after(() => node?.[Symbol.asyncDispose]());

  const uidOf = async (name: string): Promise<string> =>
    (await cluster.pod('shop', name))?.metadata.uid ?? '';
  const annotationOf = async (name: string): Promise<string | undefined> =>
    (await cluster.pod('shop', name))?.metadata.annotations?.[REDIRECTION];
  const becomes = (name: string, value: string | undefined) =>
    eventually(`${name} has the annotation ${value}`, async () => (await annotationOf(name)) === value);
  const events = async (name: string): Promise<EventObject[]> =>
    (await cluster.api.get<{ items: EventObject[] }>('/api/v1/namespaces/shop/events')).items.filter(
      ({ involvedObject }) => involvedObject.name === name,
    );
  const reasons = async (name: string): Promise<string[]> =>
    (await events(name)).map(({ reason }) => reason).sort();
  const hasEvent = (name: string, reason: string) =>
    eventually(`${name} has an Event ${reason}`, async () => (await reasons(name)).includes(reason));
  const label = (what: string, ...labels: string[]) =>
    cluster.kubectl('-n', 'shop', 'label', '--overwrite', ...what.split('/'), ...labels);
  const patches = (): number =>
    cluster.requests().filter(({ verb, uri }) => verb === 'patch' && uri.includes('/status')).length;
  const start = (options: KubeAgentOptions = {}): Promise<Agent> =>
    node.startAgent({ kubeconfig: account.kubeconfig(), ...options });

  test('annotates who is redirected and takes it off who leaves, with an Event each', async () => {
    await using agent = await start();
    await becomes('web', 'enabled');
    await hasEvent('web', 'MeshEnrolled');
    await label('pod/web', `${MODE}=none`);
    await becomes('web', undefined);
    await hasEvent('web', 'MeshRemoved');
    const [event] = await events('web');
    assert.deepEqual(
      [event?.source, event?.type, event?.involvedObject.uid],
      [{ component: 'cgroute', host: 'node-a' }, 'Normal', await uidOf('web')],
    );
    await label('pod/web', `${MODE}-`);
    await becomes('web', 'enabled');
    assert.deepEqual(await reasons('web'), ['MeshEnrolled', 'MeshRemoved']);
    await agent.stop();
  });

  test('annotates a pod only when it has a cgroup', async () => {
    await using agent = await start();
    await cluster.apply(podObject('late', { node: 'node-a', namespace: 'shop' }));
    await delay(1000);
    assert.equal(await annotationOf('late'), undefined);
    await node.startPod('shop', 'late');
    await becomes('late', 'enabled');
    await eventually('its Event', async () => (await reasons('late')).length > 0);
    assert.deepEqual(await reasons('late'), ['MeshEnrolled']);
    await agent.stop();
  });

  test('keeps what the kubelet writes at the same time, and follows a pod that is made again', async () => {
    await using kubelet = await startKubelet(cluster, node.sandbox, { node: 'node-k', statusDelayMs: 20 });
    await using agent = await start({ node: 'node-k' });
    const live = podObject('live', { node: 'node-k', namespace: 'shop' });
    const uids = new Set<string>();
    for (let round = 0; round < 2; round++) {
      await cluster.apply(live);
      await kubelet.running('shop', 'live');
      await becomes('live', 'enabled');
      uids.add(await uidOf('live'));
      const { status } = (await cluster.pod('shop', 'live')) ?? {};
      assert.equal(status?.phase, 'Running');
      assert.ok(status?.podIP);
      await cluster.kubectl('-n', 'shop', 'delete', 'pod', 'live');
    }
    assert.equal(uids.size, 2);
    await eventually('an Event on each', async () => (await events('live')).length >= 2);
    const said = await events('live');
    assert.deepEqual(
      said.map(({ reason, involvedObject }) => `${reason} ${involvedObject.uid}`).sort(),
      [...uids].map((uid) => `MeshEnrolled ${uid}`).sort(),
    );
    await agent.stop();
  });

  test('writes nothing again when it starts again', async () => {
    const before = patches();
    assert.ok(before > 0);
    await using agent = await start();
    await delay(1000);
    assert.equal(patches(), before);
    assert.deepEqual(await reasons('web'), ['MeshEnrolled', 'MeshRemoved']);
    await agent.stop();
  });

  test('says what it refuses and does not understand', async () => {
    await using agent = await start({ config: 'bypass: {allowed: never}\n' });
    await label('pod/web', `${BYPASS}=enabled`);
    await hasEvent('web', 'BypassRefused');
    await label('pod/web', `${BYPASS}=sideways`, `${MODE}=abmient`);
    await eventually(
      'both labels are said',
      async () => (await reasons('web')).filter((reason) => reason === 'LabelNotUnderstood').length === 2,
    );
    assert.equal(await annotationOf('web'), 'enabled');
    await label('pod/web', `${BYPASS}-`, `${MODE}-`);
    await agent.stop();
  });

  test('does not write over an opt-out that it has not heard of', async () => {
    using client = openKubeClient({ access: kubeAccess({ env: { KUBECONFIG: account.kubeconfig() } }) });
    using annotator = makePodAnnotator({ client, logger: pino({ level: 'silent' }) });
    const enabled = podOf(await cluster.pod('shop', 'web')) as Pod;
    for (const wanted of [true, false]) {
      await cluster.kubectl('-n', 'shop', 'annotate', '--overwrite', 'pod', 'web', `${REDIRECTION}=disabled`);
      annotator.want(wanted ? { ...enabled, annotations: {} } : enabled, wanted);
      await annotator.settled([enabled.uid]);
      assert.equal(await annotationOf('web'), 'disabled', `wanted: ${wanted}`);
      annotator.forget(enabled.uid);
    }
    await cluster.kubectl('-n', 'shop', 'annotate', 'pod', 'web', `${REDIRECTION}-`);
  });

  test("leaves an owner's opt-out as it is, whatever happens to the pod", async () => {
    const hasOptedOut = ({ pods }: NodeStatus): boolean =>
      pods.some(({ name, reason }) => name === 'web' && reason === 'pod-opt-out');
    const annotate = (value: string) =>
      cluster.kubectl('-n', 'shop', 'annotate', '--overwrite', 'pod', 'web', value);
    await using agent = await start();
    await becomes('web', 'enabled');
    await annotate(`${REDIRECTION}=disabled`);
    await node.until('web has opted out', hasOptedOut);
    await label('pod/web', `${MODE}=ambient`);
    await label('pod/web', `${MODE}=none`);
    await label('pod/web', `${MODE}-`);
    await agent.stop();
    await using next = await start({ args: ['--on-exit', 'detach'] });
    await node.until('web has opted out', hasOptedOut);
    await next.stop();
    assert.equal(await annotationOf('web'), 'disabled');

    await using last = await start();
    await annotate(`${REDIRECTION}-`);
    await becomes('web', 'enabled');
    await last.stop();
  });

  test('goes on when it may not write, and writes when it may', async () => {
    await account.revoke();
    await account.grant();
    const role = `/apis/rbac.authorization.k8s.io/v1/clusterroles/test:kube-system:agent`;
    await cluster.api.patch(role, 'merge-patch+json', { rules: AGENT_RULES.slice(0, 1) });
    await using agent = await start();
    await label('pod/web', `${MODE}=none`);
    await eventually('it says that it may not', () =>
      agent
        .log()
        .some((line) => /annotation of pod shop\/web could not be written.*403/.test(JSON.stringify(line))),
    );
    assert.equal(await annotationOf('web'), 'enabled');
    await cluster.api.patch(role, 'merge-patch+json', { rules: AGENT_RULES });
    await becomes('web', undefined);
    await label('pod/web', `${MODE}-`);
    await becomes('web', 'enabled');
    await agent.stop();
  });

  test('takes all annotations off when it detaches', async () => {
    await using agent = await start({ args: ['--on-exit', 'detach'] });
    await becomes('web', 'enabled');
    await agent.stop();
    assert.deepEqual([await annotationOf('web'), await annotationOf('late')], [undefined, undefined]);
  });

  test('writes nothing when it is told not to', async () => {
    const before = patches();
    await using agent = await start({ config: 'annotate: false\nevents: false\n' });
    await delay(500);
    assert.equal(patches(), before);
    await agent.stop();
  });

  test("never annotates a namesake, and stops when the pod isn't there", async () => {
    using client = openKubeClient({ access: kubeAccess({ env: { KUBECONFIG: account.kubeconfig() } }) });
    const logged: string[] = [];
    using annotator = makePodAnnotator({
      client,
      logger: pino({}, { write: (line) => void logged.push(line) }),
      backoffMs: [50, 100],
    });
    const web = podOf(await cluster.pod('shop', 'web')) as Pod;
    const others = [
      { ...web, uid: '2c48913c-b29f-11e7-9350-020968147796' },
      { ...web, name: 'nobody', uid: '2c48913c-b29f-11e7-9350-020968147797' },
    ];
    const before = patches();
    for (const pod of others) annotator.want(pod, true);
    await annotator.settled(others.map(({ uid }) => uid));
    await delay(500);
    assert.equal(await annotationOf('web'), undefined);
    assert.deepEqual([patches() - before, logged], [2, []]);
    annotator.want(web, true);
    await annotator.settled([web.uid]);
    assert.equal(await annotationOf('web'), 'enabled');
  });
});
