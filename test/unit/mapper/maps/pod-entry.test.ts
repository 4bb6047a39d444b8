/** What the kernel's maps should say of a pod. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Decision } from '../../../../mapper/decisions/decision.ts';
import { podAddresses, podEntry } from '../../../../mapper/maps/pod-entry.ts';
import { podInfo } from '../../../../native/layout/layouts.ts';
import { podWith } from '../pod-with.ts';

test("a pod's entry says who it is, by its names and its service account", () => {
  const decision = { enrolled: true, verdict: 'in', reason: 'pod-label' } as Decision;
  const facts = { slot: 1, decision, addresses: podAddresses([]), netns: 7n, hasLocals: false };
  // The longest names that the API allows.
  const [podName, podNamespace, serviceAccount] = ['p'.repeat(253), 'n'.repeat(63), 's'.repeat(253)];
  const pod = podWith({ name: podName, namespace: podNamespace, serviceAccount });
  const bytes = Buffer.alloc(podInfo.size);
  podInfo.encode(podEntry(pod, facts, 0), bytes);
  const held = podInfo.decode(bytes);
  assert.deepEqual(
    [held.uid, held.podName, held.podNamespace, held.serviceAccount],
    [pod.uid, podName, podNamespace, serviceAccount],
  );
});
