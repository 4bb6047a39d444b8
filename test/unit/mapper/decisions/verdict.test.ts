import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import fc from 'fast-check';

import { defaultConfig, parseConfig } from '../../../../mapper/config/config.ts';
import type { Config } from '../../../../mapper/config/config.ts';
import type { Pod } from '../../../../mapper/objects/pod.ts';
import type { Namespace } from '../../../../mapper/objects/namespace.ts';
import { decide } from '../../../../mapper/decisions/verdict.ts';
import type { Decision, Reason, Verdict } from '../../../../mapper/decisions/decision.ts';

const MODE = 'istio.io/dataplane-mode';
const GATEWAY = 'gateway.istio.io/managed';
const BYPASS = 'kmesh.net/bypass';
const ALLOW = 'cgroute.io/allow-bypass';
const SIDECAR = { 'sidecar.istio.io/status': '{}' };

const BARE: Pod = {
  namespace: 'shop',
  name: 'web',
  uid: '2c48913c-b29f-11e7-9350-020968147796',
  hostNetwork: false,
  phase: 'Running',
  ready: true,
  terminating: false,
  createdAt: 0,
  ips: [],
  labels: {},
  annotations: {},
};
const podWith = (changes: Partial<Pod>): Pod => ({ ...BARE, ...changes });
const shop = (labels: Namespace['labels'] = {}): Namespace => ({ name: 'shop', labels });
const AMBIENT = shop({ [MODE]: 'ambient' });
const KMESH = shop({ [MODE]: 'kmesh' });
const configured = (yaml: string): Config => parseConfig(yaml, 'test.yaml');

interface Row {
  readonly name: string;
  readonly pod?: Partial<Pod>;
  readonly namespace?: Namespace | undefined;
  readonly config?: string;
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
    config: 'proxy: {selector: "role in (proxy)"}',
    is: ['in', 'namespace-label'],
    also: { proxy: false },
  },
  {
    name: '3: only in the namespaces configured',
    pod: { labels: { app: 'ztunnel' } },
    namespace: AMBIENT,
    config: 'proxy: {namespaces: [mesh]}',
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
    config: 'excludedNamespaces: []',
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
    name: '6: a mesh mode on the pod',
    pod: { labels: { [MODE]: 'ambient' } },
    is: ['in', 'pod-label'],
    also: { mode: 'ambient', enrolled: true },
  },
  {
    name: '6: in any case',
    pod: { labels: { [MODE]: 'Kmesh' } },
    is: ['in', 'pod-label'],
    also: { mode: 'kmesh' },
  },
  {
    name: '6: none beats the namespace',
    pod: { labels: { [MODE]: 'none' } },
    namespace: AMBIENT,
    is: ['out', 'pod-opt-out'],
    also: { mode: undefined },
  },
  {
    name: '6: None, any case',
    pod: { labels: { [MODE]: 'NONE' } },
    namespace: AMBIENT,
    is: ['out', 'pod-opt-out'],
  },
  {
    name: "6: the pod's mode beats the namespace's none",
    pod: { labels: { [MODE]: 'kmesh' } },
    namespace: shop({ [MODE]: 'none' }),
    is: ['in', 'pod-label'],
  },
  {
    name: '6: an unknown value counts as absent',
    pod: { labels: { [MODE]: 'sidecarless' } },
    namespace: AMBIENT,
    is: ['in', 'namespace-label'],
  },
  {
    name: '6: modes are configurable',
    pod: { labels: { [MODE]: 'Own' } },
    config: 'meshModes: [own]',
    is: ['in', 'pod-label'],
    also: { mode: 'own' },
  },
  { name: '7: the namespace', namespace: AMBIENT, is: ['in', 'namespace-label'] },
  {
    name: '7: no labels',
    namespace: shop(),
    is: ['out', 'not-enrolled'],
    also: { mode: undefined, enrolled: false },
  },
  { name: '7: a namespace that is not known', namespace: undefined, is: ['out', 'not-enrolled'] },
  { name: '7: none on the namespace', namespace: shop({ [MODE]: 'none' }), is: ['out', 'not-enrolled'] },
  {
    name: '7: an unknown value on the namespace',
    namespace: shop({ [MODE]: 'ambiant' }),
    is: ['out', 'not-enrolled'],
  },
  {
    name: '7: a mode that is no longer configured',
    namespace: AMBIENT,
    config: 'meshModes: [kmesh]',
    is: ['out', 'not-enrolled'],
  },
  {
    name: '8: a sidecar in ambient',
    pod: { annotations: SIDECAR },
    namespace: AMBIENT,
    is: ['out', 'sidecar'],
    also: { sidecar: true, mode: 'ambient', enrolled: false },
  },
  {
    name: '8: a sidecar in kmesh',
    pod: { annotations: SIDECAR },
    namespace: KMESH,
    is: ['in', 'sidecar-short-circuited'],
  },
  {
    name: '8: a sidecar in a mode of your own is left alone',
    pod: { annotations: SIDECAR, labels: { [MODE]: 'own' } },
    config: 'meshModes: [own]',
    is: ['out', 'sidecar'],
  },
  {
    name: '8: an empty status annotation is present',
    pod: { annotations: { 'sidecar.istio.io/status': '' } },
    namespace: AMBIENT,
    is: ['out', 'sidecar'],
  },
  {
    name: '8: a sidecar outside the mesh',
    pod: { annotations: SIDECAR },
    is: ['out', 'not-enrolled'],
    also: { sidecar: true },
  },
  {
    name: '9: enabled',
    pod: { labels: { [BYPASS]: 'enabled' } },
    namespace: AMBIENT,
    is: ['bypass', 'bypass'],
    also: { enrolled: true, bypassOutbound: true, bypassInbound: true },
  },
  {
    name: '9: outbound',
    pod: { labels: { [BYPASS]: 'outbound' } },
    namespace: AMBIENT,
    is: ['bypass', 'bypass-outbound'],
    also: { bypassOutbound: true, bypassInbound: false },
  },
  {
    name: '9: inbound',
    pod: { labels: { [BYPASS]: 'Inbound' } },
    namespace: AMBIENT,
    is: ['bypass', 'bypass-inbound'],
    also: { bypassOutbound: false, bypassInbound: true },
  },
  {
    name: '9: an unknown value',
    pod: { labels: { [BYPASS]: 'both' } },
    namespace: AMBIENT,
    is: ['in', 'namespace-label'],
    also: { bypassOutbound: false, bypassInbound: false },
  },
  {
    name: '9: outside the mesh',
    pod: { labels: { [BYPASS]: 'enabled' } },
    is: ['out', 'not-enrolled'],
    also: { enrolled: false },
  },
  {
    name: '9: of a sidecar, which the rule before has decided',
    pod: { labels: { [BYPASS]: 'enabled' }, annotations: SIDECAR },
    namespace: AMBIENT,
    is: ['out', 'sidecar'],
    also: { bypassOutbound: true, bypassInbound: true },
  },
  {
    name: '9: of a sidecar that is short-circuited',
    pod: { labels: { [BYPASS]: 'enabled' }, annotations: SIDECAR },
    namespace: KMESH,
    is: ['in', 'sidecar-short-circuited'],
    also: { bypassOutbound: true },
  },
  {
    name: '9: never for the host network',
    pod: { labels: { [BYPASS]: 'enabled' }, hostNetwork: true },
    is: ['out', 'host-network'],
    also: { bypassOutbound: false, bypassInbound: false },
  },
  {
    name: '9: never allowed',
    pod: { labels: { [BYPASS]: 'enabled' } },
    namespace: AMBIENT,
    config: 'bypass: {allowed: never}',
    is: ['in', 'namespace-label'],
    also: { bypassOutbound: false },
  },
  {
    name: '9: not allowed by the namespace',
    pod: { labels: { [BYPASS]: 'enabled' } },
    namespace: AMBIENT,
    config: 'bypass: {allowed: namespace}',
    is: ['in', 'namespace-label'],
  },
  {
    name: '9: allowed by the namespace',
    pod: { labels: { [BYPASS]: 'enabled' } },
    namespace: shop({ [MODE]: 'ambient', [ALLOW]: 'true' }),
    config: 'bypass: {allowed: namespace}',
    is: ['bypass', 'bypass'],
  },
  {
    name: '9: only true is true',
    pod: { labels: { [BYPASS]: 'enabled' } },
    namespace: shop({ [MODE]: 'ambient', [ALLOW]: 'yes' }),
    config: 'bypass: {allowed: namespace}',
    is: ['in', 'namespace-label'],
  },
];

/** All values of each dimension, and a second reading of the rules that shares no code with the first. */
const SPACE = {
  namespaceLabel: [undefined, 'ambient', 'KMESH', 'none', 'unknown'],
  podLabel: [undefined, 'Ambient', 'kmesh', 'None', 'unknown'],
  sidecar: [false, true],
  bypass: [undefined, 'enabled', 'outbound', 'inbound', 'unknown'],
  hostNetwork: [false, true],
  excluded: [false, true],
  phase: ['Pending', 'Running', 'Succeeded', 'Failed', 'Unknown'],
  gateway: [undefined, 'istio.io-mesh-controller', 'unknown'],
  proxy: [false, true],
} as const;
type Point = { readonly [K in keyof typeof SPACE]: (typeof SPACE)[K][number] };

function oracle(p: Point): Reason {
  if (p.hostNetwork) return 'host-network';
  if (['Succeeded', 'Failed'].includes(p.phase)) return 'terminal';
  if (p.proxy) return 'proxy';
  if (p.excluded) return 'excluded-namespace';
  if (p.gateway === 'istio.io-mesh-controller') return 'gateway';
  const pick: Record<string, string> = {
    Ambient: 'ambient',
    kmesh: 'kmesh',
    ambient: 'ambient',
    KMESH: 'kmesh',
  };
  if (p.podLabel === 'None') return 'pod-opt-out';
  const byPod = pick[p.podLabel ?? ''];
  const mode = byPod ?? pick[p.namespaceLabel ?? ''];
  if (mode === undefined) return 'not-enrolled';
  if (p.sidecar) return mode === 'kmesh' ? 'sidecar-short-circuited' : 'sidecar';
  if (p.bypass === 'enabled') return 'bypass';
  if (p.bypass === 'outbound' || p.bypass === 'inbound') return `bypass-${p.bypass}`;
  return byPod === undefined ? 'namespace-label' : 'pod-label';
}

const IN: readonly Reason[] = ['pod-label', 'namespace-label', 'sidecar-short-circuited'];
const BYPASSED: readonly Reason[] = ['bypass', 'bypass-outbound', 'bypass-inbound'];

function* allPoints(): Generator<Point> {
  const keys = Object.keys(SPACE) as (keyof typeof SPACE)[];
  const walk = function* (at: number, point: Record<string, unknown>): Generator<Point> {
    const key = keys[at];
    if (key === undefined) return yield point as unknown as Point;
    for (const value of SPACE[key]) yield* walk(at + 1, { ...point, [key]: value });
  };
  yield* walk(0, {});
}

function decideAt(point: Point): Decision {
  const namespace = point.excluded ? 'kube-system' : 'shop';
  const labels: Record<string, string> = {};
  if (point.podLabel !== undefined) labels[MODE] = point.podLabel;
  if (point.bypass !== undefined) labels[BYPASS] = point.bypass;
  if (point.gateway !== undefined) labels[GATEWAY] = point.gateway;
  if (point.proxy) labels['app'] = 'ztunnel';
  const pod = podWith({
    namespace,
    labels,
    hostNetwork: point.hostNetwork,
    phase: point.phase,
    annotations: point.sidecar ? SIDECAR : {},
  });
  return decide(
    pod,
    { name: namespace, labels: point.namespaceLabel === undefined ? {} : { [MODE]: point.namespaceLabel } },
    defaultConfig,
  );
}

describe('the verdict', () => {
  for (const { name, pod = {}, namespace, config = '', is, also = {} } of ROWS) {
    test(name, () => {
      const decision = decide(podWith(pod), namespace, configured(config));
      assert.deepEqual([decision.verdict, decision.reason], is);
      for (const [key, value] of Object.entries(also))
        assert.equal(decision[key as keyof Decision], value, key);
    });
  }

  test('has exactly one reason, verdict and deciding rule for every combination', () => {
    let count = 0;
    for (const point of allPoints()) {
      const decision = decideAt(point);
      const expected = oracle(point);
      if (decision.reason !== expected)
        assert.fail(`${JSON.stringify(point)}: expected ${expected}, got ${decision.reason}`);
      const verdict = IN.includes(expected) ? 'in' : BYPASSED.includes(expected) ? 'bypass' : 'out';
      if (decision.verdict !== verdict)
        assert.fail(`${JSON.stringify(point)}: expected ${verdict}, got ${decision.verdict}`);
      if (decision.enrolled !== (verdict !== 'out'))
        assert.fail(`${JSON.stringify(point)}: enrolled is ${decision.enrolled}`);
      const deciding = decision.trace.filter(({ outcome }) => outcome === 'decides');
      if (deciding.length !== 1) assert.fail(`${JSON.stringify(point)}: ${deciding.length} deciding rules`);
      count += 1;
    }
    assert.equal(count, 5 * 5 * 2 * 5 * 2 * 2 * 5 * 3 * 2);
  });

  test('is never an exception, whatever the labels', () => {
    const words = fc.oneof(
      fc.string({ unit: 'binary' }),
      fc.constantFrom('ambient', 'none', 'enabled', 'constructor', '__proto__', 'toString', ''),
    );
    const keys = fc.oneof(
      fc.string(),
      fc.constantFrom(MODE, GATEWAY, BYPASS, ALLOW, 'app', '__proto__', 'constructor'),
    );
    const labels = fc.dictionary(keys, words);
    fc.assert(
      fc.property(labels, labels, labels, words, fc.boolean(), (own, theirs, annotations, name, known) => {
        const decision = decide(
          podWith({ labels: own, annotations, namespace: name }),
          known ? { name, labels: theirs } : undefined,
          defaultConfig,
        );
        assert.equal(decision.trace.filter(({ outcome }) => outcome === 'decides').length, 1);
      }),
    );
  });
});

describe('the trace of a verdict', () => {
  test('has every rule that was tried, in order, and none after the one that decides', () => {
    const { trace } = decide(podWith({ labels: { [BYPASS]: 'enabled' } }), AMBIENT, defaultConfig);
    assert.deepEqual(
      trace.map(({ rule, outcome }) => [rule, outcome]),
      [
        [1, 'no'],
        [2, 'no'],
        [3, 'no'],
        [4, 'no'],
        [5, 'no'],
        [6, 'no'],
        [7, 'yes'],
        [8, 'no'],
        [9, 'decides'],
      ],
    );
    assert.deepEqual(
      decide(podWith({ phase: 'Failed' }), AMBIENT, defaultConfig).trace.map(({ rule }) => rule),
      [1, 2],
    );
  });

  test("gives the deciding mark to the label's rule when nothing after it applies", () => {
    const { trace } = decide(podWith({ labels: { [MODE]: 'kmesh' } }), undefined, defaultConfig);
    assert.deepEqual(trace.map(({ rule, outcome }) => [rule, outcome]).slice(5), [
      [6, 'decides'],
      [8, 'no'],
      [9, 'no'],
    ]);
  });

  test('quotes the values that decided', () => {
    const { trace } = decide(podWith({ labels: { [MODE]: 'NoNe' } }), AMBIENT, defaultConfig);
    assert.match(trace.at(-1)?.saw ?? '', /istio\.io\/dataplane-mode = "NoNe"/);
  });
});

describe('the notes of a verdict', () => {
  const notesOf = (pod: Partial<Pod>, namespace?: Namespace, config = ''): readonly string[] =>
    decide(podWith(pod), namespace, configured(config)).notes.map(
      ({ code, message }) => `${code}: ${message}`,
    );

  test('quote an unknown mode, of the pod and of the namespace', () => {
    const notes = notesOf({ labels: { [MODE]: 'sidecarless' } }, shop({ [MODE]: 'ambiant' }));
    assert.equal(notes.length, 2);
    assert.match(notes[0] ?? '', /^unknown-mode: pod shop\/web .*"sidecarless"/);
    assert.match(notes[1] ?? '', /^unknown-mode: namespace shop .*"ambiant"/);
  });

  test('quote an unknown and a refused bypass', () => {
    assert.match(
      notesOf({ labels: { [BYPASS]: 'true' } }, AMBIENT).join(),
      /^unknown-bypass: pod shop\/web .*"true"/,
    );
    assert.match(
      notesOf({ labels: { [BYPASS]: 'enabled' } }, AMBIENT, 'bypass: {allowed: never}').join(),
      /^bypass-refused: .*bypass\.allowed is never/,
    );
    assert.match(
      notesOf({ labels: { [BYPASS]: 'enabled' } }, AMBIENT, 'bypass: {allowed: namespace}').join(),
      /^bypass-refused: .*namespace shop does not carry cgroute\.io\/allow-bypass=true/,
    );
  });

  test('are absent when all is plain', () => {
    assert.deepEqual(notesOf({ labels: { [MODE]: 'none', app: 'web' } }, AMBIENT), []);
    assert.deepEqual(notesOf({ labels: { [BYPASS]: 'enabled' } }, AMBIENT), []);
    assert.deepEqual(notesOf({ labels: { [MODE]: '' } }, shop({ [MODE]: 'None' })), []);
  });
});
