import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import fc from 'fast-check';

import { namespaceOf } from '../../../../mapper/objects/namespace.ts';
import { podOf, type Pod } from '../../../../mapper/objects/pod.ts';
import { isProblem } from '../../../../mapper/objects/projection.ts';
import {
  CONFIG_HASH,
  KMESH_REDIRECTION,
  REDIRECTION,
  SIDECAR_STATUS,
  TRAFFIC,
} from '../../../harness/label-names.ts';

const UID = '2c48913c-b29f-11e7-9350-020968147796';
const RAW = {
  metadata: {
    name: 'web',
    namespace: 'shop',
    uid: UID.toUpperCase(),
    creationTimestamp: '2026-01-31T12:00:00Z',
    deletionTimestamp: '2026-01-31T13:00:00Z',
    labels: { app: 'web' },
    annotations: {
      [SIDECAR_STATUS]: '{}',
      [`${TRAFFIC}excludeOutboundPorts`]: '3306',
      [CONFIG_HASH]: 'ABC',
      'kubectl.kubernetes.io/last-applied-configuration': 'long',
    },
  },
  spec: { nodeName: 'n1', hostNetwork: true, serviceAccountName: 'till', containers: [{ name: 'c' }] },
  status: {
    phase: 'Running',
    podIP: '10.0.0.5',
    podIPs: [{ ip: '10.0.0.5' }, { ip: 'FD00:0::5' }],
    conditions: [
      { type: 'PodScheduled', status: 'True' },
      { type: 'Ready', status: 'True' },
    ],
  },
};

function projected(raw: unknown, origin?: 'api' | 'manifest'): Pod {
  const pod = podOf(raw, origin);
  if (isProblem(pod)) assert.fail(pod.problem);
  return pod;
}

describe('the projection of a pod', () => {
  test('keeps of all writers those of the annotations about redirection', () => {
    const entry = (manager: unknown, ...keys: string[]): object => ({
      manager,
      operation: 'Update',
      time: '2026-01-31T12:00:00Z',
      fieldsV1: {
        'f:metadata': { 'f:annotations': Object.fromEntries(keys.map((key) => [`f:${key}`, {}])) },
      },
    });
    const writersIn = (managedFields: unknown, annotations: object = { [REDIRECTION]: 'enabled' }) =>
      projected({ metadata: { name: 'web', uid: UID, annotations, managedFields } }).writers;

    assert.deepEqual(writersIn([entry('kubelet', 'other'), entry('cgroute', REDIRECTION)]), {
      [REDIRECTION]: 'cgroute',
    });
    const both = { [REDIRECTION]: 'enabled', [KMESH_REDIRECTION]: 'enabled' };
    assert.deepEqual(
      writersIn(
        [entry('cgroute', REDIRECTION), entry('istio-cni', REDIRECTION), entry('kmesh', KMESH_REDIRECTION)],
        both,
      ),
      { [REDIRECTION]: 'istio-cni', [KMESH_REDIRECTION]: 'kmesh' },
    );
    assert.equal(writersIn([entry('istio-cni', REDIRECTION)], {}), undefined);
    for (const unknown of [
      undefined,
      null,
      {},
      [null, 7, 'text', { manager: 'x' }, { manager: 'x', fieldsV1: { 'f:metadata': null } }],
      [entry('before-first-apply', REDIRECTION), entry('', REDIRECTION), entry(7, REDIRECTION)],
      [entry('kubelet', 'other')],
    ])
      assert.equal(writersIn(unknown), undefined, JSON.stringify(unknown));
  });

  test('keeps what decides and nothing else', () => {
    const { labels, annotations, ...rest } = projected(RAW);
    assert.deepEqual(rest, {
      namespace: 'shop',
      name: 'web',
      uid: UID,
      configHash: 'abc',
      node: 'n1',
      hostNetwork: true,
      serviceAccount: 'till',
      phase: 'Running',
      ready: true,
      terminating: true,
      createdAt: Date.UTC(2026, 0, 31, 12),
      ips: ['10.0.0.5', 'fd00::5'],
    });
    assert.deepEqual({ ...labels }, { app: 'web' });
    assert.deepEqual(Object.keys(annotations).sort(), [
      CONFIG_HASH,
      SIDECAR_STATUS,
      `${TRAFFIC}excludeOutboundPorts`,
    ]);
  });

  test('has labels without a prototype', () => {
    const { labels } = projected({
      metadata: { name: 'a', uid: UID, labels: JSON.parse('{"__proto__":"x","constructor":"y"}') as unknown },
    });
    assert.equal(Object.getPrototypeOf(labels), null);
    assert.deepEqual(Object.entries(labels), [
      ['__proto__', 'x'],
      ['constructor', 'y'],
    ]);
  });

  test('without conditions is ready in a manifest, and not ready from the API', () => {
    const raw = { metadata: { name: 'a', uid: UID } };
    assert.deepEqual([projected(raw, 'manifest').ready, projected(raw, 'manifest').phase], [true, 'Running']);
    assert.deepEqual([projected(raw, 'api').ready, projected(raw, 'api').phase], [false, 'Pending']);
  });

  test('is as ready as its condition', () => {
    const raw = (status: unknown): unknown => ({
      metadata: { name: 'a', uid: UID },
      status: { conditions: [{ type: 'Ready', status }] },
    });
    assert.equal(projected(raw('False'), 'manifest').ready, false);
    assert.equal(projected(raw('Unknown'), 'manifest').ready, false);
    assert.equal(projected(raw('True'), 'manifest').ready, true);
    assert.equal(
      projected({ metadata: { name: 'a', uid: UID }, status: { conditions: [] } }, 'manifest').ready,
      false,
    );
  });

  test('leaves out what a newer API server may write, and names it in a manifest', () => {
    const raw = { metadata: { name: 'a', uid: UID }, status: { phase: 'Resting', podIP: 'soon' } };
    assert.deepEqual([projected(raw, 'api').phase, projected(raw, 'api').ips], ['Unknown', []]);
    const problem = podOf(raw, 'manifest');
    assert.ok(isProblem(problem));
    assert.match(problem.problem, /^status\.phase: expected one of .*, got "Resting"$/);
    assert.deepEqual(problem.at, ['status', 'phase']);
  });

  test('runs as the service account default where none is named', () => {
    for (const spec of [undefined, {}, { serviceAccountName: '' }, { serviceAccountName: null }])
      for (const origin of ['api', 'manifest'] as const)
        assert.equal(
          projected({ metadata: { name: 'a', uid: UID }, spec }, origin).serviceAccount,
          'default',
        );
  });

  const broken: readonly (readonly [unknown, RegExp])[] = [
    [undefined, /^object: expected a mapping, got nothing/],
    [[], /^object: expected a mapping, got a list/],
    [{}, /^metadata: expected a mapping, got nothing/],
    [{ metadata: { name: 'a' } }, /^metadata\.uid: expected a text, got nothing/],
    [{ metadata: { name: 3, uid: UID } }, /^metadata\.name: expected a text .*got the number 3/],
    [{ metadata: { name: 'a', uid: 'x' } }, /^metadata\.uid: expected a UID such as .*got "x"/],
    [
      { metadata: { name: 'a', uid: UID, labels: { 'a.b/c': true } } },
      /^metadata\.labels\["a\.b\/c"\]: expected a text .*got the boolean true/,
    ],
    [
      { metadata: { name: 'a', uid: UID }, spec: { hostNetwork: 'yes' } },
      /^spec\.hostNetwork: expected true or false, got "yes"/,
    ],
    [
      { metadata: { name: 'a', uid: UID }, spec: { serviceAccountName: true } },
      /^spec\.serviceAccountName: expected a text .*got the boolean true/,
    ],
    [
      { metadata: { name: 'a', uid: UID, creationTimestamp: 'today' } },
      /^metadata\.creationTimestamp: expected a time such as .*got "today"/,
    ],
    [
      { metadata: { name: 'a', uid: UID }, status: { podIPs: [{ ip: '1.2.3.4' }, { ip: '1.2.3' }] } },
      /^status\.podIPs\[1\]\.ip: expected an IP address, got "1\.2\.3"/,
    ],
    [
      { metadata: { name: 'a', uid: UID }, status: { conditions: 3 } },
      /^status\.conditions: expected a list, got the number 3/,
    ],
  ];
  for (const [raw, sentence] of broken) {
    test(`says in one sentence: ${sentence.source}`, () => {
      const problem = podOf(raw, 'manifest');
      assert.ok(isProblem(problem));
      assert.match(problem.problem, sentence);
    });
  }

  test('is an object or a sentence, never an exception', () => {
    const anything = fc.anything({
      withBigInt: true,
      withMap: true,
      withSymbol: true,
      withNullPrototype: true,
    } as fc.ObjectConstraints);
    const near = fc.record({
      metadata: fc.oneof(anything, fc.record({ name: anything, uid: anything, labels: anything })),
      spec: anything,
      status: fc.oneof(anything, fc.record({ phase: anything, podIPs: anything, conditions: anything })),
    });
    fc.assert(
      fc.property(fc.oneof(anything, near), (raw) => {
        for (const object of [podOf(raw), podOf(raw, 'manifest'), namespaceOf(raw)])
          assert.equal(typeof object, 'object');
      }),
      { numRuns: 300 },
    );
    const hostile = new Proxy(
      {},
      {
        get: () => {
          throw new Error('no');
        },
      },
    );
    assert.ok(isProblem(podOf(hostile)));
  });
});
