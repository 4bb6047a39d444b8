/**
 * Pods with a sidecar, by the image alone: its iptables, run as the chart runs it
 * with `sidecars: true`. With exactly these capabilities both backends and both
 * families work; what each of them is for is seen by taking it away.
 */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { type Agent, startAgent } from '../../deploy/stage/agent.ts';
import { type Confined, confine } from '../harness/confined.ts';
import { CAPABILITIES, type PodSpec } from '../harness/daemon-set.ts';
import { HELM_MISSING, chartObjects } from '../../deploy/build/helm.ts';
import { IMAGE_MISSING, type Image, buildImage } from '../harness/image.ts';
import type { KubeObject } from '../harness/kube-objects.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { eventually, must, run } from '../../deploy/stage/process.ts';
import {
  type Backend,
  SIDECAR_PORTS,
  installSidecarRules,
  natRules,
  ownRules,
} from '../../deploy/stage/sidecar.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';
import { BYPASS, SIDECAR_STATUS } from '../harness/label-names.ts';

const PORT = 8080;
const BACKENDS = ['nft', 'legacy'] as const;
const CGROUTE = '/opt/cgroute/dist/cgroute';
const possible = { skip: IMAGE_MISSING || HELM_MISSING };

type ConfigMap = KubeObject & { readonly data: Readonly<Record<string, string>> };
type DaemonSet = KubeObject & { readonly spec: { readonly template: { readonly spec: PodSpec } } };

/** Who answered a connection in each direction, for both families. */
type Ways = readonly [out4: string, out6: string, in4: string, in6: string];
const SIDECAR: Ways = ['proxy', 'proxy', 'proxy', 'proxy'];
const STRAIGHT: Ways = ['server', 'server', 'server', 'server'];

describe('pods with a sidecar, in the image', () => {
  let node: TestNode;
  let image: Image;
  let own: NodePod;
  let client: NodePod;
  let capabilities: readonly string[];
  const pods = new Map<Backend, NodePod>();

  before(async () => {
    if (possible.skip !== false) return;
    const objects = await chartObjects('--set', 'sidecars=true');
    const { data } = objects.find(({ kind }) => kind === 'ConfigMap') as ConfigMap;
    const { spec } = objects.find(({ kind }) => kind === 'DaemonSet') as DaemonSet;
    capabilities = spec.template.spec.containers[0]?.securityContext?.capabilities?.add ?? [];
    node = await startNode('image-sidecar', { agent: false, demo: {} });
    writeFileSync(node.sandbox.file('config.yaml'), data['config.yaml'] ?? '');
    image = await buildImage(node.sandbox);
    own = await node.addPod({
      name: 'cgroute',
      namespace: 'mesh',
      hostNetwork: true,
      ips: [],
      running: false,
    });
    client = await node.addPod({ name: 'client' });
    for (const backend of BACKENDS) {
      const pod = await node.addPod({ name: backend, annotations: { [SIDECAR_STATUS]: '{}' } });
      node.manifest.change(pod.uid, { ips: [pod.host.ip4, pod.host.ip6] });
      await installSidecarRules(pod.host.netns, backend);
      // Of somebody else's, with extensions that no other rule here has.
      const foreign = [
        '-p',
        'tcp',
        '-m',
        'multiport',
        '--dports',
        '9,10',
        '-m',
        'statistic',
        '--mode',
        'nth',
        '--every',
        '2',
        '--packet',
        '0',
        '-j',
        'RETURN',
      ];
      await must({
        cmd: `iptables-${backend}`,
        args: ['-t', 'nat', '-A', 'POSTROUTING', ...foreign],
        netns: pod.host.netns,
      });
      // Both answer with their name; no user of a sidecar's is needed for that.
      for (const [address, ...flags] of [['0.0.0.0'], ['::', '-6']] as const) {
        await listen(node.sandbox, pod.place, 'proxy', address, Object.values(SIDECAR_PORTS), ...flags);
        await listen(node.sandbox, pod.place, 'serve', address, [PORT], ...flags);
      }
      pods.set(backend, pod);
    }
    node.manifest.write();
  });
  after(() => node?.[Symbol.asyncDispose]());

  function confined(held: readonly string[]): Confined {
    const { Env = [] } = image.config.config;
    return confine(node.sandbox, own.startContainer().path.slice(1), {
      root: image.root,
      capabilities: held,
      mounts: { '/etc/cgroute': { source: node.sandbox.directory } },
      env: Object.fromEntries(
        Env.map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
      ),
    });
  }

  /** Runs the agent in a container with these capabilities until `check` has returned. */
  async function withAgent(
    held: readonly string[],
    check: (inside: Confined, agent: Agent) => Promise<void>,
  ): Promise<void> {
    const inside = confined(held);
    const agent = startAgent(node.sandbox, {
      manifest: '/etc/cgroute/pods.yaml',
      cgroupRoot: inside.cgroupRoot,
      bpffsRoot: '/sys/fs/bpf/cgroute',
      args: ['--config', '/etc/cgroute/config.yaml', '--on-exit', 'detach'],
      start: (args) => inside.program([CGROUTE, ...args]),
    });
    try {
      await agent.ready();
      await check(inside, agent);
    } finally {
      await agent.stop();
    }
  }

  const podOf = (backend: Backend): NodePod => pods.get(backend) ?? assert.fail(backend);

  function label(backend: Backend, value: string | undefined): void {
    node.manifest.change(podOf(backend).uid, { labels: value === undefined ? {} : { [BYPASS]: value } });
    node.manifest.write();
  }

  async function ways(backend: Backend): Promise<Ways> {
    const pod = podOf(backend);
    const by = async (from: NodePod, to: string): Promise<string> => {
      const result = await connect(from.place, to, PORT);
      return result.ok ? (result.reply.split(' ')[0] ?? '') : result.errno;
    };
    return Promise.all([
      by(pod, node.server.ip4),
      by(pod, node.server.ip6),
      by(client, pod.host.ip4),
      by(client, pod.host.ip6),
    ]);
  }

  const becomes = (backend: Backend, wanted: Ways): Promise<unknown> =>
    eventually(
      `connections are ${wanted.join()}`,
      async () => (await ways(backend)).join() === wanted.join(),
    );

  /** What the agent says of a pod that should be bypassed and is not. */
  const says = (inside: Confined, backend: Backend, sentence: RegExp): Promise<unknown> =>
    eventually(`explain says ${sentence.source}`, async () =>
      sentence.test((await run(inside.exec([CGROUTE, 'explain', `demo/${backend}`]))).stdout),
    );

  test('the chart gives two capabilities more for them', possible, () => {
    assert.deepEqual(capabilities, [...CAPABILITIES, 'SYS_ADMIN', 'NET_RAW']);
  });

  for (const backend of BACKENDS) {
    test(
      `are bypassed and no longer, IPv4 and IPv6, with their rules in the backend ${backend}`,
      possible,
      async () => {
        await withAgent(capabilities, async () => {
          assert.deepEqual(await ways(backend), SIDECAR);
          label(backend, 'enabled');
          await becomes(backend, STRAIGHT);
          for (const tool of [`iptables-${backend}`, `ip6tables-${backend}`]) {
            for (const chain of ['OUTPUT', 'PREROUTING']) {
              const [first = ''] = await natRules(podOf(backend).host.netns, chain, tool);
              assert.match(
                first,
                /^-m bpf --object-pinned \/sys\/fs\/bpf\/bypass -m comment --comment "?cgroute:bypass:\d+"? -j RETURN$/,
              );
            }
          }
          label(backend, 'inbound');
          await becomes(backend, ['proxy', 'proxy', 'server', 'server']);
          label(backend, undefined);
          await becomes(backend, SIDECAR);
          await eventually(
            'the rules are gone',
            async () => (await ownRules(podOf(backend).host.netns)).length === 0,
          );
        });
      },
    );
  }

  test('are left as they were when the agent leaves, and by cgroute cleanup', possible, async () => {
    for (const backend of BACKENDS) label(backend, 'enabled');
    await withAgent(capabilities, async () => {
      for (const backend of BACKENDS) await becomes(backend, STRAIGHT);
    });
    for (const backend of BACKENDS) {
      assert.deepEqual([await ownRules(podOf(backend).host.netns), await ways(backend)], [[], SIDECAR]);
    }
    const killed = confined(capabilities);
    const agent = startAgent(node.sandbox, {
      manifest: '/etc/cgroute/pods.yaml',
      cgroupRoot: killed.cgroupRoot,
      bpffsRoot: '/sys/fs/bpf/cgroute',
      args: ['--config', '/etc/cgroute/config.yaml'],
      start: (args) => killed.program([CGROUTE, ...args]),
    });
    await agent.ready();
    for (const backend of BACKENDS) await becomes(backend, STRAIGHT);
    await killed.kill();
    const cleaning = confined(capabilities);
    const said = await must({
      ...cleaning.program([CGROUTE, 'cleanup', '--cgroup-root', cleaning.cgroupRoot]),
      cgroup: node.sandbox.hostCgroup,
    });
    assert.match(said, /removed 8 rules/);
    for (const backend of BACKENDS) assert.deepEqual(await ways(backend), SIDECAR);
  });

  /** Why neither pod is bypassed, without a capability. */
  const nobody = (name: string, sentence: RegExp) => (): Promise<void> =>
    withAgent(without(name), async (inside) => {
      for (const backend of BACKENDS) await says(inside, backend, sentence);
      for (const backend of BACKENDS) assert.deepEqual(await ways(backend), SIDECAR);
    });
  /** SYS_ADMIN stands for it in the kernel. */
  const bypassed = (name: string) => (): Promise<void> =>
    withAgent(without(name), async () => {
      for (const backend of BACKENDS) await becomes(backend, STRAIGHT);
    });
  const without = (name: string): string[] => capabilities.filter((each) => each !== name);

  const MISSED: Readonly<Record<string, readonly [string, () => Promise<void>]>> = {
    BPF: ['they are bypassed all the same', bypassed('BPF')],
    PERFMON: ['they are bypassed all the same', bypassed('PERFMON')],
    // For bpf(2) SYS_ADMIN stands for it, too.
    NET_ADMIN: ['none is bypassed', nobody('NET_ADMIN', /cannot be bypassed: the agent lacks CAP_NET_ADMIN/)],
    SYS_PTRACE: [
      'none is bypassed',
      nobody(
        'SYS_PTRACE',
        /cannot be bypassed: the host's network namespace cannot be told from a pod's: the agent needs CAP_SYS_PTRACE/,
      ),
    ],
    SYS_ADMIN: [
      'none is bypassed',
      nobody(
        'SYS_ADMIN',
        /cannot be bypassed: the agent lacks CAP_SYS_ADMIN, .*\(in the chart, sidecars: true\)/,
      ),
    ],
    NET_RAW: [
      'those with legacy tables are not bypassed',
      () =>
        withAgent(without('NET_RAW'), async (inside) => {
          await says(
            inside,
            'legacy',
            /cannot be bypassed: iptables-legacy-save failed with exit code \d+: .*; legacy tables take CAP_NET_RAW, too/,
          );
          await becomes('nft', STRAIGHT);
          assert.deepEqual(await ways('legacy'), SIDECAR);
        }),
    ],
  };

  test('each capability of the chart is tried here', possible, () => {
    assert.deepEqual(capabilities.toSorted(), Object.keys(MISSED).toSorted());
  });

  for (const [name, [what, proof]] of Object.entries(MISSED)) {
    test(`without ${name} ${what}`, possible, async () => {
      for (const backend of BACKENDS) label(backend, 'enabled');
      await proof();
      for (const backend of BACKENDS) assert.deepEqual(await ownRules(podOf(backend).host.netns), []);
    });
  }
});
