/** The harness's own promises: a real API server, which fails as it is told to. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { cgroup2Mount } from '../../deploy/stage/cgroup.ts';
import { type Cluster, startCluster } from '../harness/kube.ts';
import { KubeApiError, type KubeApi, type ObjectList, makeKubeApi } from '../harness/kube-api.ts';
import { type Pod, namespaceObject, podObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';

const options = { skip: KUBE_MISSING };

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
      assert.equal((await cluster.pod('demo', 'client'))?.metadata.labels?.['colour'], 'blue');
      assert.equal((await cluster.pod('demo', 'client'))?.status?.phase, 'Pending'); // nobody runs it

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
