/** As whom a pod runs: in the kernel's maps, so that it is known to an agent that nobody tells of pods. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { eventually } from '../../deploy/stage/process.ts';
import { startNode } from '../harness/node.ts';

test("a pod's service account is in the kernel's maps, and stays when no agent runs", async () => {
  await using node = await startNode('service-account', { agent: false });
  const named = await node.addPod({ name: 'named', serviceAccount: 'till' });
  const unnamed = await node.addPod({ name: 'unnamed' });
  await node.startAgent();
  const accounts = async (): Promise<readonly unknown[]> => {
    const pods = await node.entries('pod_info_map');
    return [named, unnamed].map(
      ({ uid }) => pods.find(({ value }) => value['uid'] === uid)?.value['service_account'],
    );
  };
  assert.deepEqual(await accounts(), ['till', 'default']);
  // A replacement under the same UID: a manifest's pod may change what the API never lets change.
  node.manifest.change(unnamed.uid, { serviceAccount: 'other' });
  node.manifest.write();
  await eventually('the account is another', async () => (await accounts())[1] === 'other');
  await node.agent.kill9();
  assert.deepEqual(await accounts(), ['till', 'other']);
});
