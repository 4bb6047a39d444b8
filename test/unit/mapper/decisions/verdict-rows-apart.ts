/** Golden examples of the rules that take a pod out whatever labels of modes say. */
import type { Decision, Reason, Verdict } from '../../../../mapper/decisions/decision.ts';
import type { Namespace } from '../../../../mapper/objects/namespace.ts';
import type { Pod } from '../../../../mapper/objects/pod.ts';
import type { Settings } from '../../../harness/verdict-oracle.ts';
import { BYPASS, GATEWAY, KMESH_REDIRECTION, MODE, REDIRECTION } from '../../../harness/label-names.ts';
import { AMBIENT, KMESH, SIDECAR } from './verdict-input.ts';

/** A pod in its namespace, and what is made of it. */
export interface GoldenRow {
  readonly name: string;
  readonly pod?: Partial<Pod>;
  readonly namespace?: Namespace | undefined;
  readonly settings?: Partial<Settings>;
  /** It has ended, and processes of it are left. */
  readonly runsOn?: true;
  readonly is: readonly [Verdict, Reason];
  readonly also?: Partial<Decision>;
}

export const APART_ROWS: readonly GoldenRow[] = [
  {
    name: '1: the host network wins over a label',
    pod: { hostNetwork: true, labels: { [MODE]: 'ambient' } },
    is: ['out', 'host-network'],
  },
  {
    name: '1: also for the proxy, which stays marked',
    pod: { hostNetwork: true, labels: { app: 'ztunnel' } },
    is: ['out', 'host-network'],
    also: { proxy: true },
  },
  {
    name: '2: a pod that succeeded',
    pod: { phase: 'Succeeded' },
    namespace: AMBIENT,
    is: ['out', 'terminal'],
  },
  { name: '2: a pod that failed', pod: { phase: 'Failed' }, namespace: AMBIENT, is: ['out', 'terminal'] },
  {
    name: '2: a pod that is terminating stays in',
    pod: { terminating: true },
    namespace: AMBIENT,
    is: ['in', 'namespace-label'],
  },
  {
    name: '2: a pending pod is in',
    pod: { phase: 'Pending' },
    namespace: AMBIENT,
    is: ['in', 'namespace-label'],
  },
  {
    name: '2: a pod that failed and runs on',
    pod: { phase: 'Failed' },
    runsOn: true,
    namespace: AMBIENT,
    is: ['in', 'namespace-label'],
  },
  {
    name: '2: a proxy that failed and runs on is one',
    pod: { phase: 'Failed', labels: { app: 'ztunnel' } },
    runsOn: true,
    is: ['out', 'proxy'],
    also: { proxy: true },
  },
  {
    name: '2: what runs and has not ended is no news',
    pod: { phase: 'Unknown' },
    runsOn: true,
    namespace: AMBIENT,
    is: ['in', 'namespace-label'],
  },
  {
    name: '2: a proxy that ended is no proxy',
    pod: { phase: 'Failed', labels: { app: 'ztunnel' } },
    is: ['out', 'terminal'],
    also: { proxy: false },
  },
  {
    name: '3: the proxy',
    pod: { labels: { app: 'ztunnel' } },
    namespace: AMBIENT,
    is: ['out', 'proxy'],
    also: { proxy: true },
  },
  {
    name: '3: in an excluded namespace too',
    pod: { namespace: 'istio-system', labels: { app: 'ztunnel' } },
    is: ['out', 'proxy'],
  },
  {
    name: '3: another selector',
    pod: { labels: { app: 'ztunnel' } },
    namespace: AMBIENT,
    settings: { proxy: { label: ['role', 'proxy'], namespaces: ['*'] } },
    is: ['in', 'namespace-label'],
    also: { proxy: false },
  },
  {
    name: '3: only in the namespaces configured',
    pod: { labels: { app: 'ztunnel' } },
    namespace: AMBIENT,
    settings: { proxy: { label: ['app', 'ztunnel'], namespaces: ['mesh'] } },
    is: ['in', 'namespace-label'],
  },
  {
    name: '4: kube-system',
    pod: { namespace: 'kube-system', labels: { [MODE]: 'ambient' } },
    is: ['out', 'excluded-namespace'],
  },
  { name: '4: istio-system', pod: { namespace: 'istio-system' }, is: ['out', 'excluded-namespace'] },
  {
    name: '4: the list is configurable',
    pod: { namespace: 'kube-system', labels: { [MODE]: 'ambient' } },
    settings: { excludedNamespaces: [] },
    is: ['in', 'pod-label'],
  },
  {
    name: '5: a waypoint',
    pod: { labels: { [GATEWAY]: 'istio.io-mesh-controller' } },
    namespace: AMBIENT,
    is: ['out', 'gateway'],
  },
  {
    name: '5: a gateway, any case',
    pod: { labels: { [GATEWAY]: 'Istio.io-Gateway-Controller' } },
    namespace: AMBIENT,
    is: ['out', 'gateway'],
  },
  {
    name: '5: an east-west gateway',
    pod: { labels: { [GATEWAY]: 'istio.io-eastwest-controller' } },
    namespace: AMBIENT,
    is: ['out', 'gateway'],
  },
  {
    name: "5: somebody else's gateway",
    pod: { labels: { [GATEWAY]: 'example.com-controller' } },
    namespace: AMBIENT,
    is: ['in', 'namespace-label'],
  },
  {
    name: '6: a pod of Kata',
    pod: { runtimeClass: 'kata', labels: { [MODE]: 'ambient' } },
    namespace: AMBIENT,
    is: ['out', 'runtime'],
  },
  { name: '6: by one of its hypervisors', pod: { runtimeClass: 'kata-qemu' }, is: ['out', 'runtime'] },
  { name: '6: gVisor', pod: { runtimeClass: 'gvisor' }, namespace: KMESH, is: ['out', 'runtime'] },
  {
    name: '6: a bypass means nothing there',
    pod: { runtimeClass: 'runsc', labels: { [BYPASS]: 'enabled' }, annotations: SIDECAR },
    namespace: AMBIENT,
    is: ['out', 'runtime'],
    also: { bypassOutbound: false, bypassInbound: false },
  },
  {
    name: "6: a class of this node's kernel",
    pod: { runtimeClass: 'nvidia' },
    namespace: AMBIENT,
    is: ['in', 'namespace-label'],
  },
  {
    name: '6: a name that only begins like a whole one',
    pod: { runtimeClass: 'katapult' },
    namespace: AMBIENT,
    is: ['in', 'namespace-label'],
  },
  {
    name: '6: the list is configurable',
    pod: { runtimeClass: 'krun-vm' },
    namespace: AMBIENT,
    settings: { runtimeClasses: ['krun*'] },
    is: ['out', 'runtime'],
  },
  {
    name: '6: and may be empty',
    pod: { runtimeClass: 'kata' },
    namespace: AMBIENT,
    settings: { runtimeClasses: [] },
    is: ['in', 'namespace-label'],
  },
  {
    name: "7: another mesh's annotation",
    pod: { annotations: { [REDIRECTION]: 'enabled' }, writers: { [REDIRECTION]: 'istio-cni' } },
    namespace: AMBIENT,
    is: ['out', 'other-mesh'],
    also: { enrolled: false, mode: undefined },
  },
  {
    name: "7: Istio's while it is not through",
    pod: { annotations: { [REDIRECTION]: 'pending' }, writers: { [REDIRECTION]: 'istio-cni' } },
    namespace: AMBIENT,
    is: ['out', 'other-mesh'],
  },
  {
    name: "7: Kmesh's",
    pod: {
      annotations: { [KMESH_REDIRECTION]: 'enabled' },
      writers: { [KMESH_REDIRECTION]: 'kmesh-daemon' },
    },
    namespace: KMESH,
    is: ['out', 'other-mesh'],
  },
  {
    name: "7: Kmesh's, which is never cgroute's, also of nobody knows whom",
    pod: { annotations: { [KMESH_REDIRECTION]: 'enabled' } },
    namespace: KMESH,
    is: ['out', 'other-mesh'],
  },
  {
    name: '7: without any label that asks for a mesh',
    pod: { annotations: { [REDIRECTION]: 'enabled' }, writers: { [REDIRECTION]: 'istio-cni' } },
    is: ['out', 'other-mesh'],
  },
  {
    name: '7: beats an opt-out and a bypass',
    pod: {
      annotations: { [KMESH_REDIRECTION]: 'enabled' },
      labels: { [MODE]: 'none', [BYPASS]: 'enabled' },
    },
    namespace: AMBIENT,
    is: ['out', 'other-mesh'],
    also: { bypassOutbound: false, bypassInbound: false },
  },
  {
    name: "7: cgroute's own",
    pod: { annotations: { [REDIRECTION]: 'enabled' }, writers: { [REDIRECTION]: 'cgroute' } },
    namespace: AMBIENT,
    is: ['in', 'namespace-label'],
  },
  {
    name: '7: of nobody knows whom, which may be its own',
    pod: { annotations: { [REDIRECTION]: 'enabled' } },
    namespace: AMBIENT,
    is: ['in', 'namespace-label'],
  },
  {
    name: '7: that says no',
    pod: {
      annotations: { [REDIRECTION]: 'disabled', [KMESH_REDIRECTION]: 'disabled' },
      writers: { [REDIRECTION]: 'istio-cni', [KMESH_REDIRECTION]: 'kmesh-daemon' },
    },
    namespace: AMBIENT,
    is: ['out', 'pod-opt-out'],
  },
  {
    name: '7: taken over',
    pod: {
      annotations: { [REDIRECTION]: 'enabled', [KMESH_REDIRECTION]: 'enabled' },
      writers: { [REDIRECTION]: 'istio-cni' },
    },
    namespace: AMBIENT,
    settings: { takeOver: true },
    is: ['in', 'namespace-label'],
  },
  {
    name: "8: Istio's older opt-out",
    pod: { annotations: { [REDIRECTION]: 'disabled' } },
    namespace: AMBIENT,
    is: ['out', 'pod-opt-out'],
    also: { mode: undefined },
  },
  {
    name: "8: beats the pod's own label",
    pod: { annotations: { [REDIRECTION]: 'Disabled' }, labels: { [MODE]: 'kmesh' } },
    is: ['out', 'pod-opt-out'],
  },
  {
    name: '8: of a sidecar, which may still be bypassed',
    pod: { annotations: { [REDIRECTION]: 'disabled', ...SIDECAR }, labels: { [BYPASS]: 'enabled' } },
    namespace: AMBIENT,
    is: ['out', 'pod-opt-out'],
    also: { sidecar: true, bypassOutbound: true },
  },
  {
    name: '8: enabled asks for nothing',
    pod: { annotations: { [REDIRECTION]: 'enabled' } },
    is: ['out', 'not-enrolled'],
  },
  {
    name: '8: nor does a word that means nothing',
    pod: { annotations: { [REDIRECTION]: 'off' } },
    namespace: AMBIENT,
    is: ['in', 'namespace-label'],
  },
];
