/** The chart, by the real Helm and the real API server: what it renders is accepted, and what it should not render is refused. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { parse } from 'yaml';
import { plainManifest } from '../../deploy/build/manifest.ts';
import { parseConfig } from '../../mapper/config/config.ts';
import { CHART, chartObjects, helm, HELM_MISSING, template } from '../../deploy/build/helm.ts';
import type { KubeObject, Pod } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { type Cluster, startCluster } from '../harness/kube.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';

const root = resolve(import.meta.dirname, '../..');
const read = (path: string): string => readFileSync(resolve(root, path), 'utf8');

interface Container {
  readonly image: string;
  readonly args: readonly string[];
  readonly env: readonly { readonly name: string }[];
  readonly ports: readonly { readonly containerPort: number }[];
  readonly livenessProbe: Probe;
  readonly readinessProbe: Probe;
  readonly resources: { readonly requests: Readonly<Record<string, string>> };
  readonly securityContext: Readonly<Record<string, unknown>>;
}

interface Probe {
  readonly httpGet: { readonly host?: string; readonly path: string; readonly port: string };
}

interface DaemonSet extends KubeObject {
  readonly spec: {
    readonly updateStrategy: unknown;
    readonly template: {
      readonly metadata: Pod['metadata'];
      readonly spec: Readonly<Record<string, unknown>> & { readonly containers: readonly [Container] };
    };
  };
}

const isHook = ({ metadata }: KubeObject): boolean => metadata.annotations?.['helm.sh/hook'] !== undefined;
const rolesOf = (objects: readonly KubeObject[]): KubeObject[] =>
  objects.filter((object) => /Role$/.test(object.kind) && !isHook(object));
const daemonSetOf = (objects: readonly KubeObject[]): DaemonSet =>
  objects.find(({ kind }) => kind === 'DaemonSet') as DaemonSet;
const set = (values: Readonly<Record<string, unknown>>): string[] =>
  Object.entries(values).flatMap(([key, value]) => ['--set-json', `${key}=${JSON.stringify(value)}`]);
const daemonSet = async (values: Readonly<Record<string, unknown>> = {}): Promise<DaemonSet> =>
  daemonSetOf(await chartObjects(...set(values)));
const agentOf = ({ spec }: DaemonSet): Container => spec.template.spec.containers[0];

/** Everything that can be switched on. */
const ALL = {
  'http.address': 'node',
  'podMonitor.enabled': true,
  'alerts.enabled': true,
  'dashboard.enabled': true,
};

/** The operator's CRDs are not here: these take anything below `spec`, so that only the frame of those objects is checked. */
const MONITORING = [
  ['PodMonitor', 'podmonitors'],
  ['PrometheusRule', 'prometheusrules'],
].map(
  ([kind = '', plural = '']): KubeObject => ({
    apiVersion: 'apiextensions.k8s.io/v1',
    kind: 'CustomResourceDefinition',
    metadata: { name: `${plural}.monitoring.coreos.com` },
    spec: {
      group: 'monitoring.coreos.com',
      scope: 'Namespaced',
      names: { kind, plural, singular: kind.toLowerCase(), listKind: `${kind}List` },
      versions: [
        {
          name: 'v1',
          served: true,
          storage: true,
          schema: {
            openAPIV3Schema: {
              type: 'object',
              properties: { spec: { type: 'object', 'x-kubernetes-preserve-unknown-fields': true } },
            },
          },
        },
      ],
    },
  }),
);

describe('the chart', { skip: HELM_MISSING }, () => {
  test('has no complaint from helm lint', async () => {
    const { code, stdout } = await helm(['lint', '--strict', CHART, ...set(ALL)]);
    assert.equal(code, 0, stdout);
    assert.match(stdout, /0 chart\(s\) failed/);
  });

  test('renders the plain manifest', async () => {
    assert.equal(read('deploy/cgroute.yaml'), await plainManifest(), 'run `npm run manifest`');
  });

  test('has the version of the project', () => {
    const { version } = JSON.parse(read('package.json')) as { version: string };
    const chart = parse(read('deploy/chart/Chart.yaml')) as Record<string, string>;
    assert.deepEqual([chart['version'], chart['appVersion']], [version, version]);
  });

  test('asks for no more of a node than it says', async () => {
    const { spec } = await daemonSet();
    const pod = spec.template.spec;
    const agent = pod.containers[0];
    assert.equal(pod.containers.length, 1);
    assert.equal(pod['initContainers'], undefined);
    assert.deepEqual(agent.securityContext, {
      privileged: false,
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      runAsUser: 0,
      runAsGroup: 0,
      capabilities: { drop: ['ALL'], add: ['BPF', 'NET_ADMIN', 'PERFMON', 'SYS_PTRACE'] },
      seccompProfile: { type: 'RuntimeDefault' },
      appArmorProfile: { type: 'Unconfined' },
      seLinuxOptions: { type: 'spc_t' },
    });
    assert.deepEqual([pod['hostPID'], pod['hostNetwork'], pod['hostIPC']], [true, true, undefined]);
    const hostPaths = (pod['volumes'] as { hostPath?: { path: string } }[]).flatMap(
      ({ hostPath }) => hostPath?.path ?? [],
    );
    assert.deepEqual(hostPaths, ['/sys/fs/cgroup', '/sys/fs/bpf']);
    assert.deepEqual(spec.updateStrategy, {
      type: 'RollingUpdate',
      rollingUpdate: { maxUnavailable: 1, maxSurge: 0 },
    });
    assert.deepEqual(
      [pod['priorityClassName'], pod['tolerations'], pod['nodeSelector']],
      ['system-node-critical', [{ operator: 'Exists' }], { 'kubernetes.io/os': 'linux' }],
    );
    assert.deepEqual(Object.keys(agent.resources.requests).sort(), ['cpu', 'memory']);
  });

  test('says of each capability which call needs it', () => {
    const text = read('deploy/chart/templates/daemonset.yaml');
    for (const name of ['BPF', 'NET_ADMIN', 'PERFMON', 'SYS_PTRACE', 'SYS_ADMIN', 'NET_RAW'])
      assert.match(text, new RegExp(`# \\w+\\(2\\)[^-]*?\\n +- ${name}\\n`), name);
  });

  test('gives the agent two capabilities more for sidecars, one for the reset of connections, and no mount for either', async () => {
    const [usual = [], sidecars = [], reset = []] = (
      await Promise.all([{}, { sidecars: true }, { 'config.existingConnections': 'reset' }].map(daemonSet))
    ).map((object) => (agentOf(object).securityContext['capabilities'] as { add: string[] }).add);
    assert.deepEqual(
      [sidecars, reset],
      [
        [...usual, 'SYS_ADMIN', 'NET_RAW'],
        [...usual, 'SYS_ADMIN'],
      ],
    );
    const volumes = async (values: Readonly<Record<string, unknown>>): Promise<unknown> =>
      (await daemonSet(values)).spec.template.spec['volumes'];
    assert.deepEqual(await volumes({ sidecars: true }), await volumes({}));
    const objects = await chartObjects(...set({ sidecars: true }));
    const { data } = objects.find(({ kind }) => kind === 'ConfigMap') as KubeObject & {
      data: Record<string, string>;
    };
    assert.equal((parse(data['config.yaml'] ?? '') as { sidecars: boolean }).sidecars, true);
  });

  test('passes the configuration through, and rolls the agents when it changes', async () => {
    const config = {
      meshModes: ['kmesh'],
      excludedNamespaces: [],
      gatewayControllers: ['mine'],
      proxy: { selector: 'app in (a, b)', namespaces: ['kmesh-system'], outboundPort: 1, inboundPort: 65535 },
      enrollment: 'new-pods',
      existingConnections: 'reset',
      sidecars: false,
      unknownPods: 'deny',
      whenProxyDown: 'allow',
      bypass: { allowed: 'never' },
      sweepSeconds: 1,
      relistSeconds: 86400,
      maxPods: 1048576,
      maxConnections: 16777216,
      maxConnectionsPerPod: 1,
      maxTrafficEntries: 16777216,
      sidecarUser: 1338,
      annotate: false,
      events: false,
      log: { level: 'trace' },
    };
    const objects = await chartObjects(...set({ config }));
    const { data } = objects.find(({ kind }) => kind === 'ConfigMap') as KubeObject & {
      data: Record<string, string>;
    };
    const text = data['config.yaml'] ?? '';
    assert.deepEqual(parse(text), config);
    // Nothing is missing above: each key of the reference is set.
    const keys = [...read('docs/configuration.md').matchAll(/^\| `([\w.]+)` \|/gm)].map(
      ([, key]) => key ?? '',
    );
    assert.ok(keys.length > 15);
    for (const key of keys)
      assert.notEqual(
        key.split('.').reduce<unknown>((value, part) => (value as Record<string, unknown>)?.[part], config),
        undefined,
        key,
      );
    parseConfig(text, 'config.yaml');
    const sums = [daemonSetOf(objects), await daemonSet()].map(
      ({ spec }) => spec.template.metadata.annotations?.['checksum/config'],
    );
    assert.notEqual(sums[0], sums[1]);
    assert.match(agentOf(await daemonSet()).args.join(' '), /--config=\/etc\/cgroute\/config\.yaml/);
  });

  test('gives no right that the configuration does not use', async () => {
    const resources = async (values: Readonly<Record<string, unknown>>): Promise<string[]> =>
      rolesOf(await chartObjects(...set(values))).flatMap(({ rules }) =>
        (rules as { resources: string[] }[]).flatMap((rule) => rule.resources),
      );
    assert.deepEqual(await resources({}), ['pods', 'namespaces', 'pods/status', 'events', 'daemonsets']);
    assert.deepEqual(await resources({ 'config.annotate': false }), [
      'pods',
      'namespaces',
      'events',
      'daemonsets',
    ]);
    assert.deepEqual(await resources({ 'config.events': false }), [
      'pods',
      'namespaces',
      'pods/status',
      'daemonsets',
    ]);
    assert.deepEqual(await resources({ 'config.events': null, onUninstall: 'keep' }), [
      'pods',
      'namespaces',
      'pods/status',
      'events',
    ]);
  });

  test('serves where it is probed', async () => {
    for (const [address, host, flag] of [
      ['loopback', '127.0.0.1', '--http=127.0.0.1:9999'],
      ['node', undefined, '--http=[$(HOST_IP)]:9999'],
    ] as const) {
      const agent = agentOf(await daemonSet({ 'http.address': address, 'http.port': 9999 }));
      assert.deepEqual([agent.livenessProbe.httpGet.host, agent.readinessProbe.httpGet.host], [host, host]);
      assert.deepEqual(
        [agent.livenessProbe.httpGet.path, agent.readinessProbe.httpGet.path],
        ['/healthz', '/readyz'],
      );
      assert.ok(agent.args.includes(flag), agent.args.join(' '));
      assert.equal(agent.ports[0]?.containerPort, 9999);
      assert.equal(
        agent.env.some(({ name }) => name === 'HOST_IP'),
        address === 'node',
      );
      assert.ok(agent.env.some(({ name }) => name === 'NODE_NAME'));
    }
  });

  test('names the image by its tag, or by its digest', async () => {
    const image = async (values: Readonly<Record<string, unknown>>): Promise<string> =>
      agentOf(await daemonSet(values)).image;
    const { version } = JSON.parse(read('package.json')) as { version: string };
    assert.equal(await image({}), `cgroute:${version}`);
    assert.equal(
      await image({ 'image.repository': 'registry.example:5000/team/cgroute', 'image.tag': 'v9' }),
      'registry.example:5000/team/cgroute:v9',
    );
    const digest = `sha256:${'0f'.repeat(32)}`;
    assert.equal(await image({ 'image.digest': digest, 'image.tag': 'v9' }), `cgroute@${digest}`);
  });

  test('takes alerts and the dashboard as they are in its files', async () => {
    const objects = await chartObjects(...set(ALL));
    const rule = objects.find(({ kind }) => kind === 'PrometheusRule');
    assert.deepEqual(rule?.['spec'], parse(read('deploy/chart/files/alerts.yaml')));
    const dashboard = objects.find(({ metadata }) => metadata.name === 'cgroute-dashboard') as KubeObject & {
      data: Record<string, string>;
    };
    assert.deepEqual(
      JSON.parse(dashboard.data['cgroute.json'] ?? ''),
      JSON.parse(read('deploy/chart/files/dashboard.json')),
    );
    assert.equal(dashboard.metadata.labels?.['grafana_dashboard'], '1');
  });

  test('takes the agents off before their rights, by a hook of helm uninstall', async () => {
    const hooks = (await chartObjects()).filter(isHook);
    assert.deepEqual(
      hooks
        .map(
          ({ kind, metadata }) =>
            `${kind} ${metadata.annotations?.['helm.sh/hook']} ${metadata.annotations?.['helm.sh/hook-weight']}`,
        )
        .sort(),
      ['Job pre-delete 1', 'Role pre-delete 0', 'RoleBinding pre-delete 0', 'ServiceAccount pre-delete 0'],
    );
    assert.ok(agentOf(await daemonSet()).args.includes('--on-exit=daemonset:kube-system/cgroute'));
    const kept = await chartObjects(...set({ onUninstall: 'keep' }));
    assert.deepEqual(kept.filter(isHook), []);
    assert.doesNotMatch(agentOf(daemonSetOf(kept)).args.join(' '), /--on-exit/);
  });

  test('keeps two releases of one name apart', async () => {
    const { stdout } = await helm(['template', 'mesh', CHART, '--namespace', 'other']);
    const names = [...stdout.matchAll(/^kind: (ClusterRole\w*)\nmetadata:\n {2}name: (\S+)/gm)].map(
      ([, kind, name]) => `${kind} ${name}`,
    );
    assert.deepEqual(names, ['ClusterRole other-mesh-cgroute', 'ClusterRoleBinding other-mesh-cgroute']);
  });
});

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
  ['maxUnavailable', 0, /at '\/maxUnavailable'/],
  ['maxUnavailable', '0%', /at '\/maxUnavailable'/],
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
  ['config.proxy', 'app=ztunnel', /at '\/config\/proxy': got string, want object/],
  ['config.proxy.name', 'x', /at '\/config\/proxy': additional properties 'name' not allowed/],
  ['config.proxy.selector', '', /at '\/config\/proxy\/selector': minLength/],
  ['config.proxy.selector', { app: 'ztunnel' }, /at '\/config\/proxy\/selector': got object, want string/],
  ['config.proxy.namespaces', 'istio-system', /at '\/config\/proxy\/namespaces': got string, want array/],
  ['config.proxy.namespaces', ['a_b'], /at '\/config\/proxy\/namespaces\/0'/],
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
  ['config.unknownPods', 'drop', /at '\/config\/unknownPods': value must be one of 'allow', 'deny'/],
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

describe('to a real API server', { skip: HELM_MISSING || KUBE_MISSING }, () => {
  let sandbox: Sandbox;
  let cluster: Cluster;

  before(async () => {
    sandbox = await makeSandbox('kube-chart');
    cluster = await startCluster(sandbox);
    await cluster.apply(...MONITORING);
    await cluster.kubectl('wait', '--for=condition=Established', '--timeout=30s', 'crd', '--all');
  });
  after(() => sandbox?.[Symbol.asyncDispose]());

  const dryRun = async (text: string): Promise<string[]> => {
    const { code, stdout, stderr } = await cluster.tryKubectl(
      ['apply', '--dry-run=server', '--validate=strict', '-f', '-'],
      { stdin: text },
    );
    assert.equal(code, 0, stderr);
    // A warning is of fields that are deprecated, or mean nothing.
    assert.equal(stderr, '');
    return stdout.split('\n').map((line) => line.replace(' (server dry run)', ''));
  };

  test('the plain manifest is all right', async () => {
    assert.deepEqual(await dryRun(read('deploy/cgroute.yaml')), [
      'serviceaccount/cgroute created',
      'configmap/cgroute created',
      'clusterrole.rbac.authorization.k8s.io/cgroute created',
      'clusterrolebinding.rbac.authorization.k8s.io/cgroute created',
      'role.rbac.authorization.k8s.io/cgroute created',
      'rolebinding.rbac.authorization.k8s.io/cgroute created',
      'daemonset.apps/cgroute created',
      'validatingadmissionpolicy.admissionregistration.k8s.io/cgroute created',
      'validatingadmissionpolicybinding.admissionregistration.k8s.io/cgroute created',
    ]);
  });

  test('every object is all right, with everything switched on', async () => {
    const { stdout } = await template(...set(ALL));
    const created = await dryRun(stdout);
    assert.equal(created.length, (await chartObjects(...set(ALL))).length);
    assert.ok(created.includes('job.batch/cgroute-uninstall created'));
    assert.ok(created.includes('podmonitor.monitoring.coreos.com/cgroute created'));
    assert.ok(created.includes('prometheusrule.monitoring.coreos.com/cgroute created'));
  });

  test('a pod of the DaemonSet is all right, as a pod', async () => {
    // Admission of pods sees more than that of DaemonSets: the priority class, the account.
    await cluster.apply({
      apiVersion: 'v1',
      kind: 'ServiceAccount',
      metadata: { name: 'cgroute', namespace: 'kube-system' },
    });
    const { spec } = await daemonSet(ALL);
    const pod = {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { ...spec.template.metadata, name: 'cgroute-x', namespace: 'kube-system' },
      spec: spec.template.spec,
    };
    assert.deepEqual(await dryRun(JSON.stringify(pod)), ['pod/cgroute-x created']);
    await cluster.kubectl('-n', 'kube-system', 'delete', 'serviceaccount', 'cgroute');
  });

  test('helm installs it, upgrades it and finds nothing to change', async () => {
    const options = { kubeconfig: cluster.kubeconfig, home: sandbox.file('helm') };
    const release = ['cgroute', CHART, '--namespace', 'kube-system'];
    const installed = await helm(['install', ...release, '--wait=hookOnly'], options);
    assert.equal(installed.code, 0, installed.stderr);
    const version = async (): Promise<string> =>
      cluster.kubectl(
        '-n',
        'kube-system',
        'get',
        'daemonset',
        'cgroute',
        '-o',
        'jsonpath={.metadata.generation}',
      );
    assert.equal(await version(), '1');
    assert.equal((await helm(['upgrade', ...release], options)).code, 0);
    assert.equal(await version(), '1');
    assert.equal((await helm(['upgrade', ...release, '--set', 'config.log.level=debug'], options)).code, 0);
    assert.equal(await version(), '2');
  });
});
