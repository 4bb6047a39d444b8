/** The harness's own promises: a real API server, and kubelets whose pods are real ones. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync, readlinkSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { cgroup2Mount, processesBelow } from '../../deploy/stage/cgroup.ts';
import { type Cluster, startCluster } from '../harness/kube.ts';
import { KubeApiError, type KubeApi, type ObjectList, makeKubeApi } from '../harness/kube-api.ts';
import { type Pod, namespaceObject, podObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { type Kubelet, startKubelet } from '../harness/kubelet.ts';
import type { PodOnNode } from '../harness/kubelet-view.ts';
import { makeNetwork } from '../../deploy/stage/netns.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';

const options = { skip: KUBE_MISSING };
const CONTAINER = /^containerd:\/\/[0-9a-f]{64}$/;

/** Everything on the machine that carries this token, processes too. */
function traces(token: string): string[] {
  const names = [cgroup2Mount(), '/run/netns', tmpdir()].flatMap((directory) =>
    existsSync(directory) ? readdirSync(directory).map((name) => join(directory, name)) : [],
  );
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8').split('\n');
  const processes = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8');
      } catch {
        return '';
      }
    });
  return [...names, ...mounts, ...processes].filter((name) => name.includes(token));
}

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

/** What a watch from this version says first: the type of an event, or the status of a failure. */
async function firstOfWatch(api: KubeApi, resourceVersion: string): Promise<string | number> {
  const path = `/api/v1/namespaces?resourceVersion=${resourceVersion}&timeoutSeconds=5`;
  try {
    for await (const { type } of api.watch(path)) return type;
    return 'nothing';
  } catch (error) {
    if (error instanceof KubeApiError) return error.status;
    throw error;
  }
}

async function versionNow(cluster: Cluster): Promise<string> {
  return (await cluster.api.get<ObjectList<unknown>>('/api/v1/namespaces')).metadata.resourceVersion;
}

test(
  'the API server answers, kubectl works, RBAC holds, and all of it goes away with the sandbox',
  options,
  async () => {
    let token = '';
    {
      await using sandbox = await makeSandbox('kube');
      token = sandbox.token;
      const cluster = await startCluster(sandbox, { audit: true }); // not disposed of: the sandbox must be enough
      await cluster.apply(
        podObject('client', { node: 'nowhere', namespace: 'demo' }),
        namespaceObject('demo', { colour: 'red' }),
      );
      assert.equal(
        await cluster.kubectl('get', 'namespace', 'demo', '-o', 'jsonpath={.metadata.labels.colour}'),
        'red',
      );
      await cluster.kubectl('label', 'pod', '-n', 'demo', 'client', 'colour=blue');
      assert.equal((await podNow(cluster, 'demo', 'client')).metadata.labels?.['colour'], 'blue');
      assert.equal((await podNow(cluster, 'demo', 'client')).status?.phase, 'Pending'); // nobody runs it

      const rules = [{ apiGroups: [''], resources: ['pods'], verbs: ['list'] }];
      const account = await cluster.serviceAccount({ name: 'agent', rules });
      const listing = (): Promise<{ code: number | null; stderr: string }> =>
        cluster.tryKubectl(['get', 'pods', '--all-namespaces'], { kubeconfig: account.kubeconfig() });
      assert.equal((await listing()).code, 0);
      const { code, stderr } = await cluster.tryKubectl(['delete', 'pod', '-n', 'demo', 'client'], {
        kubeconfig: account.kubeconfig(),
      });
      assert.equal(code, 1);
      assert.match(stderr, /system:serviceaccount:kube-system:agent.* cannot delete/);
      const asked = cluster.requests().filter(({ user }) => user === account.user);
      assert.deepEqual(
        asked.filter(({ uri }) => uri.includes('/pods')).map(({ verb }) => verb),
        ['list', 'delete'],
      );
      await account.revoke();
      await eventually('the account may no longer list', async () =>
        /Forbidden/.test((await listing()).stderr),
      );
      await account.grant();
      await eventually('the account may list again', async () => (await listing()).code === 0);
      const old = readFileSync(join(account.directory, 'token'), 'utf8');
      assert.notEqual(await account.renewToken(), old);

      await cluster.kubectl('delete', 'pod', '-n', 'demo', 'client', '--grace-period=0', '--force');
      await cluster.removeNamespace('demo');
      assert.match((await cluster.tryKubectl(['get', 'namespace', 'demo'])).stderr, /NotFound/);
      assert.ok(traces(token).length >= 4, traces(token).join('\n'));
    }
    assert.deepEqual(traces(token), []);
  },
);

test(
  'compaction gives a 410 to an old watch, and a restart keeps the objects and the port',
  options,
  async () => {
    await using sandbox = await makeSandbox('kube');
    await using cluster = await startCluster(sandbox);
    await cluster.apply(namespaceObject('demo'));
    const old = await versionNow(cluster);
    await cluster.apply(namespaceObject('demo', { colour: 'red' }));
    assert.equal(await firstOfWatch(cluster.api, old), 'MODIFIED');
    await cluster.compact();
    assert.equal(await firstOfWatch(cluster.api, old), 410);

    const now = await versionNow(cluster);
    await cluster.stopApiServer('SIGKILL');
    await assert.rejects(cluster.api.get('/api/v1/namespaces/demo'), { code: 'ECONNREFUSED' });
    await cluster.startApiServer();
    const demo = await cluster.api.get<Pod>('/api/v1/namespaces/demo');
    assert.deepEqual(demo.metadata.labels?.['colour'], 'red');
    await cluster.apply(namespaceObject('later'));
    assert.equal(await firstOfWatch(cluster.api, now), 'ADDED');
  },
);

test('without the watch cache, compaction alone expires a watch', options, async () => {
  await using sandbox = await makeSandbox('kube');
  await using cluster = await startCluster(sandbox, { watchCache: false });
  const old = await versionNow(cluster);
  await cluster.apply(namespaceObject('demo'));
  await cluster.compact();
  assert.equal(await firstOfWatch(cluster.api, old), 410);
});

test(
  'the proxy before the API server delays, falls silent, cuts in the middle, refuses',
  options,
  async () => {
    await using sandbox = await makeSandbox('kube');
    await using cluster = await startCluster(sandbox);
    const account = await cluster.serviceAccount({
      name: 'agent',
      rules: [{ apiGroups: [''], resources: ['namespaces'], verbs: ['*'] }],
    });
    await using proxy = await cluster.proxied({ delayMs: 300 });
    using api = makeKubeApi({ ...cluster.endpoint, url: proxy.url }, account.identity);
    const path = '/api/v1/namespaces';
    const started = performance.now();
    await api.get(path);
    assert.ok(performance.now() - started >= 600, 'two turns, TLS and the request, at 300 ms each');

    proxy.set({});
    const { metadata } = await api.get<ObjectList<unknown>>(path);
    const seen: string[] = [];
    const watching = (async () => {
      for await (const { object } of api.watch<Pod>(`${path}?resourceVersion=${metadata.resourceVersion}`))
        seen.push(object.metadata.name);
    })();
    await cluster.apply(namespaceObject('first'));
    await eventually('the event has come through', () => seen.includes('first'));
    proxy.set({ silent: true });
    await cluster.apply(namespaceObject('second'));
    await delay(300);
    assert.deepEqual(seen, ['first']);
    proxy.set({});
    await eventually('the event comes after the silence', () => seen.includes('second'));
    const broken = assert.rejects(watching);
    proxy.set({ cutAfterBytes: 1 }); // more have gone through, so the next byte is too much
    await cluster.apply(namespaceObject('third'));
    await broken;
    assert.deepEqual(seen, ['first', 'second']);
    proxy.set({ refuse: true });
    proxy.cut(); // connections that wait to be used again
    await assert.rejects(api.get(path));
  },
);

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
      await cluster.kubectl('wait', '-n', 'demo', 'pod/client', '--for=condition=Ready', '--timeout=10s');
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
      assert.deepEqual(kubelet.pods(), []);
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
    assert.deepEqual(
      [annotations?.['kubernetes.io/config.hash'], annotations?.['kubernetes.io/config.mirror']],
      [hash, hash],
    );
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
