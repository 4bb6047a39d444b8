/** The Node object that a kubelet registers. */
import type { KubeObject } from './kube-objects.ts';
import type { NetworkHost } from '../../deploy/stage/netns.ts';

/** A node that is ready and has room for 250 pods. */
export function nodeObject(name: string, host: NetworkHost): KubeObject {
  const now = new Date().toISOString();
  const capacity = { cpu: '64', memory: '256Gi', 'ephemeral-storage': '100Gi', pods: '250' };
  const condition = (type: string, status: string, reason: string) => ({
    type,
    status,
    reason,
    message: '',
    lastHeartbeatTime: now,
    lastTransitionTime: now,
  });
  return {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: {
      name,
      labels: {
        'kubernetes.io/hostname': name,
        'kubernetes.io/os': 'linux',
        'kubernetes.io/arch': process.arch === 'x64' ? 'amd64' : process.arch,
      },
    },
    spec: {},
    status: {
      capacity,
      allocatable: capacity,
      addresses: [
        { type: 'InternalIP', address: host.ip4 },
        { type: 'InternalIP', address: host.ip6 },
        { type: 'Hostname', address: name },
      ],
      conditions: [
        condition('MemoryPressure', 'False', 'KubeletHasSufficientMemory'),
        condition('DiskPressure', 'False', 'KubeletHasNoDiskPressure'),
        condition('PIDPressure', 'False', 'KubeletHasSufficientPID'),
        condition('Ready', 'True', 'KubeletReady'),
      ],
      nodeInfo: {
        architecture: process.arch === 'x64' ? 'amd64' : process.arch,
        operatingSystem: 'linux',
        bootID: '',
        kernelVersion: '',
        machineID: '',
        osImage: '',
        systemUUID: '',
        kubeletVersion: 'v1.36.0',
        kubeProxyVersion: '',
        containerRuntimeVersion: 'containerd://2.2.0',
      },
    },
  };
}
