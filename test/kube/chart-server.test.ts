/** The chart before the real API server: what it renders is accepted. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { CHART, chartObjects, helm, HELM_MISSING, template } from '../../deploy/build/helm.ts';
import type { KubeObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { type Cluster, startCluster } from '../harness/kube.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import { ALL, daemonSet, read, set } from './chart.ts';

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
