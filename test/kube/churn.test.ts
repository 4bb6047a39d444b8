/** 500 pods with random labels come, change and go on two nodes; in the end the API, the maps, `status` and connections agree. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { dial } from '../harness/dialler.ts';
import { setTimeout as delay } from 'node:timers/promises';
import { beginWait } from '../../deploy/stage/deadline.ts';
import type { FaultProxy } from '../harness/fault-proxy.ts';
import { KubeApiError } from '../harness/kube-api.ts';
import { type Mesh, type MeshNode, servingPod, startMesh } from '../harness/kube-mesh.ts';
import { namespaceObject, type Pod, type Texts } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { BYPASS, GATEWAY, MODE, SIDECAR_STATUS } from '../harness/label-names.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { agree, annotationsAgree, podsOn, strayConnections } from './agreement.ts';
import { makeRandom } from '../harness/random.ts';

const PODS = 500;
/** So many of them live at one time, on both nodes together. */
const ALIVE = 140;
const WORKERS = 4;

const MODES = [undefined, 'ambient', 'Kmesh', 'none', 'NONE', 'sidecarless'];
const BYPASSES = [undefined, undefined, 'enabled', 'Outbound', 'inbound', 'no'];
const NAMESPACES = ['one', 'two', 'three', 'four', 'kube-system'];
/** Names come again, as a StatefulSet's do. */
const NAMES = Array.from({ length: 60 }, (_, at) => `pod-${at}`);

const random = makeRandom();

function texts(of: Readonly<Record<string, string | undefined>>): Texts {
  return Object.fromEntries(
    Object.entries(of).filter((entry): entry is [string, string] => entry[1] !== undefined),
  );
}

function randomPod(): Pod {
  const node = random.pick(['node-a', 'node-b']);
  const more = random.weighted({ none: 80, job: 6, host: 4, gateway: 4, runc: 6 });
  return servingPod(random.pick(NAMES), {
    node,
    namespace: random.pick(NAMESPACES),
    labels: texts({
      [MODE]: random.pick(MODES),
      [BYPASS]: random.pick(BYPASSES),
      [GATEWAY]: more === 'gateway' ? 'istio.io-mesh-controller' : undefined,
      runtime: more === 'runc' ? 'runc' : undefined,
    }),
    annotations: random.next() < 0.15 ? { [SIDECAR_STATUS]: '{}' } : {},
    ...(more === 'job'
      ? { command: ['sleep', '0.2'] }
      : more === 'host'
        ? { command: ['sleep', '100000'] }
        : {}),
    spec: {
      ...(more === 'job' && { restartPolicy: 'Never' }),
      ...(more === 'host' && { hostNetwork: true }),
    },
  });
}

/** Repeats what the API server's absence prevents. What another change prevents (404, 409) is done. @returns whether it was as asked */
async function persist(what: () => Promise<unknown>): Promise<boolean> {
  for (const wait = beginWait(60_000); ; await delay(200)) {
    try {
      await what();
      return true;
    } catch (error) {
      if (error instanceof KubeApiError && [404, 409].includes(error.status)) return false;
      if (/\((NotFound|Conflict)\)/.test(String(error))) return false;
      if (wait.isOver()) throw error;
    }
  }
}

async function churn(
  mesh: Mesh,
  nodes: readonly MeshNode[],
  milestones: ReadonlyMap<number, () => Promise<void>>,
): Promise<Record<string, number>> {
  const { api, kubectl } = mesh.cluster;
  const pathOf = ({ metadata: { name, namespace } }: Pod): string =>
    `/api/v1/namespaces/${namespace}/pods/${name}`;
  const alive = new Map<string, Pod>();
  const did: Record<string, number> = {};
  const due = [...milestones].sort(([left], [right]) => left - right);
  const faults: Promise<void>[] = [];
  let created = 0;

  const steps = {
    async create() {
      const pod = randomPod();
      if (alive.has(pathOf(pod))) return;
      alive.set(pathOf(pod), pod);
      const path = `/api/v1/namespaces/${pod.metadata.namespace}/pods`;
      if (await persist(() => api.request('POST', path, pod))) created++;
      else alive.delete(pathOf(pod)); // the one before is still going
    },
    async remove(grace = 1) {
      if (alive.size < ALIVE / 2) return;
      const path = random.pick([...alive.keys()]);
      alive.delete(path);
      await persist(() =>
        api.request('DELETE', path, { kind: 'DeleteOptions', apiVersion: 'v1', gracePeriodSeconds: grace }),
      );
    },
    removeByForce: () => steps.remove(0),
    async replace() {
      const path = random.pick([...alive.keys()]);
      const pod = alive.get(path);
      if (pod === undefined) return;
      await persist(() =>
        api.request('DELETE', path, { kind: 'DeleteOptions', apiVersion: 'v1', gracePeriodSeconds: 0 }),
      );
      await persist(() => api.request('POST', path.slice(0, path.lastIndexOf('/')), pod));
    },
    async labelPod() {
      const pod = random.pick([...alive.values()]);
      if (pod === undefined) return;
      const [key, values] = random.pick([
        [MODE, MODES],
        [BYPASS, BYPASSES],
      ] as const);
      const value = random.pick(values);
      const text = value === undefined ? `${key}-` : `${key}=${value}`;
      await persist(() =>
        kubectl('label', '--overwrite', '-n', pod.metadata.namespace ?? '', 'pod', pod.metadata.name, text),
      );
    },
    async labelNamespace() {
      const mode = random.pick(MODES);
      const key = MODE;
      await persist(() =>
        kubectl(
          'label',
          '--overwrite',
          'namespace',
          random.pick(NAMESPACES),
          mode === undefined ? `${key}-` : `${key}=${mode}`,
        ),
      );
    },
    async restart() {
      const pods = random
        .pick(nodes)
        .kubelet.pods()
        .filter(({ worker, namespace }) => !worker.over && NAMESPACES.includes(namespace));
      // It may end in this moment.
      await random
        .pick(pods)
        ?.worker.containers.get('main')
        ?.current?.kill('KILL')
        .catch(() => {});
    },
  };

  async function work(): Promise<void> {
    while (created < PODS) {
      const [at, fault] = due[0] ?? [Infinity];
      if (created >= at && fault !== undefined) {
        due.shift();
        faults.push(fault());
      }
      const creates = alive.size < ALIVE ? 60 : 5;
      const step = random.weighted({
        create: creates,
        remove: 25,
        removeByForce: 5,
        replace: 8,
        labelPod: 14,
        labelNamespace: 4,
        restart: 6,
      });
      did[step] = (did[step] ?? 0) + 1;
      await steps[step]();
    }
  }

  await Promise.all(Array.from({ length: WORKERS }, work));
  await Promise.all(faults);
  return { ...did, created };
}

/** The kubelets have caught up: each pod of the API runs or has ended, and none runs that the API does not have. */
async function settle(mesh: Mesh, node: MeshNode): Promise<void> {
  let restless: unknown;
  await eventually(
    `${node.name} has come to rest`,
    async () => {
      const [listed, here] = [await podsOn(mesh.cluster.api, node.name), node.kubelet.pods()];
      const moving = listed.filter(({ metadata, status = {} }) => {
        const ready = status.conditions?.find(({ type }) => type === 'Ready')?.status === 'True';
        return (
          metadata.deletionTimestamp !== undefined ||
          !(ready || status.phase === 'Succeeded' || status.phase === 'Failed')
        );
      });
      const [listedUids, hereUids] = [
        new Set(listed.map(({ metadata }) => metadata.uid)),
        new Set(here.map(({ uid }) => uid)),
      ];
      const lone = [
        ...[...listedUids].filter((uid) => !hereUids.has(uid)),
        ...[...hereUids].filter((uid) => !listedUids.has(uid)),
      ];
      restless = [
        moving.map(({ metadata, status }) => [metadata.name, metadata.deletionTimestamp, status]),
        lone,
      ];
      return moving.length + lone.length === 0;
    },
    { ownMs: 30_000 },
  ).catch((error: unknown) => {
    throw new Error(
      `${String(error)}\n${JSON.stringify(restless)}\n${node.kubelet.problems.slice(-10).join('\n')}`,
    );
  });
}

test('500 pods with random labels, through every fault, agree in the end', {
  skip: KUBE_MISSING,
}, async (t) => {
  t.diagnostic(`SEED=${random.seed}`);
  await using mesh = await startMesh('churn');
  const { cluster } = mesh;
  const proxies: FaultProxy[] = [];
  const nodes: MeshNode[] = [];
  const of = { reuse: 'at-once', statusDelayMs: 100, agent: false } as const;
  for (const [name, range, driver] of [
    ['node-a', [10, 109], 'systemd'],
    ['node-b', [110, 219], 'cgroupfs'],
  ] as const) {
    const node = await mesh.addNode({ ...of, name, range, driver });
    const proxy = await cluster.proxied();
    await node.startAgent({ kubeconfig: mesh.account.kubeconfig(proxy.url) });
    nodes.push(node);
    proxies.push(proxy);
  }
  const [a] = nodes as [MeshNode];
  await cluster.apply(
    ...NAMESPACES.map((name) => namespaceObject(name)),
    namespaceObject('steady', { [MODE]: 'ambient' }),
  );

  // One pod of each node that nobody touches connects all the while.
  const loops = await Promise.all(
    nodes.map(async (node) => {
      await cluster.apply(servingPod(`steady-${node.name}`, { node: node.name, namespace: 'steady' }));
      const pod = await node.kubelet.running('steady', `steady-${node.name}`);
      await agree(mesh, node);
      return dial(mesh.sandbox, pod.place(), mesh.server, 5000, 1001);
    }),
  );

  const healths: number[] = [];
  const milestones = new Map<number, () => Promise<void>>([
    [
      60,
      async () => {
        for (let round = 0; round < 5; round++) {
          // Cut wherever the stream then is, in the middle of an event mostly.
          for (const proxy of proxies) proxy.set({ cutAfterBytes: 3000 + round * 1777 });
          await delay(300);
        }
        for (const proxy of proxies) proxy.set({});
      },
    ],
    [
      150,
      async () => {
        await cluster.stopApiServer('SIGKILL');
        await delay(1500);
        for (const node of nodes)
          healths.push((await node.http('healthz')).status, (await node.http('readyz')).status);
        await cluster.startApiServer();
      },
    ],
    [
      250,
      async () => {
        await a.agent.kill9();
        await delay(500);
        await a.startAgent({
          kubeconfig: mesh.account.kubeconfig(
            proxies[0]?.port === undefined ? undefined : `https://127.0.0.1:${proxies[0].port}`,
          ),
        });
      },
    ],
    [330, () => cluster.compact()],
    [
      400,
      async () => {
        for (const proxy of proxies) proxy.set({ delayMs: 1500 });
        await delay(3000);
        for (const proxy of proxies) proxy.set({});
      },
    ],
  ]);
  const started = performance.now();
  const did = await churn(mesh, nodes, milestones);
  t.diagnostic(`${Math.round(performance.now() - started)} ms: ${JSON.stringify(did)}`);
  assert.deepEqual(healths, [200, 200, 200, 200]);
  await Promise.all(nodes.map((node) => settle(mesh, node)));
  const settled = performance.now();
  for (const node of nodes) await agree(mesh, node, 'any');
  t.diagnostic(`agreed ${Math.round(performance.now() - settled)} ms after the kubelets had come to rest`);
  for (const node of nodes) {
    await annotationsAgree(mesh, node);
    const { made, wrong } = await strayConnections(mesh, node);
    t.diagnostic(`${node.name}: ${made} connections`);
    assert.deepEqual(wrong, []);
    assert.ok(made > 40, String(made));
  }
  for (const loop of loops) {
    const totals = await loop.end();
    assert.equal(totals.failed, 0, JSON.stringify(totals));
    assert.ok(totals.total > 1000);
  }
  const steady = nodes.map(
    (node) => node.kubelet.pods().find(({ namespace }) => namespace === 'steady')?.worker.network?.ip4 ?? '',
  );
  const direct = mesh.server.listener
    .accepted()
    .filter(({ peer }) => steady.some((ip) => peer.includes(`${ip}]`) || peer.startsWith(`${ip}:`)));
  assert.deepEqual(direct, [], 'connections of a steady pod that were not redirected');
});
