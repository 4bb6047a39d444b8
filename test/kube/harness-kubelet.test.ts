/** The harness's own promises: kubelets whose pods are real ones. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { test } from 'node:test';
import { cgroup2Mount, processesBelow } from '../../deploy/stage/cgroup.ts';
import { type Cluster, startCluster } from '../harness/kube.ts';
import { type Pod, namespaceObject, podObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { type Kubelet, startKubelet } from '../harness/kubelet.ts';
import type { PodOnNode } from '../harness/kubelet-view.ts';
import { makeNetwork } from '../../deploy/stage/netns.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';
import { CONFIG_HASH, CONFIG_MIRROR } from '../harness/label-names.ts';

const options = { skip: KUBE_MISSING };
const CONTAINER = /^containerd:\/\/[0-9a-f]{64}$/;

/** A pod that the API server must have. */
async function podNow(cluster: Cluster, namespace: string, name: string): Promise<Pod> {
  const pod = await cluster.pod(namespace, name);
  assert.ok(pod, `the API server has no pod ${namespace}/${name}`);
  return pod;
}

function cgroupOf(pid: number): string {
  return (
    readFileSync(`/proc/${pid}/cgroup`, 'utf8')
      .split('\n')
      .find((line) => line.startsWith('0::'))
      ?.slice(3) ?? ''
  );
}

function pidOf(pod: PodOnNode, container = 'main'): number {
  const pid = pod.worker.containers.get(container)?.current?.pid;
  assert.ok(pid, `${pod.name} has no process in container ${container}`);
  return pid;
}

function readyOf(pod: Pod): string | undefined {
  return pod.status?.conditions?.find(({ type }) => type === 'Ready')?.status;
}

/** A sandbox with a cluster and the kubelet of one node, disposed of in the right order. */
async function oneNode(
  of: Omit<Parameters<typeof startKubelet>[2], 'node'>,
): Promise<AsyncDisposableStack & { cluster: Cluster; kubelet: Kubelet; root: string }> {
  const stack = new AsyncDisposableStack();
  try {
    const sandbox = stack.use(await makeSandbox('kubelet'));
    const cluster = stack.use(await startCluster(sandbox));
    const kubelet = stack.use(await startKubelet(cluster, sandbox, { node: 'one', ...of }));
    await cluster.apply(namespaceObject('demo'));
    return Object.assign(stack, { cluster, kubelet, root: sandbox.cgroupRoot });
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}

for (const [driver, pattern] of [
  [
    'systemd',
    (uid: string) =>
      `/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod${uid.replaceAll('-', '_')}.slice/cri-containerd-ID.scope`,
  ],
  ['cgroupfs', (uid: string) => `/kubepods/besteffort/pod${uid}/ID`],
] as const) {
  test(
    `a pod becomes a runc container in its cgroup and namespace, and is deleted with grace: ${driver}`,
    options,
    async () => {
      await using node = await oneNode({ driver });
      const { cluster, kubelet, root } = node;
      await cluster.apply(podObject('client', { node: 'one', namespace: 'demo' }));
      const pod = await kubelet.running('demo', 'client');
      await cluster.kubectl('wait', '-n', 'demo', 'pod/client', '--for=condition=Ready', '--timeout=120s');
      const now = await podNow(cluster, 'demo', 'client');
      assert.equal(now.status?.phase, 'Running');
      assert.equal(now.status?.podIP, pod.worker.network?.ip4);
      assert.equal(now.status?.podIPs?.length, 2);
      const id = now.status?.containerStatuses?.[0]?.containerID ?? '';
      assert.match(id, CONTAINER);

      const pid = pidOf(pod);
      const expected = pattern(now.metadata.uid ?? '').replace('ID', id.slice('containerd://'.length));
      assert.equal(cgroupOf(pid), root.slice(cgroup2Mount().length) + expected);
      assert.equal(
        readlinkSync(`/proc/${pid}/ns/net`),
        `net:[${statSync(`/run/netns/${pod.worker.network?.netns}`).ino}]`,
      );
      const shown = pod.exec('main', 'ip', '-4', 'address', 'show', 'eth0');
      assert.match(await shown.line(/inet /), new RegExp(`${pod.worker.network?.ip4}/`));

      // `sleep` as a namespace's first process ignores SIGTERM, so the whole grace period passes.
      const { cgroup } = pod.worker;
      const started = performance.now();
      await cluster.kubectl('delete', 'pod', '-n', 'demo', 'client', '--wait=false', '--grace-period=2');
      const dying = await podNow(cluster, 'demo', 'client');
      assert.ok(dying.metadata.deletionTimestamp);
      await eventually('the object is gone', async () => (await cluster.pod('demo', 'client')) === undefined);
      assert.ok(performance.now() - started > 1900, 'the grace period');
      assert.equal(existsSync(cgroup?.absolute ?? ''), false);
      assert.equal(existsSync(`/proc/${pid}`), false);
      await eventually('the kubelet has forgotten it', () => kubelet.pods().length === 0);
      assert.deepEqual(kubelet.problems, []);
    },
  );
}

test(
  'containers restart under a new id, ephemeral and init containers run, a job completes and stays listed',
  options,
  async () => {
    await using node = await oneNode({ runtime: 'process', statusDelayMs: 50 });
    const { cluster, kubelet } = node;
    const init = { name: 'init', image: 'test.invalid/init', command: ['sleep', '0.2'] };
    await cluster.apply(
      podObject('client', { node: 'one', namespace: 'demo', spec: { initContainers: [init] } }),
      podObject('job', {
        node: 'one',
        namespace: 'demo',
        command: ['sleep', '0.1'],
        spec: { restartPolicy: 'Never' },
      }),
      podObject('failing', {
        node: 'one',
        namespace: 'demo',
        command: ['false'],
        spec: { restartPolicy: 'OnFailure' },
      }),
    );
    const pod = await kubelet.running('demo', 'client');
    const before = pod.worker.containers.get('main')?.id;
    pod.setReady(false);
    await eventually(
      'it is reported as not ready',
      async () => readyOf(await podNow(cluster, 'demo', 'client')) === 'False',
    );
    pod.setReady(true);
    await eventually(
      'it is reported as ready',
      async () => readyOf(await podNow(cluster, 'demo', 'client')) === 'True',
    );
    await pod.restart('main');
    const statusOf = async (name: string) => (await podNow(cluster, 'demo', name)).status;
    await eventually(
      'the restart is reported',
      async () => (await statusOf('client'))?.containerStatuses?.[0]?.restartCount === 1,
    );
    const after = (await statusOf('client'))?.containerStatuses?.[0]?.containerID;
    assert.match(after ?? '', CONTAINER);
    assert.notEqual(after, `containerd://${before}`);

    await cluster.kubectl(
      'debug',
      '-n',
      'demo',
      'client',
      '--image=test.invalid/debug',
      '--container=debug',
      '--profile=general',
      '--',
      'sleep',
      '1000',
    );
    await eventually(
      'the ephemeral container is reported',
      async () =>
        (await statusOf('client'))?.ephemeralContainerStatuses?.[0]?.state?.['running'] !== undefined,
    );
    assert.equal(cgroupOf(pidOf(pod, 'debug')).split('/').at(-2), cgroupOf(pidOf(pod)).split('/').at(-2));

    await eventually('the job is complete', async () => (await statusOf('job'))?.phase === 'Succeeded');
    const job = await podNow(cluster, 'demo', 'job');
    assert.ok(job.status?.podIP, 'its address is still shown');
    assert.equal(readyOf(job), 'False');
    const [over] = kubelet.pods().filter(({ name }) => name === 'job');
    assert.deepEqual([over?.worker.over, over?.worker.cgroup], [true, undefined]);
    await eventually('the failing one is started again and again, ever later', async () => {
      const status = (await statusOf('failing'))?.containerStatuses?.[0];
      return (
        (status?.restartCount ?? 0) >= 2 && status?.state?.['waiting']?.['reason'] === 'CrashLoopBackOff'
      );
    });
    // By force: the object goes first, then the containers.
    const { cgroup } = pod.worker;
    await cluster.kubectl('delete', 'pod', '-n', 'demo', '--all', '--grace-period=0', '--force');
    await eventually(
      'nothing is left',
      () => kubelet.pods().length === 0 && !existsSync(cgroup?.absolute ?? ''),
    );
    assert.deepEqual(kubelet.problems, []);
  },
);

test(
  'a static pod has the cgroup of its hash and a mirror pod with a UID of its own, which comes back when deleted',
  options,
  async () => {
    await using node = await oneNode({ runtime: 'process', driver: 'cgroupfs', statusDelayMs: 50 });
    const { cluster, kubelet, root } = node;
    const { hash } = kubelet.addStaticPod(podObject('registry', { node: 'one', namespace: 'demo' }));
    const pod = await kubelet.running('demo', 'registry-one');
    const mirror = await podNow(cluster, 'demo', 'registry-one');
    const { annotations, uid } = mirror.metadata;
    assert.match(hash, /^[0-9a-f]{32}$/);
    assert.deepEqual([annotations?.[CONFIG_HASH], annotations?.[CONFIG_MIRROR]], [hash, hash]);
    assert.notEqual(uid?.replaceAll('-', ''), hash);
    assert.equal(pod.worker.cgroup?.absolute, `${root}/kubepods/besteffort/pod${hash}`);
    assert.ok(processesBelow(pod.worker.cgroup?.absolute ?? '').includes(pidOf(pod)));
    const pid = pidOf(pod);
    await cluster.kubectl('delete', 'pod', '-n', 'demo', 'registry-one', '--wait=false');
    await eventually('another mirror pod is there', async () => {
      const now = await cluster.pod('demo', 'registry-one');
      return now !== undefined && now.metadata.uid !== uid && now.status?.phase === 'Running';
    });
    assert.equal(pidOf(pod), pid);
    await kubelet.removeStaticPod('demo', 'registry');
    assert.equal(await cluster.pod('demo', 'registry-one'), undefined);
    assert.equal(existsSync(`${root}/kubepods/besteffort/pod${hash}`), false);
  },
);

test(
  'two nodes on one machine run their own pods, which reach each other, through an absence of the API server',
  options,
  async () => {
    await using sandbox = await makeSandbox('kubelets');
    await using cluster = await startCluster(sandbox);
    const network = await makeNetwork(sandbox);
    const of = { network, runtime: 'process', statusDelayMs: 50 } as const;
    await using a = await startKubelet(cluster, sandbox, {
      ...of,
      node: 'a',
      root: 'node-a',
      range: [10, 99],
      host: await network.addHost('a'),
    });
    await using b = await startKubelet(cluster, sandbox, {
      ...of,
      node: 'b',
      root: 'node-b',
      range: [100, 199],
      host: await network.addHost('b'),
      driver: 'cgroupfs',
    });
    await cluster.apply(
      podObject('client', { node: 'a' }),
      podObject('server', { node: 'b' }),
      podObject('agent', { node: 'b', spec: { hostNetwork: true } }),
    );
    const [client, server, agent] = await Promise.all([
      a.running('default', 'client'),
      b.running('default', 'server'),
      b.running('default', 'agent'),
    ]);
    assert.deepEqual(
      [a, b].map((kubelet) => kubelet.pods().length),
      [1, 2],
    );
    assert.ok(cgroupOf(pidOf(client)).includes('/node-a/kubepods.slice/'));
    assert.ok(cgroupOf(pidOf(server)).includes('/node-b/kubepods/'));
    assert.equal((await podNow(cluster, 'default', 'agent')).status?.podIP, b.host.ip4);
    assert.equal(agent.worker.network, b.host);
    const ip = server.worker.network?.ip4 ?? '';
    await listen(sandbox, server.place(), 'serve', ip, [80]);
    const connected = await connect(client.place(), ip, 80);
    assert.ok(connected.ok, JSON.stringify(connected));
    assert.equal(await cluster.kubectl('get', 'nodes', '-o', 'jsonpath={.items[*].metadata.name}'), 'a b');

    await cluster.stopApiServer();
    await client.restart('main'); // as ever
    await cluster.startApiServer();
    await cluster.apply(podObject('late', { node: 'a' }));
    await a.running('default', 'late');
    await eventually(
      'what happened meanwhile is reported',
      async () =>
        (await podNow(cluster, 'default', 'client')).status?.containerStatuses?.[0]?.restartCount === 1,
    );
  },
);

test(
  'addresses are given out again as asked, statuses come as late as asked, and 50 pods without processes are cheap',
  options,
  async () => {
    await using node = await oneNode({ runtime: 'none', reuse: 'at-once', statusDelayMs: Infinity });
    const { cluster, kubelet } = node;
    await cluster.apply(podObject('old', { node: 'one', namespace: 'demo' }));
    const old = await kubelet.started('demo', 'old');
    const address = old.worker.network?.ip4;
    assert.equal((await podNow(cluster, 'demo', 'old')).status?.podIP, undefined);
    kubelet.setStatusDelay(0);
    await kubelet.running('demo', 'old');
    assert.equal((await podNow(cluster, 'demo', 'old')).status?.podIP, address);
    await cluster.kubectl('delete', 'pod', '-n', 'demo', 'old');
    await cluster.apply(podObject('new', { node: 'one', namespace: 'demo' }));
    assert.equal((await kubelet.running('demo', 'new')).worker.network?.ip4, address);

    const many = Array.from({ length: 50 }, (_, index) =>
      podObject(`pod-${index}`, { node: 'one', namespace: 'demo' }),
    );
    await cluster.apply(...many);
    await Promise.all(many.map(({ metadata }) => kubelet.running('demo', metadata.name)));
    await cluster.kubectl('delete', 'pod', '-n', 'demo', '--all', '--wait=false');
    await eventually('all are gone', () => kubelet.pods().length === 0);
    assert.deepEqual(kubelet.problems, []);
  },
);
