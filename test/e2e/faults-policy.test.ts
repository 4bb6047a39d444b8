/** What holds when something fails that the agent can do nothing about. */
import assert from 'node:assert/strict';
import { globSync, readFileSync, readdirSync, unlinkSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { test } from 'node:test';
import { watchAgent } from '../harness/alive.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import { MODE } from '../harness/label-names.ts';
import { eventually } from '../../deploy/stage/process.ts';

const DROPPER = resolve(import.meta.dirname, '../harness/drop-privileges.ts');
const OUT = { [MODE]: 'none' };

async function startWithShortSweep(
  node: TestNode,
  env: Readonly<Record<string, string>> = {},
): Promise<void> {
  const config = node.sandbox.file('config.yaml');
  writeFileSync(config, 'sweepSeconds: 1\n');
  await node.startAgent({ args: ['--config', config], env });
}

/** CapEff of proc_pid_status(5), by thread. */
function capabilities(pid: number): readonly string[] {
  return readdirSync(`/proc/${pid}/task`).map(
    (thread) =>
      /^CapEff:\s+(\w+)$/m.exec(readFileSync(`/proc/${pid}/task/${thread}/status`, 'utf8'))?.[1] ?? '',
  );
}

test('an agent without privileges it had goes on with what it has opened, and the next one starts as ever', async () => {
  await using node = await startNode('privileges', { agent: false });
  const pod = await node.addPod({ name: 'pod' });
  const flipped = await node.addPod({ name: 'flipped', labels: OUT });
  await startWithShortSweep(node, { NODE_OPTIONS: `--import=${DROPPER}` });
  const { agent } = node;
  assert.notEqual(capabilities(agent.running.pid)[0], '0'.repeat(16));
  process.kill(agent.running.pid, 'SIGUSR2');
  await eventually('they are dropped', () => agent.running.stderr.includes('capabilities dropped'));
  assert.equal(capabilities(agent.running.pid)[0], '0'.repeat(16), 'of the thread that does the work');

  const [, vitals] = await watchAgent(agent, async () => {
    // Maps are written through what is open; a new pod's cgroup is the kernel's work.
    node.manifest.change(flipped.uid, { labels: {} });
    const late = await node.addPod({ name: 'late' });
    await node.apply();
    assert.deepEqual(
      [await node.travel(pod.place), await node.travel(flipped.place), await node.travel(late.place)],
      ['redirected', 'redirected', 'redirected'],
    );
    // Loaded programs may be attached again, too.
    for (const link of globSync(`${node.sandbox.bpffs}/cgroute/*/links/pod_connect4@*`)) unlinkSync(link);
    await eventually(
      'it is attached again',
      () => globSync(`${node.sandbox.bpffs}/cgroute/*/links/pod_connect4@*`).length > 0,
    );
    assert.equal(await node.travel(pod.place), 'redirected');
  });
  assert.equal(vitals.bad, 0, 'answers of /healthz');
  await agent.kill9();
  assert.equal(await node.travel(pod.place), 'redirected');
  await startWithShortSweep(node);
  assert.deepEqual(
    [await node.travel(pod.place), await node.travel(flipped.place)],
    ['redirected', 'redirected'],
  );
});
