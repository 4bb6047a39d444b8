/** A node whose agent reaches the API server through a proxy that fails on demand, and what must hold while it does. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { makeClock } from './clock.ts';
import type { FaultProxy } from '../harness/fault-proxy.ts';
import { type Mesh, type MeshNode, servingPod, startMesh } from '../harness/kube-mesh.ts';
import { type KubeAgentOptions, AGENT_RULES } from '../harness/kube-agent.ts';
import type { ServiceAccount } from '../harness/kube-account.ts';
import { namespaceObject, type Texts } from '../harness/kube-objects.ts';
import type { ServerOptions } from '../harness/kube-server.ts';
import { BYPASS, MODE } from '../harness/label-names.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { agree, annotationsAgree, strayConnections } from './agreement.ts';

/** What the pods are before a fault, and what connections of theirs become. */
const PODS: Readonly<Record<string, { readonly labels: Texts; readonly travels: string }>> = {
  enrolled: { labels: {}, travels: 'redirected' },
  'opted-out': { labels: { [MODE]: 'none' }, travels: 'direct' },
  bypassed: { labels: { [BYPASS]: 'enabled' }, travels: 'direct' },
};

export interface FaultNode extends AsyncDisposable {
  readonly mesh: Mesh;
  readonly node: MeshNode;
  readonly proxy: FaultProxy & { readonly url: string };
  readonly account: ServiceAccount;
  /** Sets the agent's wall clock ahead of the right time, milliseconds; the machine's clocks are left alone. */
  jump(ahead: number): void;
  /** Time passes for the agent alone, by all its clocks; it is there when this settles, and has answered. */
  pass(milliseconds: number): Promise<void>;
  /** Starts the agent with a kubeconfig that names the account's files, and waits for nothing. */
  launch(options?: KubeAgentOptions): void;
  start(options?: KubeAgentOptions): Promise<void>;
  /** Makes a long wait before another try pass at once. */
  hurry(): Promise<void>;
  /** Connections of pods that no fault touches travel as ever, and the agent is healthy and ready. */
  travels(): Promise<void>;
  /** Notes what stands; gives what tells whether it still does, in the maps and for connections. */
  standing(): Promise<() => Promise<void>>;
  /** The two sources of objects say that they do not follow, for this reason, and that what stood goes on. */
  isCutOff(why: RegExp): Promise<void>;
  /** Both follow, and all agrees again. A long wait before another try is made to pass at once. */
  isBack(): Promise<void>;
  /** Restarts of the source of pods by a reason, so far. */
  restarts(reason: string): Promise<number>;
  /** A change that the agent has not seen: a label is flipped, a pod comes, another goes. */
  change(): Promise<void>;
}

export async function startFaultNode(name: string, options: ServerOptions = {}): Promise<FaultNode> {
  const stack = new AsyncDisposableStack();
  try {
    const mesh = stack.use(await startMesh(name, options));
    const { sandbox, cluster } = mesh;
    const proxy = await cluster.proxied();
    const account = await cluster.serviceAccount({ name: 'faulty', rules: AGENT_RULES });
    const clock = makeClock(sandbox);
    const node = await mesh.addNode({ name: 'node-a', agent: false, statusDelayMs: 50 });
    const kubeconfig = join(account.directory, 'kubeconfig-files');
    writeFileSync(
      kubeconfig,
      JSON.stringify({
        apiVersion: 'v1',
        kind: 'Config',
        'current-context': 'test',
        contexts: [{ name: 'test', context: { cluster: 'test', user: 'test' } }],
        clusters: [{ name: 'test', cluster: { server: proxy.url, 'certificate-authority': 'ca.crt' } }],
        users: [{ name: 'test', user: { tokenFile: 'token' } }],
      }),
    );
    const withFaults = (more: KubeAgentOptions = {}): KubeAgentOptions => ({
      kubeconfig,
      env: clock.env,
      ...more,
    });
    await cluster.apply(
      namespaceObject('shop', { [MODE]: 'ambient' }),
      ...Object.entries(PODS).map(([pod, { labels }]) =>
        servingPod(pod, { node: 'node-a', namespace: 'shop', labels }),
      ),
      ...['flip', 'goes-0'].map((pod) => servingPod(pod, { node: 'node-a', namespace: 'shop' })),
    );
    for (const pod of [...Object.keys(PODS), 'flip', 'goes-0']) await node.kubelet.running('shop', pod);
    let changes = 0;
    const ahead = { passed: 0, jumped: 0 };
    const setClock = (): void => clock.set({ wall: ahead.passed + ahead.jumped, monotonic: ahead.passed });

    async function pass(milliseconds: number): Promise<void> {
      ahead.passed += milliseconds;
      setClock();
      // It looks at its clock when it wakes.
      assert.equal((await node.http('healthz')).status, 200);
    }

    const figures = async (): Promise<string> => {
      const {
        pods,
        proxy: { address },
      } = await node.status();
      return JSON.stringify([
        address,
        pods.map(({ name: pod, verdict, reason, ips, cgroups }) => [
          pod,
          verdict,
          reason,
          ips,
          cgroups.map(({ id }) => id).sort(),
        ]),
      ]);
    };
    async function travels(): Promise<void> {
      for (const [pod, { travels: how }] of Object.entries(PODS)) {
        assert.equal(await node.travel((await node.kubelet.started('shop', pod)).place()), how, pod);
      }
      assert.deepEqual([(await node.http('healthz')).status, (await node.http('readyz')).status], [200, 200]);
    }
    const api = async (): Promise<{ readonly state: string; readonly detail: string }[]> =>
      (await node.status()).sources.filter(
        (source) => source.name === 'namespaces' || source.name === 'pods',
      );

    /** Seconds that it has made to pass. */
    async function hurry(now: Awaited<ReturnType<typeof api>>): Promise<number> {
      const seconds = Math.max(
        0,
        ...now.map(({ detail }) => Number(/next try in (\d+) s/.exec(detail)?.[1] ?? 0)),
      );
      if (seconds <= 1) return 0;
      await pass(seconds * 1000);
      return seconds;
    }

    return {
      mesh,
      node,
      proxy,
      account,
      pass,
      travels,
      hurry: async () => void (await hurry(await api())),
      jump(milliseconds) {
        ahead.jumped = milliseconds;
        setClock();
      },
      launch: (more) => void node.launchAgent(withFaults(more)),
      start: async (more) => void (await node.startAgent(withFaults(more))),
      async standing() {
        const before = await figures();
        return async () => {
          assert.equal(await figures(), before);
          await travels();
        };
      },
      async isCutOff(why) {
        let now: Awaited<ReturnType<typeof api>> = [];
        const isSo = ({ state, detail }: (typeof now)[number]): boolean =>
          state === 'degraded' && why.test(detail) && detail.includes('what stood before goes on');
        await eventually(
          `both are cut off: ${why}`,
          async () => (now = await api()).length === 2 && now.every(isSo),
        ).catch((error: unknown) => assert.fail(`${String(error)}\n${JSON.stringify(now)}`));
        const metrics = await node.metrics();
        for (const source of ['namespaces', 'pods'])
          assert.equal(metrics.get(`cgroute_source_state{source="${source}",state="degraded"}`), 1);
      },
      async isBack() {
        let passed = 0;
        let now: Awaited<ReturnType<typeof api>> = [];
        await eventually(
          'both follow again',
          async () => {
            now = await api();
            // Not so much that it would list again for its age alone.
            if (passed < 60) passed += await hurry(now);
            return now.length === 2 && now.every(({ state }) => state === 'ok');
          },
          { ownMs: 30_000 },
        ).catch((error: unknown) => assert.fail(`${String(error)}\n${JSON.stringify(now)}`));
        await agree(mesh, node);
        await annotationsAgree(mesh, node);
        assert.deepEqual((await strayConnections(mesh, node)).wrong, []);
      },
      restarts: async (reason) =>
        (await node.metrics()).get(`cgroute_source_restarts_total{source="pods",reason="${reason}"}`) ?? 0,
      async change() {
        const [gone, come] = [`goes-${changes}`, `goes-${++changes}`];
        const { labels } = (await cluster.pod('shop', 'flip'))?.metadata ?? {};
        await cluster.kubectl(
          '-n',
          'shop',
          'label',
          'pod',
          'flip',
          '--overwrite',
          `${MODE}${labels?.[MODE] === 'none' ? '-' : '=none'}`,
        );
        await cluster.kubectl('label', 'namespace', 'shop', '--overwrite', `changes=${changes}`);
        await cluster.kubectl('-n', 'shop', 'delete', 'pod', gone, '--grace-period=0', '--force');
        await cluster.apply(servingPod(come, { node: 'node-a', namespace: 'shop' }));
        await node.kubelet.running('shop', come);
      },
      [Symbol.asyncDispose]: () => stack.disposeAsync(),
    };
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}
