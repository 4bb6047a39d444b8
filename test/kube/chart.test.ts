/** The chart, by the real Helm: what it renders, from which values. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { parse } from 'yaml';
import { plainManifest } from '../../deploy/build/manifest.ts';
import { PROBE_SOCKET } from '../../mapper/cli/command-line.ts';
import { parseConfig } from '../../mapper/config/config.ts';
import { CHART, chartObjects, helm, HELM_MISSING } from '../../deploy/build/helm.ts';
import type { KubeObject } from '../harness/kube-objects.ts';
import { agentOf, ALL, daemonSet, daemonSetOf, isHook, read, set } from './chart.ts';

const rolesOf = (objects: readonly KubeObject[]): KubeObject[] =>
  objects.filter((object) => /Role$/.test(object.kind) && !isHook(object));

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
      rollingUpdate: { maxUnavailable: 0, maxSurge: 1 },
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
      runtimeClasses: ['mine-*'],
      takeOver: true,
      proxy: { selector: 'app in (a, b)', namespaces: ['kmesh-system'], outboundPort: 1, inboundPort: 65535 },
      enrollment: 'new-pods',
      existingConnections: 'reset',
      sidecars: false,
      unknownPods: 'deny',
      whenProxyDown: 'allow',
      firstStart: 'deny',
      nestedNetworks: 'deny',
      otherNetworks: 'deny',
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
      startupTaint: 'cgroute.io/agent-not-ready',
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
    assert.deepEqual(await resources({ 'config.startupTaint': 'cgroute.io/agent-not-ready' }), [
      'pods',
      'namespaces',
      'pods/status',
      'events',
      'nodes',
      'daemonsets',
    ]);
    assert.deepEqual(await resources({ 'config.events': null, onUninstall: 'keep' }), [
      'pods',
      'namespaces',
      'pods/status',
      'events',
    ]);
  });

  test('replaces agents without a gap, or without room for two where that is asked for', async () => {
    const { args } = agentOf(await daemonSet());
    assert.ok(args.includes('--wait-for-lock'), args.join(' '));
    const { spec } = await daemonSet({ maxSurge: 0, maxUnavailable: '10%' });
    assert.deepEqual(spec.updateStrategy, {
      type: 'RollingUpdate',
      rollingUpdate: { maxUnavailable: '10%', maxSurge: 0 },
    });
  });

  test('is probed over a socket of the pod alone, and takes no port of the node', async () => {
    for (const [address, flag] of [
      ['loopback', '--http=127.0.0.1:9999'],
      ['node', '--http=[$(HOST_IP)]:9999'],
    ] as const) {
      const { spec } = await daemonSet({ 'http.address': address, 'http.port': 9999 });
      const pod = spec.template.spec as typeof spec.template.spec & {
        readonly volumes: readonly { readonly name: string; readonly emptyDir?: unknown }[];
      };
      const [agent] = pod.containers;
      assert.equal(agent.ports, undefined);
      assert.deepEqual(
        [agent.livenessProbe.exec.command, agent.readinessProbe.exec.command],
        [
          ['cgroute', 'probe', 'live'],
          ['cgroute', 'probe', 'ready'],
        ],
      );
      assert.ok(agent.args.includes(`--probe-socket=${PROBE_SOCKET}`), agent.args.join(' '));
      const mount = agent.volumeMounts.find(({ mountPath }) => PROBE_SOCKET.startsWith(`${mountPath}/`));
      assert.deepEqual(pod.volumes.find(({ name }) => name === mount?.name)?.emptyDir, {});
      assert.ok(agent.args.includes(flag), agent.args.join(' '));
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
