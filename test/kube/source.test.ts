/** The API server as the source, against a real one: what the source tells, and what the agent makes of it. */
import assert from 'node:assert/strict';
import { resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { pino } from 'pino';
import { kubeAccess, type KubeAccess } from '../../mapper/kube/kube-access.ts';
import { openKubeClient } from '../../mapper/kube/kube-client.ts';
import { defaultTiming, type KubeTiming } from '../../mapper/kube/kube-resource.ts';
import { kubeSource } from '../../mapper/object-sources/kube-source.ts';
import type { ObjectSource } from '../../mapper/object-sources/object-source.ts';
import { createInventory, type Inventory } from '../../mapper/inventory/inventory.ts';
import type { Agent } from '../../deploy/stage/agent.ts';
import { askAgent } from '../harness/agent-http.ts';
import { type ClusterNode, startClusterNode } from '../harness/cluster-node.ts';
import type { ServiceAccount } from '../harness/kube-account.ts';
import type { KubeObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import type { Cluster } from '../harness/kube.ts';
import type { NodeStatus } from '../../deploy/stage/node-status.ts';
import { eventually } from '../../deploy/stage/process.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';
import { BYPASS, MODE } from '../harness/label-names.ts';

const RULES = [{ apiGroups: [''], resources: ['pods', 'namespaces'], verbs: ['list', 'watch'] }];

const namespace = (name: string, labels: Record<string, string> = {}): KubeObject => ({
  apiVersion: 'v1',
  kind: 'Namespace',
  metadata: { name, labels },
});
const pod = (name: string, inNamespace = 'shop', node = 'node-a'): KubeObject => ({
  apiVersion: 'v1',
  kind: 'Pod',
  metadata: { name, namespace: inNamespace },
  spec: { nodeName: node, containers: [{ name: 'c', image: 'none' }] },
});

describe('against a real API server, the source', { skip: KUBE_MISSING }, () => {
  let node: ClusterNode;
  let sandbox: Sandbox;
  let cluster: Cluster;
  let account: ServiceAccount;

  before(async () => {
    node = await startClusterNode('kube-source');
    ({ sandbox, cluster } = node);
    account = await cluster.serviceAccount({ name: 'source', rules: RULES });
    await cluster.apply(namespace('shop', { [MODE]: 'ambient' }), pod('first'));
  });
  after(() => node?.[Symbol.asyncDispose]());

  interface Followed extends AsyncDisposable {
    readonly source: ObjectSource;
    readonly inventory: Inventory;
    names(): string[];
    restarts(name: string): Readonly<Record<string, number>>;
    isOk(): boolean;
  }

  /** With a kubeconfig's path, or as somebody. */
  async function follow(as: string | KubeAccess, timing: Partial<KubeTiming> = {}): Promise<Followed> {
    const access = typeof as === 'string' ? kubeAccess({ env: { KUBECONFIG: as } }) : as;
    const client = openKubeClient({ access, deadlineMs: 3000 });
    const source = kubeSource({
      client,
      node: 'node-a',
      logger: pino({ level: 'silent' }),
      timing: { ...defaultTiming, backoffMs: [50, 500], settledMs: 500, ...timing },
    });
    const inventory = createInventory({ node: 'node-a' });
    const following = await source.follow({
      onObjects: (objects) => inventory.replaceAll(objects),
      onPod: (each) => inventory.upsertPod(each),
      onPodGone: (uid) => inventory.removePod(uid),
      onNamespace: (each) => inventory.upsertNamespace(each),
      onNamespaceGone: (name) => inventory.removeNamespace(name),
    });
    await following.synced;
    return {
      source,
      inventory,
      names: () => [...inventory.pods()].map(({ name }) => name).sort(),
      restarts: (name) => source.figures().restarts[name] ?? {},
      isOk: () => source.states().every(({ state }) => state === 'ok'),
      [Symbol.asyncDispose]: () => following[Symbol.asyncDispose](),
    };
  }

  const labelsOf = ({ inventory }: Followed): string => JSON.stringify(inventory.namespace('shop')?.labels);
  const has = (followed: Followed, name: string) =>
    eventually(`pod ${name} is known`, () => followed.names().includes(name));
  const lacks = (followed: Followed, name: string) =>
    eventually(`pod ${name} is not known`, () => !followed.names().includes(name));

  test('needs to list and watch pods and namespaces, and nothing else', async () => {
    await using f = await follow(account.kubeconfig());
    assert.deepEqual(f.names(), ['first']);
    assert.match(labelsOf(f), /"istio.io\/dataplane-mode":"ambient"/);
    assert.ok(f.isOk());
  });

  test("works with a pod's service account, whose token is renewed", async () => {
    const { port } = new URL(cluster.endpoint.url);
    const env = { KUBERNETES_SERVICE_HOST: '127.0.0.1', KUBERNETES_SERVICE_PORT: port };
    await using f = await follow(kubeAccess({ env, serviceAccount: account.directory }), {
      relistMs: 300,
      watchMs: [1000, 1000],
    });
    await account.renewToken();
    await cluster.apply(pod('renewed'));
    await has(f, 'renewed');
    await eventually('it has listed again', () => (f.restarts('pods')['relist'] ?? 0) >= 2);
    assert.ok(f.isOk());
    await cluster.kubectl('-n', 'shop', 'delete', 'pod', 'renewed', '--grace-period=0', '--force');
  });

  test('opens the next watch when the server ends one, and loses nothing between', async () => {
    await using f = await follow(account.kubeconfig(), { watchMs: [1000, 1000], settledMs: 100 });
    for (let i = 0; i < 15; i++) {
      await cluster.apply(pod(`between-${i}`));
      await delay(100);
    }
    await has(f, 'between-14');
    for (let i = 0; i < 15; i++) assert.ok(f.names().includes(`between-${i}`));
    assert.deepEqual(Object.keys(f.restarts('pods')), ['timeout']);
  });

  test('hears of kubectl label on a namespace and on a pod', async () => {
    await using f = await follow(account.kubeconfig());
    await cluster.kubectl('label', 'namespace', 'shop', 'a=b');
    await eventually('the namespace has its label', () => labelsOf(f).includes('"a":"b"'));
    await cluster.kubectl('label', 'namespace', 'shop', 'a-');
    await eventually('the namespace has lost its label', () => !labelsOf(f).includes('"a"'));
    await cluster.kubectl('-n', 'shop', 'label', 'pod', 'first', `${BYPASS}=enabled`);
    await eventually(
      'the pod has its label',
      () => f.inventory.podsNamed('shop', 'first')[0]?.labels[BYPASS] === 'enabled',
    );
  });

  test('sees pods of its node only, come, go, and come again under one name', async () => {
    await using f = await follow(account.kubeconfig());
    await cluster.apply(pod('elsewhere', 'shop', 'node-b'), pod('again'));
    await has(f, 'again');
    const [before] = f.inventory.podsNamed('shop', 'again');
    await cluster.kubectl('-n', 'shop', 'delete', 'pod', 'again', '--grace-period=0', '--force');
    await cluster.apply(pod('again'));
    await eventually('the other pod of that name is known', () => {
      const pods = f.inventory.podsNamed('shop', 'again');
      return pods.length === 1 && pods[0]?.uid !== before?.uid;
    });
    assert.ok(!f.names().includes('elsewhere'));
  });

  test('knows the namespace of a pod before the pod, however fast both are made', async () => {
    await using f = await follow(account.kubeconfig());
    for (let i = 0; i < 10; i++)
      await cluster.apply(namespace(`fast-${i}`, { [MODE]: 'ambient' }), pod(`fast-${i}`, `fast-${i}`));
    await has(f, 'fast-9');
    for (let i = 0; i < 10; i++) assert.ok(f.inventory.namespace(`fast-${i}`), `namespace fast-${i}`);
  });

  test('catches up when the API server was killed and is back', async () => {
    await using f = await follow(account.kubeconfig());
    await cluster.stopApiServer('SIGKILL');
    await eventually('it says so', () =>
      f.source
        .states()
        .every(({ state, detail }) => state === 'degraded' && /what stood before goes on/.test(detail)),
    );
    const stood = f.names();
    await delay(500);
    assert.deepEqual(f.names(), stood);
    await cluster.startApiServer();
    await cluster.apply(pod('after-the-restart'));
    await has(f, 'after-the-restart');
    await eventually('all is well', () => f.isOk());
  });

  test('makes a relist after an expired watch, as what it knew was compacted away, and misses no delete', async () => {
    await cluster.apply(pod('compacted'));
    await using proxy = await cluster.proxied();
    await using f = await follow(account.kubeconfig(proxy.url));
    await has(f, 'compacted');
    proxy.set({ refuse: true });
    proxy.cut();
    await cluster.kubectl('-n', 'shop', 'delete', 'pod', 'compacted', '--grace-period=0', '--force');
    await cluster.apply(pod('later'));
    await cluster.compact();
    proxy.set({});
    await lacks(f, 'compacted');
    await has(f, 'later');
    await eventually('all is well', () => f.isOk());
    assert.ok((f.restarts('pods')['expired'] ?? 0) >= 1, JSON.stringify(f.restarts('pods')));
  });

  test('goes on after watches that are cut in the middle of an event', async () => {
    await using proxy = await cluster.proxied();
    await using f = await follow(account.kubeconfig(proxy.url));
    for (let i = 0; i < 5; i++) {
      // Each connection lives for its handshake and a few events, and is cut wherever it is then.
      proxy.set({ cutAfterBytes: 5000 + i * 777 });
      proxy.cut();
      await cluster.kubectl(
        '-n',
        'shop',
        'annotate',
        'pod',
        'first',
        `x=${'y'.repeat(3000)}${i}`,
        '--overwrite',
      );
      await cluster.apply(pod(`cut-${i}`));
    }
    proxy.set({});
    await has(f, 'cut-4');
    for (let i = 0; i < 5; i++) assert.ok(f.names().includes(`cut-${i}`));
    await eventually('all is well', () => f.isOk());
  });

  test('gives up connections over which nothing comes any more', async () => {
    await using proxy = await cluster.proxied();
    await using f = await follow(account.kubeconfig(proxy.url), { idleMs: 1500 });
    proxy.set({ silent: true });
    await eventually('it has given up', () => (f.restarts('pods')['idle'] ?? 0) >= 1);
    await cluster.apply(pod('unheard'));
    proxy.set({});
    proxy.cut();
    await has(f, 'unheard');
  });

  test('survives that its role is taken for a while', async () => {
    await using proxy = await cluster.proxied();
    await using f = await follow(account.kubeconfig(proxy.url));
    await account.revoke();
    try {
      await eventually('it is refused', () => {
        proxy.cut();
        return f.source
          .states()
          .every(({ state, detail }) => state === 'degraded' && /403.*forbidden/.test(detail));
      });
    } finally {
      await account.grant();
    }
    await cluster.apply(pod('granted'));
    await has(f, 'granted');
    await eventually('all is well', () => f.isOk());
  });

  test('does with few requests, however many pods there are elsewhere', async () => {
    for (let i = 0; i < 100; i++) await cluster.apply(pod(`far-${i}`, 'shop', 'node-c'));
    await using f = await follow(account.kubeconfig());
    await cluster.apply(pod('near'));
    await has(f, 'near');
    assert.equal(f.source.figures().requests, 4);
  });

  describe('of the agent', () => {
    const program = resolve(import.meta.dirname, '../../dist/cgroute');
    const start = (kubeconfig = account.kubeconfig()): Agent => node.launchAgent({ kubeconfig });
    const said = (agent: Agent, message: string): boolean =>
      agent.log().some(({ msg }) => msg?.startsWith(message) === true);
    const status = (): Promise<NodeStatus> => node.status();
    const verdictOf = async (name: string): Promise<string | undefined> =>
      (await status()).pods.find((each) => each.name === name)?.reason;
    const becomes = (name: string, reason: string) =>
      eventually(`${name} is ${reason}`, async () => (await verdictOf(name)) === reason);
    /** `/healthz` and `/readyz`. */
    const health = async (agent: Agent): Promise<number[]> =>
      Promise.all(['healthz', 'readyz'].map(async (path) => (await askAgent(agent, path)).status));

    before(async () => {
      await cluster.apply(pod('web'), pod('db'));
      for (const name of ['web', 'db']) await node.startPod('shop', name);
    });

    test('follows labels of namespaces and pods', async () => {
      await using agent = start();
      await eventually('it is ready', () => said(agent, 'ready'));
      await becomes('web', 'namespace-label');
      assert.deepEqual(await health(agent), [200, 200]);
      await cluster.kubectl('-n', 'shop', 'label', 'pod', 'web', `${BYPASS}=outbound`);
      await becomes('web', 'bypass-outbound');
      await cluster.kubectl('label', 'namespace', 'shop', `${MODE}-`);
      await becomes('db', 'not-enrolled');
      await becomes('web', 'not-enrolled');
      await cluster.kubectl('label', 'namespace', 'shop', `${MODE}=Kmesh`);
      await becomes('db', 'namespace-label');
      assert.deepEqual(
        (await status()).sources.slice(0, 2).map(({ name, state }) => `${name} ${state}`),
        ['namespaces ok', 'pods ok'],
      );
      await agent.stop();
    });

    test('API server down at start, in the middle, at exit: keeps every verdict, and says that it is not ready', async () => {
      const before = (await status()).pods.map(
        ({ name, verdict, cgroups }) => `${name} ${verdict} ${cgroups.length}`,
      );
      await using proxy = await cluster.proxied({ refuse: true });
      await using agent = start(account.kubeconfig(proxy.url));
      await eventually('it goes on without', () => said(agent, 'nobody says yet'));
      await eventually('it serves', () => said(agent, 'serving'));
      assert.deepEqual(await health(agent), [200, 503]);
      const now = await status();
      assert.deepEqual(
        now.pods.map(({ name, verdict, cgroups }) => `${name} ${verdict} ${cgroups.length}`),
        before,
      );
      assert.equal(now.agent.ready, false);
      assert.match(
        now.sources.find(({ name }) => name === 'pods')?.detail ?? '',
        /never listed; since .*cannot be reached/,
      );
      // What changes meanwhile is found when the server is there.
      await cluster.kubectl('-n', 'shop', 'label', 'pod', 'db', `${MODE}=none`);
      await cluster.kubectl('-n', 'shop', 'delete', 'pod', 'first', '--grace-period=0', '--force');
      assert.ok(before.some((line) => line.startsWith('first ')));
      proxy.set({});
      await eventually('it is ready', () => said(agent, 'ready'), { ownMs: 30_000 });
      await becomes('db', 'pod-opt-out');
      assert.equal(await verdictOf('first'), undefined);
      assert.deepEqual(await health(agent), [200, 200]);

      proxy.set({ refuse: true });
      proxy.cut();
      await eventually(
        'it is on its own',
        async () => (await status()).sources.filter(({ state }) => state === 'degraded').length === 2,
      );
      assert.deepEqual(await health(agent), [200, 200]);
      assert.equal(await verdictOf('web'), 'bypass-outbound');
      // The server stays away, so it does not wait for that.
      assert.deepEqual(await agent.stop(), { code: 0, signal: null });
      assert.equal(await verdictOf('web'), 'bypass-outbound', 'what it knew is still there to be acted on');
    });

    test('is refused at once where nothing tells how to reach an API server', async () => {
      const agent = sandbox.spawn({
        cmd: program,
        args: ['run', '--source', 'kube', '--bpffs-root', `${sandbox.bpffs}/none`],
        env: { HOME: sandbox.directory, KUBECONFIG: '', KUBERNETES_SERVICE_HOST: '' },
      });
      assert.deepEqual(await agent.exit, { code: 2, signal: null });
      assert.match(
        agent.stderr.join('\n'),
        /^cgroute: --source kube finds no way to an API server: expected /,
      );
    });
  });
});
