/** `explain`, asked of an agent that runs. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import type { Explanation } from '../../mapper/cli/explain.ts';
import { cgroute } from '../../deploy/stage/agent.ts';
import { ENROLLED, type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { BYPASS, MODE } from '../harness/label-names.ts';

describe('explain', () => {
  let node: TestNode;
  let pod: NodePod;
  const ask = async (name: string): Promise<Explanation> => {
    const { code, stdout, stderr } = await cgroute(node.sandbox, ['explain', name, '-o', 'json']);
    assert.equal(code, 0, stderr);
    return JSON.parse(stdout) as Explanation;
  };
  /** The one sentence that it ends with. */
  const refused = async (
    ...args: string[]
  ): Promise<{ readonly code: number | null; readonly sentence: string }> => {
    const { code, stdout, stderr } = await cgroute(node.sandbox, ['explain', ...args]);
    assert.equal(stdout, '');
    assert.equal(stderr.trim().split('\n').length, 1, stderr);
    return { code, sentence: stderr.trim() };
  };

  before(async () => {
    node = await startNode('explain');
    node.manifest.namespace('plain');
    node.manifest.namespace('other', ENROLLED);
    pod = await node.addPod({ name: 'client', labels: { [MODE]: 'ambiant' } });
    await node.addPod({ name: 'twin', namespace: 'plain' });
    await node.addPod({ name: 'twin', namespace: 'other', host: await node.network.addHost('twin2') });
    await node.addPod({ name: 'bypassed', labels: { [BYPASS]: 'enabled' } });
    await node.addPod({ name: 'waiting', running: false });
    await node.apply();
  });
  after(() => node?.[Symbol.asyncDispose]());

  test('a pod in the mesh: its rules with what they saw, its notes, its connections in words', async () => {
    assert.equal(await node.travel(pod.place), 'redirected');
    const of = await ask('demo/client');
    assert.deepEqual(
      { verdict: of.verdict, reason: of.reason, uid: of.uid, ips: of.ips },
      { verdict: 'in', reason: 'namespace-label', uid: pod.uid, ips: [pod.host.ip4] },
    );
    assert.deepEqual(
      of.rules.map(({ rule, outcome }) => `${rule} ${outcome}`),
      [
        '1 no',
        '2 no',
        '3 no',
        '4 no',
        '5 no',
        '6 no',
        '7 no',
        '8 no',
        '9 no',
        '10 decides',
        '11 no',
        '12 no',
      ],
    );
    assert.equal(
      of.rules.find(({ rule }) => rule === 10)?.saw,
      'namespace label istio.io/dataplane-mode = "ambient"',
    );
    assert.match(of.notes.join('\n'), /^pod demo\/client has istio\.io\/dataplane-mode="ambiant"/);
    assert.deepEqual(of.proxy, {
      address: node.proxyPod.host.ip4,
      address6: null,
      pod: 'mesh/ztunnel',
      ready: true,
      unready: null,
      notListening: [],
      trouble: null,
    });
    assert.ok(of.cgroups.some(({ id, path }) => id === String(pod.cgroup.id) && path === pod.cgroup.path));
    assert.deepEqual(of.connections, [
      { branch: 'redirected', count: 1, words: "opened by it, went to the proxy's outbound port" },
    ]);
  });

  test('as a table and as YAML', async () => {
    const [table, yaml] = [
      await cgroute(node.sandbox, ['explain', 'client']),
      await cgroute(node.sandbox, ['explain', 'client', '-o', 'yaml']),
    ];
    assert.match(table.stdout, /^verdict +in, because of namespace-label$/m);
    assert.match(table.stdout, /^10 +DECIDES +the namespace's label names a mesh mode/m);
    assert.match(table.stdout, /went to the proxy's outbound port$/m);
    assert.match(yaml.stdout, /^reason: namespace-label$/m);
  });

  test('a bypassed pod is told of mutual TLS, and one that does not run of that', async () => {
    assert.match((await ask('bypassed')).notes.join('\n'), /mutual TLS/);
    const { cgroups, notes, verdict } = await ask('demo/waiting');
    assert.deepEqual({ cgroups, verdict }, { cgroups: [], verdict: 'in' });
    assert.match(notes.join('\n'), /no cgroup of it has been found/);
  });

  test("a name that is nobody's, several pods' or none at all is refused in one sentence", async () => {
    assert.deepEqual(await refused('demo/nobody'), {
      code: 1,
      sentence: 'cgroute: no pod of this node is named demo/nobody: `cgroute status` lists those that are',
    });
    assert.deepEqual(await refused('twin'), {
      code: 1,
      sentence: 'cgroute: several pods of this node are named twin: expected one of other/twin, plain/twin',
    });
    assert.equal((await ask('plain/twin')).reason, 'not-enrolled');
    assert.deepEqual(await refused('a/b/c'), {
      code: 2,
      sentence: 'cgroute: cgroute explain expects a pod as NAMESPACE/NAME or NAME, got "a/b/c"',
    });
    assert.equal((await refused()).code, 2);
    assert.equal((await refused('one', 'two')).code, 2);
  });

  test('without an agent it says so', async () => {
    await node.agent.kill9();
    const { code, sentence } = await refused('demo/client');
    assert.equal(code, 1);
    assert.match(sentence, /no agent runs with --bpffs-root/);
  });
});
