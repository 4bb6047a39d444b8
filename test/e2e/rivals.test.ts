/** Two agents on one part of the cgroup tree: the second refuses, whichever is further up, and waits for one that is just leaving. */
import assert from 'node:assert/strict';
import { resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { type Agent, cgroute, startAgent } from '../../deploy/stage/agent.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { must } from '../../deploy/stage/process.ts';

const root = resolve(import.meta.dirname, '../..');
const CONNECT = resolve(root, 'dist/bpf/connect.bpf.o');
/** Without the capability to look at what belongs to others, as the chart has it. */
const UNPRIVILEGED = (args: readonly string[]) => ({
  cmd: 'setpriv',
  args: ['--bounding-set=-sys_admin', '--inh-caps=-all', resolve(root, 'dist/cgroute'), ...args],
});
const REFUSED =
  /^cgroute: programs of another cgroute are attached at (\S+): expected none at --cgroup-root, above it or below; stop that agent and run `cgroute cleanup` with its --bpffs-root$/m;

describe('an agent', () => {
  let node: TestNode;
  let pod: NodePod;
  before(async () => {
    node = await startNode('rivals');
    pod = await node.addPod({ name: 'pod' });
    await node.apply();
  });
  after(() => node?.[Symbol.asyncDispose]());

  /** With pins of its own, at a place of its own. */
  const another = (cgroupRoot: string, start?: typeof UNPRIVILEGED): Agent =>
    startAgent(node.sandbox, {
      manifest: node.manifest.path,
      bpffsRoot: `${node.sandbox.bpffs}/another`,
      cgroupRoot,
      ...(start === undefined ? {} : { start }),
    });
  /** The place that it names, by the end of its path. */
  async function refusal({ running }: Agent): Promise<string | undefined> {
    const { code } = await running.exit;
    const said = running.stderr.join('\n');
    assert.equal(code, 1, said);
    const [, place] = REFUSED.exec(said) ?? [];
    return place?.slice(node.sandbox.cgroupRoot.length) ?? said;
  }

  for (const [what, start] of [
    ['', undefined],
    [", without the capability to look at others'", UNPRIVILEGED],
  ] as const) {
    test(`beside or below the programs that another one has left, refuses to start${what}`, async () => {
      const inner = node.sandbox.cgroup('inner');
      await node.agent.kill9();
      assert.equal(await refusal(another(inner.absolute, start)), '');
      assert.equal(await refusal(another(node.sandbox.cgroupRoot, start)), '');
      await node.startAgent();
      assert.equal(await node.travel(pod.place), 'redirected');
    });

    test(`above one that runs refuses to start${what}`, async () => {
      await node.agent.stop();
      await cgroute(node.sandbox, ['cleanup']);
      const inner = node.sandbox.cgroup('inner/deeper');
      const nested = another(inner.absolute);
      await nested.ready();
      const outer = (): Agent =>
        startAgent(node.sandbox, { manifest: node.manifest.path, ...(start === undefined ? {} : { start }) });
      assert.equal(await refusal(outer()), '/inner/deeper');
      assert.equal(await node.travel(pod.place), 'direct', 'nothing of it is attached');
      await nested.kill9();
      await cgroute(node.sandbox, ['cleanup'], { bpffsRoot: `${node.sandbox.bpffs}/another` });
      await node.startAgent();
      assert.equal(await node.travel(pod.place), 'redirected');
    });
  }

  test('starts where the programs of another are about to go, and says so of those that stay', async () => {
    await node.agent.stop();
    await cgroute(node.sandbox, ['cleanup']);
    const pins = `${node.sandbox.bpffs}/leaving`;
    await must({ cmd: 'bpftool', args: ['prog', 'loadall', CONNECT, pins] });
    const bpftool = (what: string, ...more: readonly string[]): Promise<string> =>
      must({
        cmd: 'bpftool',
        args: [
          'cgroup',
          what,
          node.sandbox.cgroupRoot,
          'connect4',
          'pinned',
          `${pins}/root_connect4`,
          ...more,
        ],
      });
    await bpftool('attach', 'multi');
    try {
      assert.equal(await refusal(startAgent(node.sandbox, { manifest: node.manifest.path })), '');
      const [agent] = await Promise.all([node.startAgent(), delay(900).then(() => bpftool('detach'))]);
      assert.ok(agent.running.pid > 0);
    } finally {
      await bpftool('detach').catch(() => undefined);
      await must({ cmd: 'rm', args: ['-r', pins] });
    }
    assert.equal(await node.travel(pod.place), 'redirected');
  });
});
