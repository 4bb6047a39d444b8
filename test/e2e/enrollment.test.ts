/** `enrollment: new-pods`: a change of a namespace's label concerns the pods that come after it. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { cgroute } from '../../deploy/stage/agent.ts';
import { ENROLLED, type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { MODE } from '../harness/label-names.ts';

describe('with enrollment: new-pods', () => {
  let node: TestNode;
  const pods: NodePod[] = [];
  before(async () => {
    node = await startNode('enrollment', { demo: {}, agent: false });
    await start();
    await add('one');
  });
  after(() => node?.[Symbol.asyncDispose]());

  async function start(enrollment = 'new-pods'): Promise<void> {
    const config = node.sandbox.file('config.yaml');
    writeFileSync(config, `enrollment: ${enrollment}\n`);
    await node.startAgent({ args: ['--config', config] });
  }
  async function add(name: string): Promise<void> {
    pods.push(await node.addPod({ name }));
    await node.apply();
  }
  async function label(labels: Readonly<Record<string, string>>): Promise<void> {
    node.manifest.namespace('demo', labels);
    await node.apply();
  }
  const travels = async (): Promise<string[]> => {
    const each: string[] = [];
    for (const { place } of pods) each.push(await node.travel(place));
    return each;
  };

  test('a pod stays out when its namespace is labelled, and one that comes after is in', async () => {
    await label(ENROLLED);
    await add('two');
    assert.deepEqual(await travels(), ['direct', 'redirected']);
  });

  test('a pod stays in when the label is removed, and one that comes after is out', async () => {
    await label({});
    await add('three');
    assert.deepEqual(await travels(), ['direct', 'redirected', 'direct']);
  });

  test('each keeps what it had when the label changes while no agent runs', async () => {
    await node.agent.kill9();
    node.manifest.namespace('demo', ENROLLED);
    pods.push(await node.addPod({ name: 'four' }));
    node.manifest.write();
    await start();
    assert.deepEqual(
      await travels(),
      ['direct', 'redirected', 'direct', 'redirected'],
      'the fourth was made after the change',
    );
    const { stdout } = await cgroute(node.sandbox, ['explain', 'demo/one']);
    assert.match(stdout, /when the pod was first seen, none, which counts \(enrollment: new-pods\)/);
  });

  test('also when it changes and agents come and go several times', async () => {
    for (const labels of [{}, ENROLLED, {}]) {
      await node.agent.stop();
      node.manifest.namespace('demo', labels);
      node.manifest.write();
      await start();
    }
    assert.deepEqual(await travels(), ['direct', 'redirected', 'direct', 'redirected']);
  });

  test('a new container of a pod has what the pod has', async () => {
    const [one, two] = pods;
    assert.ok(one && two);
    for (const pod of [one, two]) pod.startContainer();
    assert.deepEqual([await node.travel(one.place), await node.travel(two.place)], ['direct', 'redirected']);
  });

  test("a pod's own label takes effect at once, and what it had counts again without it", async () => {
    const [one, two] = pods;
    assert.ok(one && two);
    node.manifest.change(one.uid, { labels: { [MODE]: 'ambient' } });
    node.manifest.change(two.uid, { labels: { [MODE]: 'none' } });
    await node.apply();
    assert.deepEqual((await travels()).slice(0, 2), ['redirected', 'direct']);
    node.manifest.change(one.uid, { labels: {} });
    node.manifest.change(two.uid, { labels: {} });
    await node.apply();
    assert.deepEqual((await travels()).slice(0, 2), ['direct', 'redirected']);
  });

  test('with live again, the label that there is counts for all', async () => {
    await node.agent.stop();
    await start('live');
    assert.deepEqual(await travels(), ['direct', 'direct', 'direct', 'direct']);
    await label(ENROLLED);
    assert.deepEqual(await travels(), ['redirected', 'redirected', 'redirected', 'redirected']);
  });
});
