/** `startupTaint` on a node of the real API server: pods may come when the agent is ready, whatever else happens to the node. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';
import { eventually } from '../../deploy/stage/process.ts';
import { type ClusterNode, startClusterNode } from '../harness/cluster-node.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';

const KEY = 'cgroute.io/agent-not-ready';
const NODE = '/api/v1/nodes/node-a';
const POOL = { key: 'pool', value: 'gpu', effect: 'NoSchedule' };
const OURS = [
  { key: KEY, effect: 'NoExecute' },
  { key: KEY, value: 'true', effect: 'NoSchedule' },
];

interface Taint {
  readonly key: string;
  readonly effect: string;
}

describe('the taint of the start', { skip: KUBE_MISSING }, () => {
  let node: ClusterNode;

  before(async () => {
    node = await startClusterNode('startup-taint');
  });
  after(() => node?.[Symbol.asyncDispose]());
  beforeEach(async () => {
    await node.cluster.kubectl('delete', 'node', 'node-a', '--ignore-not-found');
  });

  const addNode = async (...taints: readonly object[]): Promise<void> =>
    node.cluster.apply({ apiVersion: 'v1', kind: 'Node', metadata: { name: 'node-a' }, spec: { taints } });
  /** But for the API server's own, of a node that nobody has called ready. */
  const taints = async (): Promise<string[]> => {
    const { spec } = await node.cluster.api.get<{ spec: { taints?: readonly Taint[] } }>(NODE);
    return (spec.taints ?? [])
      .filter(({ key }) => !key.startsWith('node.kubernetes.io/'))
      .map(({ key, effect }) => `${key}:${effect}`);
  };
  const off = (): Promise<unknown> =>
    eventually('it is off', async () => (await taints()).every((taint) => !taint.startsWith(KEY)));
  const start = () => node.startAgent({ config: `startupTaint: ${KEY}\nsweepSeconds: 1\n` });
  const source = async (): Promise<{ readonly state: string; readonly detail: string } | undefined> =>
    (await node.status()).sources.find(({ name }) => name === 'startup-taint');

  test('is taken off with all its effects when the agent is ready, and others stay', async () => {
    await addNode(...OURS, POOL);
    const agent = node.launchAgent({ config: `startupTaint: ${KEY}\n` });
    await agent.ready();
    await off();
    assert.deepEqual(await taints(), ['pool:NoSchedule']);
    assert.equal((await source())?.state, 'ok');
    await agent.stop();
  });

  test('stays where it is not asked for', async () => {
    await addNode(...OURS);
    const agent = await node.startAgent({ config: 'sweepSeconds: 1\n' });
    assert.equal(await source(), undefined);
    assert.equal((await taints()).length, 2);
    await agent.stop();
  });

  test('is taken off again when a cloud provider puts it back, with others that it adds', async () => {
    await addNode(...OURS);
    const agent = await start();
    await off();
    await node.cluster.api.patch(NODE, 'merge-patch+json', { spec: { taints: [...OURS, POOL] } });
    await off();
    assert.deepEqual(await taints(), ['pool:NoSchedule']);
    await agent.stop();
  });

  test('is taken off a node that is written to all the time', async () => {
    await addNode(...OURS);
    let isOver = false;
    const writer = (async () => {
      for (let n = 0; !isOver; n++)
        await node.cluster.api.patch(NODE, 'merge-patch+json', {
          metadata: { annotations: { n: String(n) } },
        });
    })();
    const agent = await start();
    await off();
    isOver = true;
    await writer;
    await agent.stop();
  });

  test('of a node that is not there is said, and the agent goes on; when it comes, it is taken off', async () => {
    const agent = await start();
    await eventually('it is said', async () => (await source())?.state === 'failed');
    assert.match(
      (await source())?.detail ?? '',
      /expected --node node-a to be the name of a node; got .*404/,
    );
    assert.equal((await node.http('readyz')).status, 200);
    await addNode(...OURS);
    await off();
    await eventually('and all is well', async () => (await source())?.state === 'ok');
    await agent.stop();
  });

  test('an agent that may not touch nodes says which right it lacks, and goes on', async () => {
    await addNode(...OURS);
    const account = await node.cluster.serviceAccount({
      name: 'few-rights',
      rules: [{ apiGroups: [''], resources: ['pods', 'namespaces'], verbs: ['list', 'watch'] }],
    });
    const agent = await node.startAgent({
      kubeconfig: account.kubeconfig(),
      config: `startupTaint: ${KEY}\nsweepSeconds: 1\nannotate: false\nevents: false\n`,
    });
    await eventually('it is said', async () => (await source())?.state === 'failed');
    assert.match(
      (await source())?.detail ?? '',
      /^the taint \S+ cannot be taken off node node-a: expected the rights to get and patch nodes, which the chart gives with config\.startupTaint; got .*403/,
    );
    assert.equal((await node.http('readyz')).status, 200);
    assert.equal((await taints()).length, 2);
    const errors = agent.log().filter(({ component }) => component === 'startup-taint');
    assert.equal(errors.length, 1, 'and does not repeat it');
    await agent.stop();
  });
});
