/**
 * `helm uninstall`, with the real Helm and the real API server. There are no
 * controllers here: the test runs the hook's Job and stops the agent as they
 * would, under the accounts of the chart, and takes the finalizer off in the
 * place of the garbage collector.
 */
import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import { CHART, helm, HELM_MISSING } from '../../deploy/build/helm.ts';
import { type KubeObject, namespaceObject, podObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import type { Cluster } from '../harness/kube.ts';
import { eventually, type Finished, type Running } from '../../deploy/stage/process.ts';
import { type ClusterNode, startClusterNode } from '../harness/cluster-node.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';
import { MODE, REDIRECTION } from '../harness/label-names.ts';

type Workload = KubeObject & {
  readonly spec: {
    readonly template: {
      readonly spec: {
        readonly serviceAccountName: string;
        readonly containers: readonly [{ readonly args: readonly string[] }];
      };
    };
  };
};

const DAEMONSET = '/apis/apps/v1/namespaces/kube-system/daemonsets/cgroute';
const JOB = '/apis/batch/v1/namespaces/kube-system/jobs/cgroute-uninstall';

describe('helm uninstall', { skip: HELM_MISSING || KUBE_MISSING }, () => {
  const program = resolve(import.meta.dirname, '../../dist/cgroute');
  let node: ClusterNode;
  let sandbox: Sandbox;
  let cluster: Cluster;
  let agent: Running;

  before(async () => {
    node = await startClusterNode('kube-uninstall');
    ({ sandbox, cluster } = node);
    await cluster.apply(
      namespaceObject('shop', { [MODE]: 'ambient' }),
      podObject('web', { node: 'node-a', namespace: 'shop' }),
    );
    await node.startPod('shop', 'web');
  });
  after(() => node?.[Symbol.asyncDispose]());

  const runHelm = (...args: readonly string[]): Promise<Finished> =>
    helm([...args, '--namespace', 'kube-system'], {
      kubeconfig: cluster.kubeconfig,
      home: sandbox.file('helm'),
    });
  const found = <T>(path: string): Promise<T | undefined> => cluster.api.get<T>(path).catch(() => undefined);
  const isAnnotated = async (): Promise<boolean> =>
    (await cluster.pod('shop', 'web'))?.metadata.annotations?.[REDIRECTION] === 'enabled';
  const pins = (): string[] =>
    existsSync(`${sandbox.bpffs}/cgroute`) ? readdirSync(`${sandbox.bpffs}/cgroute`) : [];
  const logOf = (running: Running): string => [...running.stdout, ...running.stderr].join('\n');
  const left = (): Promise<string> =>
    cluster.kubectl(
      '-n',
      'kube-system',
      'get',
      'sa,cm,secret,role,rolebinding,clusterrole,clusterrolebinding,daemonset,job',
      '-l',
      'app.kubernetes.io/name=cgroute',
      '-o',
      'name',
    );

  /** Runs a pod's container, as the account that it says. */
  async function runPod({ spec }: Workload, ...more: readonly string[]): Promise<Running> {
    const {
      serviceAccountName,
      containers: [{ args }],
    } = spec.template.spec;
    await cluster.apply(
      podObject(serviceAccountName, {
        node: 'node-a',
        namespace: 'kube-system',
        spec: { serviceAccountName },
      }),
    );
    const { uid = '' } = (await cluster.pod('kube-system', serviceAccountName))?.metadata ?? {};
    const account = await cluster.serviceAccount({
      name: serviceAccountName,
      namespace: 'kube-system',
      pod: { name: serviceAccountName, uid },
    });
    const own = args.filter((flag) => !/^--(config|http|probe-socket)=/.test(flag));
    return sandbox.spawn({
      cmd: program,
      args: [...own, ...more],
      env: { KUBECONFIG: account.kubeconfig() },
    });
  }

  beforeEach(async () => {
    const { code, stderr } = await runHelm('install', 'cgroute', CHART);
    assert.equal(code, 0, stderr);
    agent = await runPod(
      await cluster.api.get<Workload>(DAEMONSET),
      '--node=node-a',
      '--http=127.0.0.1:0',
      '--cgroup-root',
      sandbox.cgroupRoot,
      '--bpffs-root',
      `${sandbox.bpffs}/cgroute`,
    );
    await eventually('web is annotated', isAnnotated);
    assert.notDeepEqual(pins(), []);
  });

  test('takes annotations, links and maps off the nodes, and then the rest away', async () => {
    const uninstalling = runHelm('uninstall', 'cgroute', '--timeout=60s');
    const job = await runPod(await eventually('its hook is there', () => found<Workload>(JOB)));
    await eventually(
      'the DaemonSet is on its way out',
      async () => (await found<KubeObject>(DAEMONSET))?.metadata.deletionTimestamp,
    );
    assert.deepEqual(await agent.stop('SIGTERM'), { code: 0, signal: null });
    assert.match(
      logOf(agent),
      /"why":"its DaemonSet is deleted","msg":"leaving: links and maps are removed"/,
    );
    assert.deepEqual(pins(), []);
    assert.equal(await isAnnotated(), false);
    assert.equal(job.stdout.length, 0, 'the hook waits for the agents');
    await cluster.api.patch(DAEMONSET, 'merge-patch+json', { metadata: { finalizers: null } });
    assert.deepEqual(await job.exit, { code: 0, signal: null }, logOf(job));
    assert.deepEqual(job.stdout, ['the agents of kube-system/cgroute have left']);

    const now = new Date().toISOString().replace(/\.\d+Z/, 'Z');
    const conditions = ['SuccessCriteriaMet', 'Complete'].map((type) => ({
      type,
      status: 'True',
      lastProbeTime: now,
      lastTransitionTime: now,
    }));
    await cluster.api.patch(`${JOB}/status`, 'merge-patch+json', {
      status: {
        startTime: now,
        completionTime: now,
        succeeded: 1,
        ready: 0,
        uncountedTerminatedPods: {},
        conditions,
      },
    });
    const { code, stderr } = await uninstalling;
    assert.equal(code, 0, stderr);
    assert.equal(await left(), '');
  });

  test('without its hook leaves annotations only, as the agent is left without rights', async () => {
    const { code, stderr } = await runHelm('uninstall', 'cgroute', '--no-hooks');
    assert.equal(code, 0, stderr);
    assert.equal(await left(), '');
    agent.kill('SIGTERM');
    assert.deepEqual(await agent.exit, { code: 0, signal: null });
    assert.match(
      logOf(agent),
      /"why":"its service account is deleted","msg":"leaving: links and maps are removed"/,
    );
    assert.deepEqual(pins(), []);
    assert.equal(await isAnnotated(), true);
  });
});
