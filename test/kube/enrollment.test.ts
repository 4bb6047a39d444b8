/** `enrollment: new-pods` and `existingConnections: reset` with a real API server and kubectl. */
import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';
import { after, before, describe, test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { type Mesh, type MeshNode, servingPod, startMesh } from '../harness/kube-mesh.ts';
import { type PodSpec, namespaceObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import type { PodOnNode } from '../harness/kubelet-view.ts';
import type { NodeStatus } from '../../deploy/stage/node-status.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { type Connected, SOCK } from '../../deploy/stage/sock.ts';
import { MODE, REDIRECTION } from '../harness/label-names.ts';

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
  const label = (mode: string): Promise<void> =>
    mesh.cluster.apply(namespaceObject('shop', mode === '' ? {} : { [MODE]: mode }));
  async function run(name: string): Promise<PodOnNode> {
    await mesh.cluster.apply(servingPod(name, { node: 'node-a', namespace: 'shop' }));
    return node.kubelet.running('shop', name);
  }
  const reasonOf = async (name: string): Promise<string | undefined> => {
    const { pods } = await node.until(`${name} is known`, ({ pods: known }) =>
      known.some((pod) => pod.name === name),
    );
    return pods.find((pod) => pod.name === name)?.reason;
  };
  const isAnnotated = async (name: string): Promise<boolean> =>
    (await mesh.cluster.pod('shop', name))?.metadata.annotations?.[REDIRECTION] === 'enabled';

  /** All have these reasons, and keep them. One of the two watches may be behind the other for a while. */
  async function assertReasons(expected: ReadonlyMap<string, string>): Promise<void> {
    let reasons: (readonly [string, string | undefined])[] = [];
    const see = ({ pods }: NodeStatus): boolean => {
      reasons = [...expected.keys()].map((name) => [name, pods.find((pod) => pod.name === name)?.reason]);
      return isDeepStrictEqual(reasons, [...expected]);
    };
    await node.until('all are as expected', see).catch(() => assert.deepEqual(reasons, [...expected]));
    await label('kmesh');
    await delay(500);
    see(await node.status());
    assert.deepEqual(reasons, [...expected], 'another label later changes none of them');
    await label('none');
  }
  const make = (name: string): Promise<void> =>
    mesh.cluster.apply(servingPod(name, { node: 'node-a', namespace: 'shop', labels: { runtime: 'none' } }));
  const clear = (): Promise<unknown> =>
    mesh.cluster.kubectl('-n', 'shop', 'delete', 'pod', '--all', '--grace-period=0', '--force');
  /** A label that is removed has no time. */
  const MODES = ['ambient', '', 'ambient', 'none'];
  const ROUNDS = Array.from({ length: 50 }, (_, round) => ({
    name: `quick-${round}`,
    mode: MODES[round % 4] ?? '',
    before: MODES[(round + 3) % 4] ?? '',
  }));
  const reasonUnder = (mode: string): string => (mode === 'ambient' ? 'namespace-label' : 'not-enrolled');

  test('a pod that is made right after its namespace was labelled follows the label, fifty times', async () => {
    for (const { name, mode } of ROUNDS) {
      await label(mode);
      await make(name);
    }
    await assertReasons(new Map(ROUNDS.map(({ name, mode }) => [name, reasonUnder(mode)])));
    await clear();
  });

  test('a pod that is made right before its namespace is labelled keeps what was before, fifty times', async () => {
    for (const { name, mode } of ROUNDS) {
      await make(name);
      await label(mode);
    }
    await assertReasons(new Map(ROUNDS.map(({ name, before: had }) => [name, reasonUnder(had)])));
    await clear();
  });

  test('a pod that waits for its node longer than two seconds keeps what its namespace had when it was made', async () => {
    const waiting = servingPod('waiting', { node: 'node-a', namespace: 'shop', labels: { runtime: 'none' } });
    const { nodeName: _, ...spec } = waiting['spec'] as PodSpec;
    await mesh.cluster.apply({ ...waiting, spec });
    await delay(2500);
    await label('ambient');
    const binding = {
      apiVersion: 'v1',
      kind: 'Binding',
      metadata: { name: 'waiting' },
      target: { apiVersion: 'v1', kind: 'Node', name: 'node-a' },
    };
    await mesh.cluster.api.request('POST', '/api/v1/namespaces/shop/pods/waiting/binding', binding);
    assert.equal(await reasonOf('waiting'), 'not-enrolled');
    await label('none');
    await clear();
  });

  test('pods keep what they had through labels, and through an agent that was away', async () => {
    const old = await run('old');
    await mesh.cluster.kubectl('label', 'namespace', 'shop', '--overwrite', `${MODE}=ambient`);
    const young = await run('young');
    await eventually('its annotation says so', () => isAnnotated('young'));
    assert.deepEqual(
      [await node.travel(old.place()), await node.travel(young.place())],
      ['direct', 'redirected'],
    );
    assert.equal(await isAnnotated('old'), false);
    await node.agent.stop();
    await mesh.cluster.kubectl('label', 'namespace', 'shop', `${MODE}-`);
    await node.startAgent({ config });
    assert.deepEqual(
      [await node.travel(old.place()), await node.travel(young.place())],
      ['direct', 'redirected'],
    );
    assert.deepEqual([await isAnnotated('old'), await isAnnotated('young')], [false, true]);
  });

  test("a pod's own label flips it at once, and resets what it had open", async () => {
    const old = await run('own');
    assert.equal(await reasonOf('own'), 'not-enrolled');
    const held = mesh.sandbox.spawn({
      ...old.place(),
      cmd: SOCK,
      args: ['connect', '--hold', mesh.server.ip, String(mesh.server.port)],
    });
    assert.ok((await held.json<Connected>()).ok);
    await mesh.cluster.kubectl('-n', 'shop', 'label', 'pod', 'own', `${MODE}=ambient`);
    // No connection until then: one that is open when the verdict changes is reset and counted like the held one.
    const resets = (): unknown[] =>
      node.agent
        .log()
        .filter(({ msg }) => /shop\/own changed: connections that it had open were reset/.test(msg ?? ''))
        .map(({ closed }) => closed);
    await eventually('the agent says that it is through', () => resets().length > 0);
    assert.deepEqual(resets(), [1]);
    assert.equal(await node.travel(old.place()), 'redirected');
    held.end();
    assert.equal((await held.json<{ alive: boolean }>()).alive, false);
  });

  test('connections that may not be reset are counted, and the pod has one Event that says so', async () => {
    const pod = await run('stuck');
    await node.agent.stop();
    await node.startAgent({
      config,
      start: (args) => ({
        cmd: 'setpriv',
        args: [
          '--inh-caps=-sys_admin',
          '--bounding-set=-sys_admin',
          process.execPath,
          'dist/cgroute.mjs',
          ...args,
        ],
      }),
    });
    const held = mesh.sandbox.spawn({
      ...pod.place(),
      cmd: SOCK,
      args: ['connect', '--hold', mesh.server.ip, String(mesh.server.port)],
    });
    assert.ok((await held.json<Connected>()).ok);
    const failures = async (): Promise<number> =>
      (await node.metrics()).get('cgroute_connection_reset_failures_total{errno="EPERM"}') ?? NaN;
    assert.equal(await failures(), 0);
    for (const mode of ['ambient', 'none']) {
      const before = await failures();
      await mesh.cluster.kubectl('-n', 'shop', 'label', 'pod', 'stuck', '--overwrite', `${MODE}=${mode}`);
      await eventually('it is counted', async () => (await failures()) > before);
    }
    const events = async (): Promise<{ message: string; type: string }[]> => {
      const { items } = await mesh.cluster.api.get<{
        items: { reason: string; message: string; type: string; involvedObject: { name: string } }[];
      }>('/api/v1/namespaces/shop/events');
      return items.filter(
        ({ reason, involvedObject }) => reason === 'ConnectionsNotReset' && involvedObject.name === 'stuck',
      );
    };
    await eventually('it is said', async () => (await events()).length > 0);
    await delay(500);
    const [event, ...more] = await events();
    assert.deepEqual([more, event?.type], [[], 'Warning']);
    assert.match(
      event?.message ?? '',
      /^connections of this pod that were open when its verdict changed could not all be reset, and go on as they were: setns\(\) .*EPERM/,
    );
    held.end();
    assert.equal((await held.json<{ alive: boolean }>()).alive, true);
  });
});
