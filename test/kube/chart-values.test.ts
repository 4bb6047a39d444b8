/** The chart's values, by the real Helm: what should not be rendered is refused. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { parseConfig } from '../../mapper/config/config.ts';
import { HELM_MISSING, template } from '../../deploy/build/helm.ts';
import { read } from './chart.ts';

/** A value and what the refusal says of it; with `config.`, the agent's own parser must refuse it too. */
const REFUSED: readonly (readonly [string, unknown, RegExp])[] = [
  ['replicas', 3, /additional properties 'replicas' not allowed/],
  ['image', 'cgroute:1', /at '\/image': got string, want object/],
  ['image.tga', 'v1', /at '\/image': additional properties 'tga' not allowed/],
  ['image.repository', '', /at '\/image\/repository': '' does not match pattern/],
  ['image.repository', 'https://registry.example/cgroute', /at '\/image\/repository'/],
  ['image.digest', 'sha256:abc', /at '\/image\/digest'/],
  [
    'image.pullPolicy',
    'Sometimes',
    /at '\/image\/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'/,
  ],
  ['fullnameOverride', 'No_Name', /at '\/fullnameOverride'/],
  ['http.address', '0.0.0.0', /at '\/http\/address': value must be one of 'loopback', 'node'/],
  ['http.port', 0, /at '\/http\/port': minimum: got 0, want 1/],
  ['http.port', '80', /at '\/http\/port': got string, want integer/],
  ['admissionPolicy', 'Deny', /at '\/admissionPolicy': got string, want boolean/],
  ['alerts.runbookBase', 'docs', /at '\/alerts\/runbookBase'/],
  ['onUninstall', 'delete', /at '\/onUninstall': value must be one of 'detach', 'keep'/],
  ['extraArgs', '--node=a', /at '\/extraArgs': got string, want array/],
  ['extraArgs', ['node=a'], /at '\/extraArgs\/0'/],
  ['extraEnv', { A: 'b' }, /at '\/extraEnv': got object, want array/],
  ['extraEnv', [{ value: 'b' }], /at '\/extraEnv\/0': missing property 'name'/],
  ['resources.request', {}, /at '\/resources': additional properties 'request' not allowed/],
  ['resources.requests.memory', 'much', /at '\/resources\/requests\/memory'/],
  ['priorityClassName', '', /at '\/priorityClassName': minLength/],
  ['nodeSelector.pool', true, /at '\/nodeSelector\/pool': got boolean, want string/],
  ['tolerations', { operator: 'Exists' }, /at '\/tolerations': got object, want array/],
  ['tolerations', [{ operator: 'Any' }], /at '\/tolerations\/0\/operator'/],
  ['podLabels', { 'app.kubernetes.io/name': 'x' }, /at '\/podLabels\/app\.kubernetes\.io~1name'/],
  ['podAnnotations', { 'checksum/config': 'x' }, /at '\/podAnnotations\/checksum~1config'/],
  ['terminationGracePeriodSeconds', 5, /at '\/terminationGracePeriodSeconds': minimum: got 5, want 20/],
  ['maxUnavailable', -1, /at '\/maxUnavailable'/],
  ['maxSurge', '101%', /at '\/maxSurge'/],
  ['maxSurge', 0, /expected one of them to be 0 and the other one not, got 0 and 0/],
  ['maxUnavailable', '10%', /expected one of them to be 0 and the other one not, got 1 and 10%/],
  ['serviceAccount.create', 'yes', /at '\/serviceAccount\/create': got string, want boolean/],
  ['serviceAccount.name', 'Not A Name', /at '\/serviceAccount\/name'/],
  [
    'securityContext.privileged',
    true,
    /at '\/securityContext': additional properties 'privileged' not allowed/,
  ],
  [
    'securityContext.capabilities',
    { add: ['SYS_ADMIN'] },
    /at '\/securityContext': additional properties 'capabilities' not allowed/,
  ],
  [
    'securityContext.seccompProfile.type',
    'Default',
    /at '\/securityContext\/seccompProfile\/type': value must be one of/,
  ],
  ['podMonitor.enabled', 1, /at '\/podMonitor\/enabled': got number, want boolean/],
  [
    'podMonitor.enabled',
    true,
    /podMonitor\.enabled: Prometheus cannot reach 127\.0\.0\.1 of the nodes: expected http\.address=node/,
  ],
  ['podMonitor.interval', '30', /at '\/podMonitor\/interval'/],
  ['alerts.labels', ['a'], /at '\/alerts\/labels': got array, want object/],
  ['dashboard.enable', true, /at '\/dashboard': additional properties 'enable' not allowed/],

  ['config', [], /at '\/config': got array, want object/],
  ['config.unknown', 1, /at '\/config': additional properties 'unknown' not allowed/],
  ['config.meshModes', [], /at '\/config\/meshModes': minItems: got 0, want 1/],
  ['config.meshModes', 'ambient', /at '\/config\/meshModes': got string, want array/],
  ['config.meshModes', ['None'], /at '\/config\/meshModes\/0'/],
  ['config.meshModes', ['-a'], /at '\/config\/meshModes\/0': '-a' does not match pattern/],
  ['config.excludedNamespaces', ['Kube'], /at '\/config\/excludedNamespaces\/0'/],
  ['config.gatewayControllers', [''], /at '\/config\/gatewayControllers\/0'/],
  ['config.runtimeClasses', ['*'], /at '\/config\/runtimeClasses\/0'/],
  ['config.takeOver', 'yes', /at '\/config\/takeOver': got string, want boolean/],
  ['config.startupTaint', 'cgroute.io/', /at '\/config\/startupTaint'/],
  ['config.startupTaint', 'key=value:NoSchedule', /at '\/config\/startupTaint'/],
  ['config.proxy', 'app=ztunnel', /at '\/config\/proxy': got string, want object/],
  ['config.proxy.name', 'x', /at '\/config\/proxy': additional properties 'name' not allowed/],
  ['config.proxy.selector', '', /at '\/config\/proxy\/selector': minLength/],
  ['config.proxy.selector', { app: 'ztunnel' }, /at '\/config\/proxy\/selector': got object, want string/],
  ['config.proxy.namespaces', 'istio-system', /at '\/config\/proxy\/namespaces': got string, want array/],
  ['config.proxy.namespaces', ['a_b'], /at '\/config\/proxy\/namespaces\/0'/],
  ['config.proxy.namespaces', [], /at '\/config\/proxy\/namespaces': minItems: got 0, want 1/],
  [
    'config.proxy.outboundPort',
    65536,
    /at '\/config\/proxy\/outboundPort': maximum: got 65,536, want 65,535/,
  ],
  ['config.proxy.inboundPort', 0, /at '\/config\/proxy\/inboundPort': minimum: got 0, want 1/],
  ['config.enrollment', 'late', /at '\/config\/enrollment': value must be one of 'live', 'new-pods'/],
  [
    'config.existingConnections',
    'drop',
    /at '\/config\/existingConnections': value must be one of 'keep', 'reset'/,
  ],
  ['config.sidecars', 'yes', /at '\/config\/sidecars': got string, want boolean/],
  ['sidecars', 'yes', /at '\/sidecars': got string, want boolean/],
  ['config.unknownPods', 'drop', /at '\/config\/unknownPods': value must be one of 'deny', 'allow'/],
  ['config.firstStart', 'allow', /at '\/config\/firstStart': value must be one of 'wait', 'deny'/],
  [
    'config.nestedNetworks',
    'allow',
    /at '\/config\/nestedNetworks': value must be one of 'untouched', 'deny'/,
  ],
  [
    'config.otherNetworks',
    'redirect',
    /at '\/config\/otherNetworks': value must be one of 'untouched', 'deny'/,
  ],
  ['config.whenProxyDown', true, /at '\/config\/whenProxyDown': value must be one of 'deny', 'allow'/],
  [
    'config.bypass.allowed',
    'all',
    /at '\/config\/bypass\/allowed': value must be one of 'any', 'namespace', 'never'/,
  ],
  ['config.bypass.allow', 'any', /at '\/config\/bypass': additional properties 'allow' not allowed/],
  ['config.sweepSeconds', 0, /at '\/config\/sweepSeconds': minimum: got 0, want 1/],
  ['config.sweepSeconds', '30s', /at '\/config\/sweepSeconds': got string, want integer/],
  ['config.relistSeconds', 9, /at '\/config\/relistSeconds': minimum: got 9, want 10/],
  ['config.relistSeconds', 86401, /at '\/config\/relistSeconds': maximum/],
  ['config.maxPods', 15, /at '\/config\/maxPods': minimum: got 15, want 16/],
  ['config.maxPods', 16.5, /at '\/config\/maxPods': got number, want integer/],
  ['config.maxPods', 1048577, /at '\/config\/maxPods': maximum/],
  ['config.maxConnections', 1023, /at '\/config\/maxConnections': minimum/],
  ['config.maxConnections', 16777217, /at '\/config\/maxConnections': maximum/],
  ['config.maxConnectionsPerPod', 0, /at '\/config\/maxConnectionsPerPod': minimum/],
  ['config.maxTrafficEntries', 1023, /at '\/config\/maxTrafficEntries': minimum/],
  ['config.sidecarUser', -1, /at '\/config\/sidecarUser': minimum/],
  ['config.annotate', 'yes', /at '\/config\/annotate': got string, want boolean/],
  ['config.events', 0, /at '\/config\/events': got number, want boolean/],
  ['config.log.level', 'verbose', /at '\/config\/log\/level': value must be one of/],
  ['config.log.file', '/x', /at '\/config\/log': additional properties 'file' not allowed/],
];

describe('values that are wrong', { skip: HELM_MISSING }, () => {
  for (const [key, value, says] of REFUSED) {
    const shown = `${key}=${JSON.stringify(value)}`;
    test(`${shown} is refused`, async () => {
      const { code, stdout, stderr } = await template('--set-json', shown);
      assert.notEqual(code, 0, stdout);
      assert.match(stderr, says);
      const path = key.split('.');
      if (path[0] !== 'config') return;
      const config = path.slice(1).reduceRight<unknown>((inner, part) => ({ [part]: inner }), value);
      assert.throws(() => parseConfig(JSON.stringify(config), 'config.yaml'), { code: 'ECONFIG' });
    });
  }

  test('every setting of the agent is among them', () => {
    const keys = [...read('docs/configuration.md').matchAll(/^\| `([\w.]+)` \|/gm)].map(
      ([, key]) => `config.${key}`,
    );
    assert.deepEqual(
      keys.filter((key) => !REFUSED.some(([refused]) => refused === key)),
      [],
    );
  });
});
