/** A pod to decide and to know about. */
import type { Pod } from '../../../mapper/objects/pod.ts';

const BARE: Pod = {
  namespace: 'shop',
  name: 'web',
  uid: '2c48913c-b29f-11e7-9350-020968147796',
  hostNetwork: false,
  serviceAccount: 'default',
  phase: 'Running',
  ready: true,
  terminating: false,
  createdAt: 0,
  ips: [],
  labels: {},
  annotations: {},
};

/** A running pod `shop/web` without labels, but for this. */
export const podWith = (changes: Partial<Pod> = {}): Pod => ({ ...BARE, ...changes });
