/** The agent's rules against the oracle's, for every combination of what decides. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { type Config, defaultConfig } from '../../../../mapper/config/config.ts';
import type { Decision } from '../../../../mapper/decisions/decision.ts';
import { decide } from '../../../../mapper/decisions/verdict.ts';
import { PHASES, type Pod } from '../../../../mapper/objects/pod.ts';
import {
  ALLOW_BYPASS,
  BYPASS,
  GATEWAY,
  KMESH_REDIRECTION,
  MODE,
  REDIRECTION,
} from '../../../harness/label-names.ts';
import {
  DEFAULT_SETTINGS,
  expected,
  type Expected,
  REASONS,
  type Settings,
} from '../../../harness/verdict-oracle.ts';
import { configured, SIDECAR } from './verdict-input.ts';
import { podWith } from '../pod-with.ts';

/** What rules before the labels of modes look at: all values that mean something, some in odd case, and one that means nothing. */
const TRAITS = {
  hostNetwork: [false, true],
  phase: PHASES,
  /** Of one that has ended by its phase. */
  runsOn: [undefined, 'unknown', 'was in', 'was out'],
  proxy: [false, true],
  excluded: [false, true],
  gateway: [undefined, 'Istio.io-mesh-controller', 'unknown'],
  runtime: [undefined, 'kata-clh', 'unknown'],
  kmesh: [undefined, 'enabled', 'disabled'],
  writer: [undefined, 'cgroute', 'istio-cni'],
} as const;
/** The same of labels and annotations of modes, and of what follows them. */
const LABELS = {
  redirection: [undefined, 'Disabled', 'enabled', 'unknown'],
  podLabel: [undefined, 'Ambient', 'kmesh', 'None', 'unknown'],
  namespaceLabel: [undefined, 'ambient', 'KMESH', 'none', 'unknown'],
  sidecar: [false, true],
  bypass: [undefined, 'enabled', 'OutBound', 'inbound', 'unknown'],
} as const;
type Values<T extends Readonly<Record<string, readonly unknown[]>>> = {
  readonly [K in keyof T]: T[K][number];
};
type Point = Values<typeof TRAITS> & Values<typeof LABELS>;

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
      runtimeClasses: ['unk*'],
      takeOver: true,
      proxy: { label: ['app', 'ztunnel'], namespaces: ['kube-system'] },
    },
  },
];

/** Every combination of the values. */
function product<T extends Readonly<Record<string, readonly unknown[]>>>(space: T): Values<T>[] {
  let all: Record<string, unknown>[] = [{}];
  for (const [key, values] of Object.entries(space))
    all = all.flatMap((point) => values.map((value) => ({ ...point, [key]: value })));
  return all as unknown as Values<T>[];
}

const ALL_TRAITS = product(TRAITS);
const ALL_LABELS = product(LABELS);
/** Every combination of both would be half a million: a random part of those has a test of its own. */
const SOME_LABELS = ALL_LABELS.filter((_, at) => at % 401 === 0);
const isUsual = (key: string, value: unknown): boolean =>
  value === (key === 'phase' ? 'Running' : TRAITS[key as keyof typeof TRAITS][0]);
const SOME_TRAITS = ALL_TRAITS.filter(
  (traits) => Object.entries(traits).filter(([key, value]) => !isUsual(key, value)).length <= 1,
);
const POINTS: readonly Point[] = [
  ...ALL_TRAITS.flatMap((traits) => SOME_LABELS.map((labels) => ({ ...traits, ...labels }))),
  ...SOME_TRAITS.flatMap((traits) => ALL_LABELS.map((labels) => ({ ...traits, ...labels }))),
];

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
    ...(point.runtime === undefined ? {} : { runtimeClass: point.runtime }),
    annotations: {
      ...(point.sidecar ? SIDECAR : {}),
      ...texts({ [REDIRECTION]: point.redirection, [KMESH_REDIRECTION]: point.kmesh }),
    },
    writers: texts({ [REDIRECTION]: point.writer, [KMESH_REDIRECTION]: point.writer }),
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

/** What was true of the pod before it ended. */
const BEFORE = new Map(
  (['ambient', 'none'] as const).map((mode) => {
    const pod = podWith({ labels: { [MODE]: mode } });
    return [
      mode === 'none' ? 'was out' : 'was in',
      { is: decide(pod, undefined, defaultConfig('manifest')), should: expected(pod) },
    ];
  }),
);

function assertOracleAgrees(point: Point, { settings, permission }: Configuration, config: Config): Decision {
  const pod = podAt(point);
  const theirs = texts({ [MODE]: point.namespaceLabel, [ALLOW_BYPASS]: permission });
  const before = BEFORE.get(point.runsOn ?? '');
  const decision = decide(
    pod,
    { name: pod.namespace, labels: theirs },
    config,
    undefined,
    point.runsOn && { isRunning: true, last: before?.is },
  );
  const is = said(decision);
  const should = expected(
    point.runsOn === undefined ? pod : { ...pod, runsOn: before?.should ?? true },
    theirs,
    { ...DEFAULT_SETTINGS, ...settings },
  );
  const wanted = { ...should, enrolled: should.verdict !== 'out' };
  for (const key of Object.keys(is) as (keyof typeof is)[])
    if (is[key] !== wanted[key])
      assert.fail(`${JSON.stringify(point)}: expected ${key} to be ${wanted[key]}, got ${is[key]}`);
  const { trace } = decision;
  if (trace.some(({ rule }, at) => rule <= (trace[at - 1]?.rule ?? 0)))
    assert.fail(`${JSON.stringify(point)}: the trace is not in order: ${JSON.stringify(trace)}`);
  return decision;
}

describe('the verdict', () => {
  for (const configuration of CONFIGURATIONS) {
    const config = configured(configuration.settings);
    test(`is the oracle's ${configuration.name}, whatever decides first`, () => {
      const reasons = new Set(POINTS.map((point) => assertOracleAgrees(point, configuration, config).reason));
      if (configuration.settings.allowed === undefined)
        assert.deepEqual(
          [...reasons].toSorted(),
          REASONS.filter((reason) => !(config.takeOver && reason === 'other-mesh')).toSorted(),
        );
    });

    test(`is the oracle's ${configuration.name}, whatever comes together`, () => {
      const values = Object.entries({ ...TRAITS, ...LABELS });
      const points = fc.record(
        Object.fromEntries(values.map(([key, all]) => [key, fc.constantFrom<unknown>(...all)])),
      );
      fc.assert(
        fc.property(points, (point) => {
          assertOracleAgrees(point as unknown as Point, configuration, config);
        }),
        { numRuns: 5000 },
      );
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
          defaultConfig('manifest'),
        );
        assert.equal(decision.trace.filter(({ outcome }) => outcome === 'decides').length, 1);
      }),
    );
  });
});
