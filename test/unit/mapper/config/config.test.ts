import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import fc from 'fast-check';

import { configReference, defaultConfig, parseConfig } from '../../../../mapper/config/config.ts';
import { CgrouteError } from '../../../../native/error.ts';

describe('the configuration', () => {
  test('has defaults', () => {
    const {
      proxy: { selector, ...proxy },
      ...rest
    } = defaultConfig('kube');
    assert.equal(selector.text, 'app=ztunnel');
    assert.deepEqual(
      { ...rest, proxy },
      {
        meshModes: ['ambient', 'kmesh'],
        excludedNamespaces: ['kube-system', 'istio-system'],
        gatewayControllers: [
          'istio.io-mesh-controller',
          'istio.io-gateway-controller',
          'istio.io-eastwest-controller',
        ],
        runtimeClasses: ['kata', 'kata-*', 'gvisor', 'gvisor-*', 'runsc', 'runsc-*'],
        takeOver: false,
        proxy: { namespaces: ['istio-system'], outboundPort: 15001, inboundPort: 15006 },
        enrollment: 'live',
        existingConnections: 'keep',
        unknownPods: 'deny',
        whenProxyDown: 'deny',
        firstStart: 'wait',
        nestedNetworks: 'untouched',
        otherNetworks: 'untouched',
        bypass: { allowed: 'any' },
        sweepSeconds: 30,
        relistSeconds: 600,
        maxPods: 4096,
        maxConnections: 262_144,
        maxTrafficEntries: 65_536,
        startupTaint: '',
        sidecarUser: 1337,
        sidecars: true,
        maxConnectionsPerPod: 32_768,
        annotate: true,
        events: true,
        log: { level: 'info' },
      },
    );
  });

  for (const text of [
    '',
    '# only words\n',
    '---\n',
    'proxy:\n',
    'proxy: {}\nlog:\n  # level: debug\n',
    'meshModes:\n',
  ]) {
    test(`is the default one for ${JSON.stringify(text)}`, () => {
      assert.deepEqual(parseConfig(text, 'c.yaml'), defaultConfig('kube'));
      assert.deepEqual(parseConfig(text, 'c.yaml', 'manifest'), defaultConfig('manifest'));
    });
  }

  test("looks for the proxy in Istio's namespace, but where nobody else writes pods", () => {
    const from = (text: string, source: 'kube' | 'manifest'): readonly string[] =>
      parseConfig(text, 'c.yaml', source).proxy.namespaces;
    for (const text of ['', 'proxy: {}\n', 'proxy: {selector: a=b}\n', 'proxy: {namespaces: }\n']) {
      assert.deepEqual([from(text, 'kube'), from(text, 'manifest')], [['istio-system'], ['*']], text);
    }
    for (const [text, is] of [
      ['proxy: {namespaces: ["*"]}', ['*']],
      ['proxy: {namespaces: [mesh, "*"]}', ['mesh', '*']],
      ['proxy: {namespaces: [mesh]}', ['mesh']],
    ] as const)
      assert.deepEqual([from(text, 'kube'), from(text, 'manifest')], [is, is], text);
  });

  test('takes what the file sets and keeps the rest', () => {
    const config = parseConfig(
      'meshModes: [Own, kmesh, OWN]\nexcludedNamespaces: []\nproxy:\n  selector: "role in (a, b)"\n  outboundPort: 25001\nunknownPods: allow\nlog: {level: debug}\n',
      'c.yaml',
    );
    assert.deepEqual(config.meshModes, ['own', 'kmesh']);
    assert.deepEqual(config.excludedNamespaces, []);
    assert.equal(config.proxy.selector.matches({ role: 'b' }), true);
    assert.deepEqual([config.proxy.outboundPort, config.proxy.inboundPort], [25001, 15006]);
    assert.deepEqual(
      [config.unknownPods, config.whenProxyDown, config.log.level],
      ['allow', 'deny', 'debug'],
    );
  });

  test('may use anchors and aliases', () => {
    assert.deepEqual(parseConfig('meshModes: &a [x]\nexcludedNamespaces: *a\n', 'c').excludedNamespaces, [
      'x',
    ]);
  });

  const broken: readonly (readonly [string, RegExp])[] = [
    [
      'proxy:\n  outbondPort: 3',
      /^c\.yaml:2: unknown key "proxy\.outbondPort"; did you mean "proxy\.outboundPort"\?$/,
    ],
    ['sweepSecond: 3', /^c\.yaml:1: unknown key "sweepSecond"; did you mean "sweepSeconds"\?$/],
    ['Proxy: {}', /^c\.yaml:1: unknown key "Proxy"; did you mean "proxy"\?$/],
    ['zzzzzzzzzz: 3', /^c\.yaml:1: unknown key "zzzzzzzzzz"; known keys are meshModes, /],
    [
      'proxy.selector: a=b',
      /^c\.yaml:1: unknown key "proxy\.selector"; write it as "selector:" on a line of its own, indented below "proxy:"$/,
    ],
    ['__proto__: 3', /^c\.yaml:1: unknown key "__proto__"/],
    ['\n# x\nproxy: 3', /^c\.yaml:3: proxy: expected settings below it \(selector, .*\), got the number 3$/],
    [
      'existingConnections: close',
      /^c\.yaml:1: existingConnections: expected one of "keep", "reset", got "close"$/,
    ],
    ['enrollment: lively', /^c\.yaml:1: enrollment: expected one of "live", "new-pods", got "lively"$/],
    ['unknownPods: DENY', /^c\.yaml:1: unknownPods: expected one of "deny", "allow", got "DENY"$/],
    [
      'bypass:\n  allowed: yes',
      /^c\.yaml:2: bypass\.allowed: expected one of "any", "namespace", "never", got "yes"$/,
    ],
    ['meshModes: ambient', /^c\.yaml:1: meshModes: expected a list, .*got "ambient"$/],
    ['meshModes: []', /^c\.yaml:1: meshModes: .*got an empty list$/],
    ['meshModes: [none]', /^c\.yaml:1: meshModes: .*got "none", which always means "not in the mesh"$/],
    [
      'meshModes:\n- ambient\n- 3\n',
      /^c\.yaml:3: meshModes: expected each item to be a label value, got the number 3$/,
    ],
    [
      'proxy:\n  namespaces: []',
      /^c\.yaml:2: proxy\.namespaces: expected a list, each item .*, at least one, got an empty list; for any namespace write \["\*"\]$/,
    ],
    [
      'proxy: {namespaces: [mesh-*]}',
      /^c\.yaml:1: proxy\.namespaces: expected each item to be a namespace's name, or "\*" for any, got "mesh-\*"$/,
    ],
    ['excludedNamespaces: ["*"]', /^c\.yaml:1: excludedNamespaces: .*got "\*"$/],
    ['excludedNamespaces: [Kube_System]', /^c\.yaml:1: excludedNamespaces: .*got "Kube_System"$/],
    [
      'proxy: {selector: ""}',
      /^c\.yaml:1: proxy\.selector: expected a label selector such as "app=ztunnel", got ""$/,
    ],
    [
      'proxy: {outboundPort: 70000}',
      /^c\.yaml:1: proxy\.outboundPort: expected a whole number from 1 to 65535, got the number 70000$/,
    ],
    ['sweepSeconds: "30"', /^c\.yaml:1: sweepSeconds: expected a whole number .*got "30"$/],
    ['sweepSeconds: 1.5', /^c\.yaml:1: sweepSeconds: .*got the number 1\.5$/],
    ['- a', /^c\.yaml:1: expected settings as "key: value"/],
    ['x: [', /^c\.yaml:1: this is not YAML: /],
    ['maxPods: 100\nmaxPods: 200', /^c\.yaml:2: this is not YAML: .*unique/],
    ['maxPods: 100\n---\nmaxPods: 200', /^c\.yaml:\d: expected one YAML document/],
    ['log: *gone', /^c\.yaml:1: log: Unresolved alias/],
  ];
  for (const [text, sentence] of broken) {
    test(`is refused with file, line and key: ${JSON.stringify(text)}`, () => {
      assert.throws(
        () => parseConfig(text, 'c.yaml'),
        (error: unknown) => {
          assert.ok(error instanceof CgrouteError);
          assert.equal(error.code, 'ECONFIG');
          assert.match(error.message, sentence);
          return true;
        },
      );
    });
  }

  test('is read or refused in one sentence, whatever the bytes', () => {
    const good = 'meshModes: [a]\nproxy:\n  selector: app=x\n  outboundPort: 1\nlog: {level: info}\n';
    const spliced = fc
      .tuple(fc.nat({ max: good.length }), fc.string())
      .map(([at, text]) => good.slice(0, at) + text + good.slice(at));
    fc.assert(
      fc.property(fc.oneof(fc.string({ unit: 'binary' }), spliced), (text) => {
        try {
          parseConfig(text, 'c.yaml');
        } catch (error) {
          assert.ok(error instanceof CgrouteError, String(error));
          assert.match(error.message, /^c\.yaml:\d+: [^\n]+$/);
        }
      }),
      { numRuns: 200 },
    );
  });
});

describe("the configuration's reference", () => {
  test('has a row for every setting, with its default', () => {
    const rows = configReference()
      .split('\n')
      .filter((line) => line.startsWith('| `'));
    const settings = Object.values(defaultConfig('kube')).flatMap((value: unknown) =>
      typeof value === 'object' && !Array.isArray(value) ? Object.keys(value ?? {}) : [value],
    );
    assert.equal(rows.length, settings.length);
    assert.ok(rows.some((row) => row.startsWith('| `proxy.outboundPort` | `15001` |')));
    for (const row of rows) assert.equal(row.split(/(?<!\\)\|/).length, 6, row);
  });
});
