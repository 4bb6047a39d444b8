/** Golden examples: what the rules make of pods one by one, written by hand. The agent and the oracle must both say so. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Decision, Reason, Verdict } from '../../../../mapper/decisions/decision.ts';
import { decide } from '../../../../mapper/decisions/verdict.ts';
import type { Namespace } from '../../../../mapper/objects/namespace.ts';
import type { Pod } from '../../../../mapper/objects/pod.ts';
import {
  ALLOW_BYPASS,
  BYPASS,
  GATEWAY,
  MODE,
  REDIRECTION,
  SIDECAR_STATUS,
} from '../../../harness/label-names.ts';
import { DEFAULT_SETTINGS, expected, REASONS, type Settings } from '../../../harness/verdict-oracle.ts';
import { AMBIENT, configured, KMESH, shop, SIDECAR } from './verdict-input.ts';
import { podWith } from '../pod-with.ts';

interface Row {
  readonly name: string;
  readonly pod?: Partial<Pod>;
  readonly namespace?: Namespace | undefined;
  readonly settings?: Partial<Settings>;
  readonly is: readonly [Verdict, Reason];
  readonly also?: Partial<Decision>;
}

const ROWS: readonly Row[] = [
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
    settings: { proxy: { label: ['role', 'proxy'], namespaces: [] } },
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
  {
    name: '9: a mesh mode on the pod',
    pod: { labels: { [MODE]: 'ambient' } },
    is: ['in', 'pod-label'],
    also: { mode: 'ambient', enrolled: true },
  },
  {
    name: '9: in any case',
    pod: { labels: { [MODE]: 'Kmesh' } },
    is: ['in', 'pod-label'],
    also: { mode: 'kmesh' },
  },
  {
    name: '8: none beats the namespace',
    pod: { labels: { [MODE]: 'none' } },
    namespace: AMBIENT,
    is: ['out', 'pod-opt-out'],
    also: { mode: undefined },
  },
  {
    name: '8: None, any case',
    pod: { labels: { [MODE]: 'NONE' } },
    namespace: AMBIENT,
    is: ['out', 'pod-opt-out'],
  },
  {
    name: "9: the pod's mode beats the namespace's none",
    pod: { labels: { [MODE]: 'kmesh' } },
    namespace: shop({ [MODE]: 'none' }),
    is: ['in', 'pod-label'],
  },
  {
    name: '9: an unknown value counts as absent',
    pod: { labels: { [MODE]: 'sidecarless' } },
    namespace: AMBIENT,
    is: ['in', 'namespace-label'],
  },
  {
    name: '9: modes are configurable',
    pod: { labels: { [MODE]: 'Own' } },
    settings: { meshModes: ['own'] },
    is: ['in', 'pod-label'],
    also: { mode: 'own' },
  },
  { name: '10: the namespace', namespace: AMBIENT, is: ['in', 'namespace-label'] },
  {
    name: '10: no labels',
    namespace: shop(),
    is: ['out', 'not-enrolled'],
    also: { mode: undefined, enrolled: false },
  },
  { name: '10: a namespace that is not known', namespace: undefined, is: ['out', 'not-enrolled'] },
  { name: '10: none on the namespace', namespace: shop({ [MODE]: 'none' }), is: ['out', 'not-enrolled'] },
  {
    name: '10: an unknown value on the namespace',
    namespace: shop({ [MODE]: 'ambiant' }),
    is: ['out', 'not-enrolled'],
  },
  {
    name: '10: a mode that is no longer configured',
    namespace: AMBIENT,
    settings: { meshModes: ['kmesh'] },
    is: ['out', 'not-enrolled'],
  },
  {
    name: '11: a sidecar in ambient',
    pod: { annotations: SIDECAR },
    namespace: AMBIENT,
    is: ['out', 'sidecar'],
    also: { sidecar: true, mode: 'ambient', enrolled: false },
  },
  {
    name: '11: a sidecar in kmesh',
    pod: { annotations: SIDECAR },
    namespace: KMESH,
    is: ['in', 'sidecar-short-circuited'],
  },
  {
    name: '11: a sidecar in a mode of your own is left alone',
    pod: { annotations: SIDECAR, labels: { [MODE]: 'own' } },
    settings: { meshModes: ['own'] },
    is: ['out', 'sidecar'],
  },
  {
    name: '11: an empty status annotation is present',
    pod: { annotations: { [SIDECAR_STATUS]: '' } },
    namespace: AMBIENT,
    is: ['out', 'sidecar'],
  },
  {
    name: '11: a sidecar outside the mesh',
    pod: { annotations: SIDECAR },
    is: ['out', 'not-enrolled'],
    also: { sidecar: true },
  },
  {
    name: '12: enabled',
    pod: { labels: { [BYPASS]: 'enabled' } },
    namespace: AMBIENT,
    is: ['bypass', 'bypass'],
    also: { enrolled: true, bypassOutbound: true, bypassInbound: true },
  },
  {
    name: '12: outbound',
    pod: { labels: { [BYPASS]: 'outbound' } },
    namespace: AMBIENT,
    is: ['bypass', 'bypass-outbound'],
    also: { bypassOutbound: true, bypassInbound: false },
  },
  {
    name: '12: inbound',
    pod: { labels: { [BYPASS]: 'Inbound' } },
    namespace: AMBIENT,
    is: ['bypass', 'bypass-inbound'],
    also: { bypassOutbound: false, bypassInbound: true },
  },
  {
    name: '12: an unknown value',
    pod: { labels: { [BYPASS]: 'both' } },
    namespace: AMBIENT,
    is: ['in', 'namespace-label'],
    also: { bypassOutbound: false, bypassInbound: false },
  },
  {
    name: '12: outside the mesh',
    pod: { labels: { [BYPASS]: 'enabled' } },
    is: ['out', 'not-enrolled'],
    also: { enrolled: false },
  },
  {
    name: '12: of a sidecar, which the rule before has decided',
    pod: { labels: { [BYPASS]: 'enabled' }, annotations: SIDECAR },
    namespace: AMBIENT,
    is: ['out', 'sidecar'],
    also: { bypassOutbound: true, bypassInbound: true },
  },
  {
    name: '12: of a sidecar that is short-circuited',
    pod: { labels: { [BYPASS]: 'enabled' }, annotations: SIDECAR },
    namespace: KMESH,
    is: ['in', 'sidecar-short-circuited'],
    also: { bypassOutbound: true },
  },
  {
    name: '12: never for the host network',
    pod: { labels: { [BYPASS]: 'enabled' }, hostNetwork: true },
    is: ['out', 'host-network'],
    also: { bypassOutbound: false, bypassInbound: false },
  },
  {
    name: '12: never allowed',
    pod: { labels: { [BYPASS]: 'enabled' } },
    namespace: AMBIENT,
    settings: { allowed: 'never' },
    is: ['in', 'namespace-label'],
    also: { bypassOutbound: false },
  },
  {
    name: '12: not allowed by the namespace',
    pod: { labels: { [BYPASS]: 'enabled' } },
    namespace: AMBIENT,
    settings: { allowed: 'namespace' },
    is: ['in', 'namespace-label'],
  },
  {
    name: '12: allowed by the namespace',
    pod: { labels: { [BYPASS]: 'enabled' } },
    namespace: shop({ [MODE]: 'ambient', [ALLOW_BYPASS]: 'true' }),
    settings: { allowed: 'namespace' },
    is: ['bypass', 'bypass'],
  },
  {
    name: '12: only true is true',
    pod: { labels: { [BYPASS]: 'enabled' } },
    namespace: shop({ [MODE]: 'ambient', [ALLOW_BYPASS]: 'yes' }),
    settings: { allowed: 'namespace' },
    is: ['in', 'namespace-label'],
  },
];

describe('the verdict', () => {
  for (const { name, pod: changes = {}, namespace, settings = {}, is, also = {} } of ROWS) {
    test(name, () => {
      const pod = podWith(changes);
      const decision = decide(pod, namespace, configured(settings));
      assert.deepEqual([decision.verdict, decision.reason], is);
      for (const [key, value] of Object.entries(also))
        assert.equal(decision[key as keyof Decision], value, key);
      const { verdict, reason } = expected(pod, namespace?.labels, { ...DEFAULT_SETTINGS, ...settings });
      assert.deepEqual([verdict, reason], is, 'the oracle');
    });
  }

  test('has an example for every reason', () => {
    const shown = new Set<string>(ROWS.map(({ is: [, reason] }) => reason));
    assert.deepEqual([...shown].toSorted(), REASONS.toSorted());
  });
});
