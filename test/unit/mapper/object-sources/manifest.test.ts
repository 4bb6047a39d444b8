import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import fc from 'fast-check';

import { parseManifest } from '../../../../mapper/object-sources/manifest.ts';
import { CgrouteError } from '../../../../native/error.ts';
import { MODE } from '../../../harness/label-names.ts';

const UID = '2c48913c-b29f-11e7-9350-020968147796';
const UID2 = 'aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee';

const TWO = `# a comment
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  labels: {istio.io/dataplane-mode: ambient}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: ${UID}}
spec: {nodeName: n1}
status: {podIP: 10.0.0.5}
---
---
apiVersion: v1
kind: List
items:
- kind: Pod
  metadata: {name: db, uid: ${UID2}}
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: web}
`;

describe('a manifest', () => {
  test('has the namespaces and pods of all documents and lists', () => {
    const { pods, namespaces } = parseManifest(TWO, 'pods.yaml');
    assert.deepEqual(
      namespaces.map(({ name, labels }) => [name, { ...labels }]),
      [['shop', { [MODE]: 'ambient' }]],
    );
    assert.deepEqual(
      pods.map(({ namespace, name, uid, ready, ips }) => [namespace, name, uid, ready, ips]),
      [
        ['shop', 'web', UID, true, ['10.0.0.5']],
        ['default', 'db', UID2, true, []],
      ],
    );
  });

  test('passes over other kinds with a note', () => {
    assert.deepEqual(parseManifest(TWO, 'pods.yaml').notes, [
      'pods.yaml:20: passed over Deployment of apps/v1; only Namespace and Pod of v1 are read',
    ]);
  });

  test('may be JSON, as kubectl writes it, and a list of one kind', () => {
    const list = { kind: 'PodList', apiVersion: 'v1', items: [{ metadata: { name: 'a', uid: UID } }] };
    assert.equal(parseManifest(JSON.stringify(list), 'x').pods[0]?.name, 'a');
  });

  for (const text of ['', '\n', '# nothing\n', '---\n---\n', 'kind: List\nitems: []\n']) {
    test(`may hold nothing: ${JSON.stringify(text)}`, () =>
      assert.deepEqual(parseManifest(text, 'x'), { pods: [], namespaces: [], notes: [] }));
  }

  const pod = (name: string, uid: string, rest = ''): string =>
    `kind: Pod\nmetadata:\n  name: ${name}\n  uid: ${uid}\n${rest}`;
  const broken: readonly (readonly [string, string, RegExp])[] = [
    ['YAML that does not parse', 'kind: Pod\nmetadata: [', /^f\.yaml:2: this is not YAML: /],
    ['a key twice', 'kind: Pod\nkind: Pod\n', /^f\.yaml:2: this is not YAML: .*unique/],
    ['an error in a later document', `${pod('a', UID)}---\nx: {`, /^f\.yaml:6: this is not YAML/],
    ['a bare text', 'hello', /^f\.yaml:1: expected an object with a kind, got "hello"$/],
    ['a list without a kind', '\n\n- a\n', /^f\.yaml:3: expected an object with a kind, got a list$/],
    ['no kind', 'metadata: {name: a}\n', /^f\.yaml:1: expected an object with a kind, got one without$/],
    ['a list without items', 'kind: List\n', /^f\.yaml:1: expected a list below items of this List/],
    ['a list that holds itself', '&a\nkind: List\nitems:\n- *a\n', /^f\.yaml:4: .*alias of a List/],
    ['an alias of nothing', 'kind: Pod\nmetadata: *gone\n', /^f\.yaml:1: pod: Unresolved alias/],
    [
      'a missing UID',
      'kind: Pod\nmetadata:\n  name: a\n',
      /^f\.yaml:3: pod default\/a: metadata\.uid: expected a text, got nothing$/,
    ],
    [
      'a UID of no known form',
      pod('a', 'x1'),
      /^f\.yaml:4: pod default\/a: metadata\.uid: expected a UID .*got "x1"$/,
    ],
    [
      'a label that is no text',
      pod('a', UID, '  labels:\n    b: c\n    app: true\n'),
      /^f\.yaml:7: pod default\/a: metadata\.labels\.app: .*got the boolean true$/,
    ],
    [
      'an IP that is none',
      pod('a', UID, 'status:\n  podIPs:\n  - ip: 10.0.0.1\n  - ip: x\n'),
      /^f\.yaml:8: .*status\.podIPs\[1\]\.ip: expected an IP address, got "x"$/,
    ],
    [
      'a pod twice',
      `${pod('a', UID)}---\n${pod('a', UID2)}`,
      /^f\.yaml:6: pod default\/a is already at line 1$/,
    ],
    [
      'a UID twice',
      `${pod('a', UID)}---\n${pod('b', UID.toUpperCase())}`,
      /^f\.yaml:6: pod default\/b has the UID 2c48.* pod default\/a at line 1$/,
    ],
    [
      'a namespace twice',
      'kind: Namespace\nmetadata: {name: a}\n---\nkind: Namespace\nmetadata: {name: a}\n',
      /^f\.yaml:4: namespace a is already at line 1$/,
    ],
  ];
  for (const [name, text, sentence] of broken) {
    test(`is refused with file and line: ${name}`, () => {
      assert.throws(
        () => parseManifest(text, 'f.yaml'),
        (error: unknown) => {
          assert.ok(error instanceof CgrouteError);
          assert.equal(error.code, 'EMANIFEST');
          assert.match(error.message, sentence);
          assert.doesNotMatch(error.message, /\n/);
          return true;
        },
      );
    });
  }

  test('is read or refused with file and line, whatever the bytes', () => {
    const cut = fc.nat({ max: TWO.length }).map((at) => TWO.slice(0, at));
    const spliced = fc
      .tuple(fc.nat({ max: TWO.length }), fc.string())
      .map(([at, text]) => TWO.slice(0, at) + text + TWO.slice(at));
    fc.assert(
      fc.property(fc.oneof(fc.string({ unit: 'binary' }), cut, spliced), (text) => {
        try {
          parseManifest(text, 'f.yaml');
        } catch (error) {
          assert.ok(error instanceof CgrouteError, String(error));
          assert.match(error.message, /^f\.yaml:\d+: [^\n]+$/);
        }
      }),
      { numRuns: 200 },
    );
  });
});
