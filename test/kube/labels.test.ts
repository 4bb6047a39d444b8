/** Labels on two nodes of a real API server: what kubectl says is what connections do. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import PQueue from 'p-queue';
import {
  type ContainerSpec,
  type Pod,
  type Texts,
  namespaceObject,
  podObject,
} from '../harness/kube-objects.ts';
import { type Mesh, type MeshNode, servingPod, startMesh } from '../harness/kube-mesh.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { containerCgroupPath, podCgroupPath } from '../harness/kubelet-cgroups.ts';
import { newContainerId } from '../harness/kubelet-runtime.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { agree, annotationsAgree, namespaceLabels, podsOn, strayConnections } from './agreement.ts';
import { type Allowed, expectedOf } from '../harness/verdict-oracle.ts';
import { ALLOW_BYPASS, BYPASS, GATEWAY, MODE, SIDECAR_STATUS } from '../harness/label-names.ts';

const SIDECAR = { [SIDECAR_STATUS]: '{}' };

/** What labels and pods may say; undefined: nothing. The rest of each list is odd case, and values that mean nothing. */
const NAMESPACE_MODES = [undefined, 'ambient', 'KMESH', 'none', 'ambiant'];
const SPACE = {
  namespace: ['walk', 'kube-system'],
  mode: [undefined, 'Ambient', 'kmesh', 'NONE', 'sidecarless'],
  sidecar: [false, true],
  bypass: [undefined, 'enabled', 'OutBound', 'inbound', 'both'],
  hostNetwork: [false, true],
  phase: ['Pending', 'Running', 'Succeeded', 'Failed', 'Unknown'],
} as const;
type Point = { readonly [K in keyof typeof SPACE]: (typeof SPACE)[K][number] } & { readonly more?: Texts };

function points(): Point[] {
  let all: Record<string, unknown>[] = [{}];
  for (const [key, values] of Object.entries(SPACE))
    all = all.flatMap((point) => values.map((value) => ({ ...point, [key]: value })));
  const plain = {
    namespace: 'walk',
    sidecar: false,
    bypass: undefined,
    hostNetwork: false,
    phase: 'Running',
  } as const;
  const others = [
    { app: 'ztunnel' },
    { [GATEWAY]: 'Istio.io-mesh-controller' },
    { [GATEWAY]: 'example.com' },
    { app: 'ztunnel', [GATEWAY]: 'istio.io-gateway-controller' },
  ];
  return [
    ...(all as unknown as Point[]),
    ...SPACE.mode.flatMap((mode) => others.map((more) => ({ ...plain, mode, more }))),
  ];
}

/** Without what is undefined. */
function texts(of: Readonly<Record<string, string | undefined>>): Texts {
  return Object.fromEntries(
    Object.entries(of).filter((entry): entry is [string, string] => entry[1] !== undefined),
  );
}

async function label(
  mesh: Mesh,
  what: readonly string[],
  key: string,
  value: string | undefined,
): Promise<void> {
  await mesh.cluster.kubectl(
    'label',
    '--overwrite',
    ...what,
    value === undefined ? `${key}-` : `${key}=${value}`,
  );
}

describe('every combination of labels', { skip: KUBE_MISSING }, () => {
  let mesh: Mesh;
  let node: MeshNode;
  const all = points();

  /** Pods that only the API server and the cgroup tree know: their kubelet has stopped, so a phase stays what it is said to be. */
  before(async () => {
    mesh = await startMesh('labels-all');
    node = await mesh.addNode({ name: 'node-a', agent: false, proxy: false });
    await node.kubelet[Symbol.asyncDispose]();
    const pods = all.map(({ namespace, mode, sidecar, bypass, hostNetwork, more }, at) =>
      podObject(`pod-${at}`, {
        node: 'node-a',
        namespace,
        labels: { ...texts({ [MODE]: mode, [BYPASS]: bypass }), ...more },
        annotations: sidecar ? SIDECAR : {},
        spec: { hostNetwork },
      }),
    );
    await mesh.cluster.apply(namespaceObject('walk'), ...pods);
    const queue = new PQueue({ concurrency: 8 });
    await Promise.all((await podsOn(mesh.cluster.api, 'node-a')).map((pod) => queue.add(() => pretend(pod))));
  });
  after(() => mesh?.[Symbol.asyncDispose]());

  async function pretend({
    metadata: { name, namespace, uid = '' },
    spec: { hostNetwork },
  }: Pod): Promise<void> {
    const at = Number(name.slice('pod-'.length));
    const driver = at % 2 === 0 ? 'systemd' : 'cgroupfs';
    mesh.sandbox.cgroup(
      `node-a/${containerCgroupPath(driver, podCgroupPath(driver, 'besteffort', uid), newContainerId())}`,
    );
    const phase = all[at]?.phase;
    if (phase === 'Pending') return;
    const ip = hostNetwork === true ? mesh.network.gateway.ip4 : `10.88.${at >> 8}.${at & 255}`;
    const path = `/api/v1/namespaces/${namespace}/pods/${name}/status`;
    await mesh.cluster.api.patch(path, 'merge-patch+json', {
      status: { phase, podIP: ip, podIPs: [{ ip }] },
    });
  }

  for (const [allowed, permissions] of [
    ['any', [undefined]],
    ['namespace', [undefined, 'true', 'yes']],
    ['never', ['true']],
  ] as const) {
    test(`has its one verdict in status and in the maps, bypass.allowed: ${allowed}`, async () => {
      const agent = await node.startAgent({
        config: `{annotate: false, events: false, proxy: {namespaces: ["*"]}, bypass: {allowed: ${allowed}}}`,
      });
      const reasons = new Set<string>();
      for (const mode of NAMESPACE_MODES) {
        await label(mesh, ['namespace', 'walk', 'kube-system'], MODE, mode);
        for (const permission of permissions) {
          await label(mesh, ['namespace', 'walk', 'kube-system'], ALLOW_BYPASS, permission);
          await agree(mesh, node, allowed);
          const namespaces = await namespaceLabels(mesh.cluster.api);
          for (const pod of await podsOn(mesh.cluster.api, 'node-a'))
            reasons.add(expectedOf(pod, namespaces, allowed).reason);
        }
      }
      assert.equal(reasons.size, allowed === 'never' ? 11 : 14, [...reasons].join());
      await agent.stop();
    });
  }
});

describe('on two nodes', { skip: KUBE_MISSING }, () => {
  let mesh: Mesh;
  let a: MeshNode;
  let b: MeshNode;

  const job: Partial<ContainerSpec>[] = [{ command: ['true'] }, { command: ['false'] }];
  /** The same pods on each node; some in real containers. */
  const podsOf = (node: string): Pod[] => {
    const pod = (
      name: string,
      labels: Texts = {},
      more: Partial<Parameters<typeof servingPod>[1]> = {},
    ): Pod => servingPod(`${name}-${node}`, { node, namespace: 'shop', labels, ...more });
    return [
      pod('plain', { runtime: 'runc' }),
      pod('ambient', { [MODE]: 'Ambient' }),
      pod('kmesh', { [MODE]: 'kmesh', runtime: 'runc' }),
      pod('none', { [MODE]: 'None' }),
      pod('unknown', { [MODE]: 'sidecarless' }),
      pod('sidecar', {}, { annotations: SIDECAR }),
      pod('sidecar-kmesh', { [MODE]: 'KMESH' }, { annotations: SIDECAR }),
      pod('bypass', { [BYPASS]: 'enabled', runtime: 'runc' }),
      pod('bypass-out', { [BYPASS]: 'Outbound' }),
      pod('bypass-in', { [BYPASS]: 'inbound' }),
      pod('bypass-odd', { [BYPASS]: 'yes' }),
      pod('host', { [MODE]: 'ambient' }, { spec: { hostNetwork: true }, command: ['sleep', '100000'] }),
      pod('waypoint', { [GATEWAY]: 'istio.io-mesh-controller' }),
      pod('excluded', { [MODE]: 'ambient' }, { namespace: 'kube-system' }),
      pod('other', {}, { namespace: 'other' }),
      pod('other-in', { [MODE]: 'ambient' }, { namespace: 'other' }),
      ...job.map((container, at) =>
        pod(
          `job-${at}`,
          { [MODE]: 'ambient' },
          {
            spec: {
              restartPolicy: 'Never',
              containers: [{ name: 'main', image: 'test.invalid/job', ...container }],
            },
          },
        ),
      ),
    ];
  };

  before(async () => {
    mesh = await startMesh('labels');
    a = await mesh.addNode({ name: 'node-a', range: [10, 99] });
    b = await mesh.addNode({
      name: 'node-b',
      range: [100, 199],
      driver: 'cgroupfs',
      agent: { config: 'bypass: {allowed: namespace}' },
    });
    const pods = ['node-a', 'node-b'].flatMap(podsOf);
    await mesh.cluster.apply(namespaceObject('shop'), namespaceObject('other'), ...pods);
    for (const {
      metadata: { name, namespace = '' },
      spec,
    } of pods) {
      if (spec.restartPolicy !== 'Never')
        await (name.endsWith('-a') ? a : b).kubelet.running(namespace, name);
    }
    for (const { kubelet, name } of [a, b]) {
      kubelet.addStaticPod(servingPod('static', { node: name, namespace: 'shop' }));
      await kubelet.running('shop', `static-${name}`);
    }
  });
  after(() => mesh?.[Symbol.asyncDispose]());

  /** Everything on both nodes; nothing that is wrong is found. */
  async function check(what: string, onB: Allowed = 'namespace'): Promise<void> {
    for (const [node, allowed] of [
      [a, 'any'],
      [b, onB],
    ] as const) {
      await agree(mesh, node, allowed);
      await annotationsAgree(mesh, node, allowed);
      const { made, wrong } = await strayConnections(mesh, node, allowed);
      assert.ok(made >= 30, `only ${made} connections on ${node.name}`);
      assert.deepEqual(wrong, [], `${what}, on ${node.name}`);
    }
  }

  const flips: readonly (readonly [what: readonly string[], key: string, value: string | undefined])[] = [
    [['namespace', 'shop'], MODE, 'ambient'],
    [['-n', 'shop', 'pod', 'plain-node-a', 'plain-node-b'], MODE, 'NONE'],
    [['-n', 'shop', 'pod', 'plain-node-a', 'plain-node-b'], BYPASS, 'enabled'],
    [['-n', 'shop', 'pod', 'plain-node-a', 'plain-node-b'], MODE, undefined],
    [['namespace', 'shop'], ALLOW_BYPASS, 'true'],
    [['-n', 'shop', 'pod', '--all'], BYPASS, 'OUTBOUND'],
    [['-n', 'shop', 'pod', '--all'], BYPASS, 'inbound'],
    [['namespace', 'shop'], ALLOW_BYPASS, 'True'],
    [['namespace', 'shop'], MODE, 'Kmesh'],
    [['-n', 'shop', 'pod', '--all'], BYPASS, undefined],
    [['namespace', 'shop'], MODE, 'ambiant'],
    [['namespace', 'shop', 'other', 'kube-system'], MODE, 'AMBIENT'],
    [['-n', 'shop', 'pod', '--all'], MODE, 'none'],
    [['namespace', 'shop', 'other', 'kube-system'], MODE, 'none'],
    [['-n', 'shop', 'pod', '--all'], MODE, 'kmesh'],
    [['namespace', 'shop', 'other', 'kube-system'], MODE, undefined],
  ];

  test('each pod travels as its labels say, through every change by kubectl', async () => {
    await check('at the start');
    for (const [what, key, value] of flips) {
      await label(mesh, what, key, value);
      await check(`kubectl label ${what.join(' ')} ${key}=${value}`);
    }
    assert.deepEqual([...a.kubelet.problems, ...b.kubelet.problems], []);
  });

  test("a static pod goes by its mirror's labels, also when the mirror is made again under another UID", async () => {
    await label(mesh, ['namespace', 'shop'], MODE, 'ambient');
    const uidOf = async (): Promise<string | undefined> =>
      (await mesh.cluster.pod('shop', 'static-node-a'))?.metadata.uid;
    const before = await uidOf();
    await mesh.cluster.kubectl('-n', 'shop', 'delete', 'pod', 'static-node-a', '--wait=false');
    await eventually('there is another mirror', async () => ![before, undefined].includes(await uidOf()));
    await a.kubelet.running('shop', 'static-node-a');
    await check('with another mirror');
    await label(mesh, ['-n', 'shop', 'pod', 'static-node-a'], MODE, 'none');
    await check('opted out');
  });

  test('no bypass is allowed where it never is, for connections too', async () => {
    await b.agent.stop();
    await b.startAgent({ config: 'bypass: {allowed: never}' });
    await label(mesh, ['namespace', 'shop'], MODE, 'ambient');
    await label(mesh, ['namespace', 'shop'], ALLOW_BYPASS, 'true');
    for (const value of ['enabled', 'outbound', 'inbound', undefined]) {
      await label(mesh, ['-n', 'shop', 'pod', '--all'], BYPASS, value);
      await check(`bypass ${value}`, 'never');
    }
  });
});
