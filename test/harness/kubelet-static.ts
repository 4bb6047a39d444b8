/** Static pods: what a kubelet makes of a manifest in its own directory (kubernetes/pkg/kubelet/config/common.go). */
import { createHash } from 'node:crypto';
import type { Pod } from './kube-objects.ts';
import { CONFIG_HASH, CONFIG_MIRROR } from './label-names.ts';

/**
 * The hash that stands in the place of a UID, 32 hex digits, and the mirror pod
 * by which the API server knows it. A mirror pod belongs to its node.
 */
export function staticPod(
  manifest: Pod,
  node: string,
  nodeUid: string,
): { readonly hash: string; readonly pod: Pod } {
  const hash = createHash('md5')
    .update(JSON.stringify([node, manifest]))
    .digest('hex');
  const { annotations, name, namespace = 'default' } = manifest.metadata;
  const configuration = {
    [CONFIG_HASH]: hash,
    'kubernetes.io/config.seen': new Date().toISOString(),
    'kubernetes.io/config.source': 'file',
    [CONFIG_MIRROR]: hash,
  };
  const pod: Pod = {
    ...manifest,
    metadata: {
      ...manifest.metadata,
      namespace,
      name: `${name}-${node}`,
      annotations: { ...annotations, ...configuration },
      ownerReferences: [{ apiVersion: 'v1', kind: 'Node', name: node, uid: nodeUid, controller: true }],
    },
    spec: { ...manifest.spec, nodeName: node, tolerations: [{ operator: 'Exists', effect: 'NoExecute' }] },
  };
  return { hash, pod };
}
