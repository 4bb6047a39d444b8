/** deploy/policies/bypass-label.yaml on a real API server: who may write the bypass label, and through what. */
import assert from 'node:assert/strict';
import { resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { type Cluster, startCluster } from '../harness/kube.ts';
import { type KubeObject, namespaceObject, podObject } from '../harness/kube-objects.ts';
import { BYPASS } from '../harness/label-names.ts';
import { type Finished, eventually } from '../../deploy/stage/process.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';

const POLICY = resolve(import.meta.dirname, '../../deploy/policies/bypass-label.yaml');
/** Both may do anything with all workloads in all namespaces. */
const JANE = ['--as=jane', '--as-group=fault-hunters'];
const JOE = ['--as=joe', '--as-group=developers'];
const CONTROLLER = ['--as=system:serviceaccount:kube-system:replicaset-controller'];
const CUSTOM = ['--as=system:serviceaccount:argo:argo-rollouts'];

const TEMPLATE = {
  metadata: { labels: { app: 'web', [BYPASS]: 'enabled' } },
  spec: { restartPolicy: 'Never', containers: [{ name: 'app', image: 'app' }] },
};
const ALWAYS = { ...TEMPLATE, spec: { ...TEMPLATE.spec, restartPolicy: 'Always' } };
const SELECTOR = { matchLabels: { app: 'web' } };
const object = (apiVersion: string, kind: string, fields: object): KubeObject => ({
  apiVersion,
  kind,
  metadata: { name: 'web', namespace: 'shop' },
  ...fields,
});
const WORKLOADS: readonly KubeObject[] = [
  object('apps/v1', 'Deployment', { spec: { selector: SELECTOR, template: ALWAYS } }),
  object('apps/v1', 'ReplicaSet', { spec: { selector: SELECTOR, template: ALWAYS } }),
  object('apps/v1', 'DaemonSet', { spec: { selector: SELECTOR, template: ALWAYS } }),
  object('apps/v1', 'StatefulSet', { spec: { serviceName: 'web', selector: SELECTOR, template: ALWAYS } }),
  object('v1', 'ReplicationController', { spec: { selector: { app: 'web' }, template: ALWAYS } }),
  object('v1', 'PodTemplate', { template: ALWAYS }),
  object('batch/v1', 'Job', { spec: { template: TEMPLATE } }),
  object('batch/v1', 'CronJob', {
    spec: { schedule: '* * * * *', jobTemplate: { spec: { template: TEMPLATE } } },
  }),
];

describe('the policy for the bypass label', { skip: KUBE_MISSING }, () => {
  let sandbox: Sandbox;
  let cluster: Cluster;

  before(async () => {
    sandbox = await makeSandbox('kube-bypass');
    cluster = await startCluster(sandbox);
    await cluster.apply(
      namespaceObject('shop'),
      namespaceObject('bank'),
      {
        apiVersion: 'rbac.authorization.k8s.io/v1',
        kind: 'ClusterRole',
        metadata: { name: 'everything' },
        rules: [{ apiGroups: ['', 'apps', 'batch'], resources: ['*'], verbs: ['*'] }],
      },
      {
        apiVersion: 'rbac.authorization.k8s.io/v1',
        kind: 'ClusterRoleBinding',
        metadata: { name: 'everything' },
        roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: 'everything' },
        subjects: [
          ...['fault-hunters', 'developers', 'system:serviceaccounts'].map((name) => ({
            apiGroup: 'rbac.authorization.k8s.io',
            kind: 'Group',
            name,
          })),
          ...['replicaset-controller@kube-system', 'argo-rollouts@argo'].map((account) => {
            const [name, namespace] = account.split('@');
            return { kind: 'ServiceAccount', name, namespace };
          }),
        ],
      },
      ...['web', 'api', 'plain'].map((name) => podObject(name, { node: '', namespace: 'shop' })),
      podObject('web', { node: '', namespace: 'bank' }),
      {
        ...podObject('before', { node: '', namespace: 'shop' }),
        metadata: {
          ...podObject('before', { node: '', namespace: 'shop' }).metadata,
          labels: { [BYPASS]: 'inbound' },
        },
      },
    );
    await cluster.kubectl('apply', '-f', POLICY);
    await cluster.kubectl(
      'create',
      'rolebinding',
      '-n',
      'shop',
      'fault-hunters',
      '--clusterrole=cgroute-bypass',
      '--group=fault-hunters',
    );
    // The API server reads policies some seconds later.
    await eventually(
      'the policy is in force',
      async () => !(await label(JOE, 'shop', 'plain', `${BYPASS}=enabled`, '--dry-run=server')).ok,
    );
  });
  after(() => sandbox?.[Symbol.asyncDispose]());

  async function as(
    who: readonly string[],
    args: readonly string[],
    stdin?: object,
  ): Promise<{ readonly ok: boolean; readonly said: string }> {
    const { code, stdout, stderr }: Finished = await cluster.tryKubectl(
      [...args, ...who],
      stdin === undefined ? {} : { stdin: JSON.stringify(stdin) },
    );
    return { ok: code === 0, said: stdout + stderr };
  }
  const label = (who: readonly string[], namespace: string, pod: string, ...args: readonly string[]) =>
    as(who, ['label', '-n', namespace, 'pod', pod, '--overwrite', ...args]);
  const create = (who: readonly string[], what: object) =>
    as(who, ['create', '--dry-run=server', '-f', '-'], what);
  const labelOf = async (pod: string): Promise<string | undefined> =>
    (await cluster.pod('shop', pod))?.metadata.labels?.[BYPASS];
  const isRefused = (
    { ok, said }: { readonly ok: boolean; readonly said: string },
    sentence: RegExp | string = '',
  ): void => {
    assert.equal(ok, false, said);
    assert.match(said, /ValidatingAdmissionPolicy 'cgroute-bypass-label'/);
    if (typeof sentence === 'string') assert.ok(said.includes(sentence), said);
    else assert.match(said, sentence);
  };

  test('lets who has the right set and change the label, and says to others what they lack', async () => {
    isRefused(
      await label(JOE, 'shop', 'web', `${BYPASS}=enabled`),
      'metadata.labels: kmesh.net/bypass=enabled takes pods out of the mesh, which joe may not do in namespace shop: it takes the verb set on bypasses.cgroute.io, as the ClusterRole cgroute-bypass has it',
    );
    assert.equal(await labelOf('web'), undefined);
    const set = await label(JANE, 'shop', 'web', `${BYPASS}=enabled`);
    assert.ok(set.ok, set.said);
    assert.equal(await labelOf('web'), 'enabled');
    isRefused(await label(JOE, 'shop', 'web', `${BYPASS}=outbound`));
    assert.ok((await label(JANE, 'shop', 'web', `${BYPASS}=outbound`)).ok);
  });

  test('is in force in one namespace where the right was given in that one', async () => {
    isRefused(await label(JANE, 'bank', 'web', `${BYPASS}=enabled`), 'jane may not do in namespace bank');
    assert.ok((await label([], 'bank', 'web', `${BYPASS}=enabled`)).ok, 'the administrator may');
  });

  test('leaves everybody the other labels, and the way back', async () => {
    assert.ok((await label(JOE, 'shop', 'web', 'colour=blue')).ok, 'another label of a bypassed pod');
    assert.ok(
      (await label(JOE, 'shop', 'before', 'colour=blue')).ok,
      'one that was bypassed before there was a policy',
    );
    assert.ok((await label(JOE, 'shop', 'plain', 'colour=blue')).ok);
    assert.ok((await label(JOE, 'shop', 'web', `${BYPASS}-`)).ok);
    assert.equal(await labelOf('web'), undefined);
    isRefused(await label(JOE, 'shop', 'web', `${BYPASS}=inbound`));
  });

  test('covers a pod that is made with the label, and the status subresource', async () => {
    const pod = podObject('new', { node: '', namespace: 'shop' });
    const bypassed = { ...pod, metadata: { ...pod.metadata, labels: { [BYPASS]: 'enabled' } } };
    isRefused(await create(JOE, bypassed));
    assert.ok((await create(JANE, bypassed)).ok);
    assert.ok((await create(JOE, pod)).ok);
    const patch = [
      'patch',
      '-n',
      'shop',
      'pod',
      'api',
      '--subresource=status',
      '--type=merge',
      '-p',
      JSON.stringify({ metadata: { labels: { [BYPASS]: 'enabled' } } }),
    ];
    isRefused(await as(JOE, patch));
    assert.equal(await labelOf('api'), undefined);
    assert.ok((await as(JANE, patch)).ok);
    assert.equal(await labelOf('api'), 'enabled', 'else there were nothing to forbid');
    assert.ok((await label([], 'shop', 'api', `${BYPASS}-`)).ok);
  });

  test('covers the binding to a node, whose labels become those of the pod', async () => {
    const binding = {
      apiVersion: 'v1',
      kind: 'Binding',
      metadata: { name: 'api', namespace: 'shop', labels: { [BYPASS]: 'enabled' } },
      target: { kind: 'Node', name: 'node-a' },
    };
    for (const path of ['pods/api/binding', 'bindings']) {
      isRefused(await as(JOE, ['create', '--raw', `/api/v1/namespaces/shop/${path}`, '-f', '-'], binding));
      assert.equal(await labelOf('api'), undefined);
    }
    const { ok, said } = await as(
      JANE,
      ['create', '--raw', '/api/v1/namespaces/shop/pods/api/binding', '-f', '-'],
      binding,
    );
    assert.ok(ok, said);
    assert.equal(await labelOf('api'), 'enabled', 'else there were nothing to forbid');
  });

  for (const workload of WORKLOADS) {
    test(`covers the template of a ${workload.kind}`, async () => {
      isRefused(
        await create(JOE, workload),
        /template\.metadata\.labels: kmesh\.net\/bypass=enabled .* joe may not/,
      );
      const { ok, said } = await create(JANE, workload);
      assert.ok(ok, said);
      assert.ok(
        (await create(JOE, JSON.parse(JSON.stringify(workload).replaceAll(BYPASS, 'colour')) as object)).ok,
        'without the label',
      );
    });
  }

  test("lets a template that has the label be scaled by all, and pods be made of it by Kubernetes' controllers alone", async () => {
    const [deployment] = WORKLOADS;
    assert.ok((await as(JANE, ['create', '-f', '-'], deployment)).ok);
    const scaled = await as(JOE, [
      'patch',
      '-n',
      'shop',
      'deployment',
      'web',
      '-p',
      '{"spec":{"replicas":3}}',
    ]);
    assert.ok(scaled.ok, scaled.said);
    isRefused(
      await as(JOE, [
        'patch',
        '-n',
        'shop',
        'deployment',
        'web',
        '-p',
        `{"spec":{"template":{"metadata":{"labels":{"${BYPASS}":"inbound"}}}}}`,
      ]),
    );
    const pod = podObject('web-1', { node: '', namespace: 'shop' });
    const made = { ...pod, metadata: { ...pod.metadata, labels: { [BYPASS]: 'enabled' } } };
    const byController = await create(CONTROLLER, made);
    assert.ok(byController.ok, byController.said);
    isRefused(await create(CUSTOM, made), 'system:serviceaccount:argo:argo-rollouts may not');
    isRefused(await label(CONTROLLER, 'shop', 'plain', `${BYPASS}=enabled`));
  });
});
