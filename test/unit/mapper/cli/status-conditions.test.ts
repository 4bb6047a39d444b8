/** What is wrong on a node, of whom and how often; and what is not wrong although it is unusual. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Connections, NodeFacts, PodStatus } from '../../../../mapper/cli/node-facts.ts';
import { conditionsOf, isAsWanted } from '../../../../mapper/cli/status-conditions.ts';
import { NO_PROXY } from '../../../../mapper/cli/status-proxy.ts';
import { branch } from '../../../../native/layout/layouts.ts';

const connections = (counts: Partial<Connections> = {}): Connections => ({
  ...(Object.fromEntries(Object.keys(branch).map((name) => [name, 0])) as Connections),
  ...counts,
});
const pod = (verdict: string, counts: Partial<Connections> = {}): PodStatus => ({
  namespace: 'shop',
  name: 'web',
  uid: 'u',
  verdict,
  reason: '',
  ips: [],
  cgroups: [],
  connections: connections(counts),
});
const PROXY = { ...NO_PROXY, address: '10.0.0.5', pod: 'istio-system/z', ready: true, notListening: [] };
const LIVE = { ready: true, sources: [], failedPods: 0, drift: 0 };
const FINE: NodeFacts = {
  node: 'node-a',
  redirecting: true,
  agent: { running: true, ready: true, answers: true, pid: 7, version: '1' },
  proxy: PROXY,
  policies: { unknownPods: 'deny', whenProxyDown: 'deny' },
  sources: [{ name: 'pods', state: 'ok', detail: '' }],
  capabilities: null,
  unseen: [],
  pods: [
    pod('in', { noProxyDenied: 2, noProxyAllowed: 3, redirected: 9 }),
    pod('in', { noProxyDenied: 2 }),
    pod('out'),
  ],
  unknown: [],
  host: connections({ unknownDenied: 5, unknownAllowed: 6 }),
  maps: [{ name: 'pod_info_map', entries: 3, capacity: 4 }],
  live: LIVE,
};
const wrong = (changes: Partial<NodeFacts>): string[] =>
  conditionsOf({ ...FINE, ...changes })
    .filter(({ status }) => status === 'False')
    .map(({ type, message }) => `${type}: ${message}`);

const DOWN: NodeFacts['agent'] = { running: false, ready: false, answers: false, pid: null, version: '1' };
const STUCK: NodeFacts['agent'] = { running: true, ready: false, answers: false, pid: 7, version: '1' };
const unknown = (isPopulated: boolean | null): NodeFacts['unknown'] => [{ id: '1', path: '/a', isPopulated }];
const state = (name: string, is: 'degraded' | 'failed' | 'off'): NodeFacts['sources'] => [
  { name, state: is, detail: 'why' },
];

describe('it is wrong', () => {
  const cases: readonly (readonly [string, Partial<NodeFacts>, string])[] = [
    [
      'that no proxy is known',
      { proxy: NO_PROXY },
      'ProxyServing: no proxy of this node is known: new connections of 2 enrolled pods are refused (whenProxyDown: deny), 4 so far',
    ],
    [
      'that connections pass the mesh by, as no proxy is known',
      { proxy: NO_PROXY, policies: { unknownPods: 'deny', whenProxyDown: 'allow' } },
      'ProxyServing: no proxy of this node is known: new connections of 2 enrolled pods pass the mesh by (whenProxyDown: allow), 3 so far',
    ],
    [
      'that the proxy is unready and deaf',
      {
        proxy: {
          ...PROXY,
          ready: false,
          unready: 'Ready=False',
          notListening: ['10.0.0.5:15001'],
          trouble: { since: '2026-11-29T02:13:00.123Z', redirectedBefore: 5 },
        },
      },
      'ProxyServing: the proxy istio-system/z is not ready (Ready=False), and nobody listens at 10.0.0.5:15001 of the proxy istio-system/z: new connections of 2 enrolled pods are sent there, 4 since 2026-11-29T02:13:00Z',
    ],
    [
      'that the proxy has no address of a family',
      { pods: [{ ...pod('in', { noProxyDenied: 7 }), ips: ['10.0.0.9', 'fd00::9'] }, pod('in')] },
      'ProxyServing: the proxy istio-system/z has no IPv6 address that counts: new IPv6 connections of 1 enrolled pod are refused (whenProxyDown: deny), 7 so far',
    ],
    [
      'that no proxy is known, where the pods are bypassed in one direction',
      {
        proxy: NO_PROXY,
        pods: ['bypass', 'bypass-inbound'].map((reason) => ({ ...pod('bypass'), reason })),
      },
      'ProxyServing: no proxy of this node is known: new connections of 1 enrolled pod are refused (whenProxyDown: deny), 0 so far',
    ],
    [
      'that the taint of the node stays',
      { sources: state('startup-taint', 'failed') },
      'SourcesFollowed: startup-taint is failed: why',
    ],
    [
      'that nothing is attached',
      { redirecting: false },
      'Redirecting: no program of cgroute is attached: new connections of 2 enrolled pods pass the mesh by',
    ],
    [
      'that a map is full',
      { maps: [{ name: 'pod_info_map', entries: 4, capacity: 4 }] },
      'MapsHaveRoom: pod_info_map has no room for more than its 4 entries; pods that are not in it are treated as unknown: see maxPods',
    ],
    [
      'that the agent does not answer',
      { agent: STUCK, live: undefined },
      'AgentReady: the agent runs and does not answer: it is starting, or in another network namespace',
    ],
    [
      'that the agent is not ready',
      { agent: { ...STUCK, answers: true } },
      'AgentReady: the agent is not ready: it has not heard yet of all pods and namespaces, or its first pass through them fails',
    ],
    [
      'that entries cannot be written',
      { live: { ...LIVE, failedPods: 1 } },
      "PodsWritten: the entries of 1 pod cannot be written, which have an old verdict or none; the agent's log says why",
    ],
    [
      'that pods are unknown and refused',
      { unknown: unknown(true) },
      'PodsKnown: 1 cgroups with processes belong to pods that nobody knows: their connections are refused (unknownPods: deny), 5 so far',
    ],
    [
      'that pods are unknown and pass',
      { unknown: unknown(true), policies: { unknownPods: 'allow', whenProxyDown: 'deny' } },
      'PodsKnown: 1 cgroups with processes belong to pods that nobody knows: their connections pass the mesh by (unknownPods: allow), 6 so far',
    ],
    ['that a source fails', { sources: state('pods', 'degraded') }, 'SourcesFollowed: pods is degraded: why'],
    [
      'that something may not be looked at',
      { unseen: ['cgroups below /a: EACCES', 'b'] },
      'EverythingSeen: cgroups below /a: EACCES; b',
    ],
    [
      'that something had been altered',
      { live: { ...LIVE, drift: 2 } },
      'NothingDrifted: 2 programs or entries had been removed or altered by somebody else, and were put back just now',
    ],
  ];
  for (const [name, changes, expected] of cases)
    test(name, () => assert.deepEqual(wrong(changes), [expected]));

  test('that no agent runs, and what it left redirects, also where it has not left its name', () =>
    assert.match(
      wrong({ node: null, agent: DOWN, live: undefined }).join(),
      /what it left pinned goes on redirecting/,
    ));

  test('that no agent runs, and what follows comes first', () => {
    assert.deepEqual(
      wrong({ agent: DOWN, live: undefined, proxy: NO_PROXY }).map((text) => text.split(':', 1)[0]),
      ['ProxyServing', 'AgentRunning'],
    );
    assert.match(
      wrong({ agent: DOWN, live: undefined, redirecting: false }).join(),
      /pass the mesh by.*nothing is redirected/,
    );
    assert.match(
      wrong({ node: null, agent: DOWN, live: undefined, redirecting: false, proxy: NO_PROXY }).join(),
      /^AgentRunning: [^:]* nothing of cgroute is pinned here, and nothing is redirected$/,
    );
  });
});

test('nothing is wrong', () => {
  for (const changes of [
    {},
    { proxy: NO_PROXY, pods: [pod('out')] },
    { proxy: { ...PROXY, notListening: null } },
    { unknown: unknown(false) },
    { unknown: unknown(null) },
    { sources: state('process-events', 'failed') },
    { sources: state('sidecars', 'off') },
    { live: { ready: true, sources: [] } },
    { redirecting: false, agent: { ...STUCK, answers: true }, node: null },
  ] satisfies readonly Partial<NodeFacts>[]) {
    const found = wrong(changes).filter((text) => !text.startsWith('AgentReady'));
    assert.deepEqual(found, [], JSON.stringify(changes));
  }
  assert.equal(isAsWanted(conditionsOf({ ...FINE, proxy: NO_PROXY })), false);
  assert.equal(
    isAsWanted(conditionsOf({ ...FINE, live: undefined })),
    true,
    'what is not known is not wrong',
  );
  assert.deepEqual(
    conditionsOf({ ...FINE, live: undefined }).flatMap(({ type, status }) =>
      status === 'Unknown' ? [type] : [],
    ),
    ['PodsWritten', 'SourcesFollowed', 'NothingDrifted'],
  );
});
