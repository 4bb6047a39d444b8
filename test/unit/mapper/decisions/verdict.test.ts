/** The agent's rules against the oracle's, for every combination of what decides. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { defaultConfig } from '../../../../mapper/config/config.ts';
import type { Decision } from '../../../../mapper/decisions/decision.ts';
import { decide } from '../../../../mapper/decisions/verdict.ts';
import { PHASES, type Pod } from '../../../../mapper/objects/pod.ts';
import { ALLOW_BYPASS, BYPASS, GATEWAY, MODE } from '../../../harness/label-names.ts';
import {
  DEFAULT_SETTINGS,
  expected,
  type Expected,
  REASONS,
  type Settings,
} from '../../../harness/verdict-oracle.ts';
import { configured, SIDECAR } from './verdict-input.ts';
import { podWith } from '../pod-with.ts';

/** All values of each dimension: those that mean something, some in odd case, and one that means nothing. */
const SPACE = {
  namespaceLabel: [undefined, 'ambient', 'KMESH', 'none', 'unknown'],
  podLabel: [undefined, 'Ambient', 'kmesh', 'None', 'unknown'],
  sidecar: [false, true],
  bypass: [undefined, 'enabled', 'OutBound', 'inbound', 'unknown'],
  hostNetwork: [false, true],
  excluded: [false, true],
  phase: PHASES,
  gateway: [undefined, 'Istio.io-mesh-controller', 'unknown'],
  proxy: [false, true],
} as const;
type Point = { readonly [K in keyof typeof SPACE]: (typeof SPACE)[K][number] };

interface Configuration {
  readonly name: string;
  readonly settings: Partial<Settings>;
  /** The namespace's permission to bypass. */
  readonly permission?: string;
}

const CONFIGURATIONS: readonly Configuration[] = [
  { name: 'by default', settings: {} },
  { name: 'where no bypass is allowed', settings: { allowed: 'never' }, permission: 'true' },
  { name: 'where the namespace allows a bypass', settings: { allowed: 'namespace' }, permission: 'true' },
  { name: 'where the namespace says it wrong', settings: { allowed: 'namespace' }, permission: 'True' },
  { name: 'where the namespace says nothing', settings: { allowed: 'namespace' } },
  {
    name: 'with other modes, namespaces, gateways and proxies',
    settings: {
      meshModes: ['kmesh', 'unknown'],
      excludedNamespaces: ['shop'],
      gatewayControllers: ['unknown'],
      proxy: { label: ['app', 'ztunnel'], namespaces: ['kube-system'] },
    },
  },
];

function* allPoints(): Generator<Point> {
  const keys = Object.keys(SPACE) as (keyof typeof SPACE)[];
  const walk = function* (at: number, point: Record<string, unknown>): Generator<Point> {
    const key = keys[at];
    if (key === undefined) return yield point as unknown as Point;
    for (const value of SPACE[key]) yield* walk(at + 1, { ...point, [key]: value });
  };
  yield* walk(0, {});
}

function podAt(point: Point): Pod {
  return podWith({
    namespace: point.excluded ? 'kube-system' : 'shop',
    labels: texts({
      [MODE]: point.podLabel,
      [BYPASS]: point.bypass,
      [GATEWAY]: point.gateway,
      app: point.proxy ? 'ztunnel' : undefined,
    }),
    hostNetwork: point.hostNetwork,
    phase: point.phase,
    annotations: point.sidecar ? SIDECAR : {},
  });
}

/** Without what is undefined. */
function texts(of: Readonly<Record<string, string | undefined>>): Readonly<Record<string, string>> {
  const defined: Record<string, string> = {};
  for (const [key, value] of Object.entries(of)) if (value !== undefined) defined[key] = value;
  return defined;
}

/** What the oracle tells of a decision, as the agent says it. */
function said({ trace, ...decision }: Decision): Partial<Expected> & { readonly enrolled: boolean } {
  const { verdict, reason, mode, enrolled, proxy, sidecar, bypassOutbound, bypassInbound } = decision;
  const deciding = trace.filter(({ outcome }) => outcome === 'decides').map(({ rule }) => rule);
  // Two rules that decide are none that the oracle knows.
  const rule = deciding.length === 1 ? Number(deciding) : NaN;
  return { verdict, reason, rule, mode, enrolled, proxy, sidecar, bypassOutbound, bypassInbound };
}

describe('the verdict', () => {
  for (const { name, settings, permission } of CONFIGURATIONS) {
    test(`is the oracle's for every combination ${name}`, () => {
      const config = configured(settings);
      const all = { ...DEFAULT_SETTINGS, ...settings };
      const reasons = new Set<string>();
      let count = 0;
      for (const point of allPoints()) {
        const pod = podAt(point);
        const theirs = texts({ [MODE]: point.namespaceLabel, [ALLOW_BYPASS]: permission });
        const decision = decide(pod, { name: pod.namespace, labels: theirs }, config);
        const is = said(decision);
        const should = expected(pod, theirs, all);
        const wanted = { ...should, enrolled: should.verdict !== 'out' };
        for (const key of Object.keys(is) as (keyof typeof is)[])
          if (is[key] !== wanted[key])
            assert.fail(`${JSON.stringify(point)}: expected ${key} to be ${wanted[key]}, got ${is[key]}`);
        const { trace } = decision;
        if (trace.some(({ rule }, at) => rule <= (trace[at - 1]?.rule ?? 0)))
          assert.fail(`${JSON.stringify(point)}: the trace is not in order: ${JSON.stringify(trace)}`);
        reasons.add(decision.reason);
        count += 1;
      }
      assert.equal(count, 5 * 5 * 2 * 5 * 2 * 2 * 5 * 3 * 2);
      if (settings.allowed === undefined) assert.deepEqual([...reasons].toSorted(), REASONS.toSorted());
    });
  }

  test('is never an exception, whatever the labels', () => {
    const words = fc.oneof(
      fc.string({ unit: 'binary' }),
      fc.constantFrom('ambient', 'none', 'enabled', 'constructor', '__proto__', 'toString', ''),
    );
    const keys = fc.oneof(
      fc.string(),
      fc.constantFrom(MODE, GATEWAY, BYPASS, ALLOW_BYPASS, 'app', '__proto__', 'constructor'),
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
