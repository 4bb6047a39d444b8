/** What is tried on the real node, in this order, with each cgroup driver. */
import assert from 'node:assert/strict';
import type { DoctorLine } from '../../../mapper/cli/doctor-line.ts';
import type { CgroupDriver } from '../../harness/kubelet-cgroups.ts';
import { BYPASS, CONFIG_HASH, MODE, REDIRECTION } from '../../harness/label-names.ts';
import {
  AGENT,
  ENROLLED,
  type NodeMesh,
  PLAIN,
  type Place,
  SERVER_PORT,
  SHOP,
  firstAct,
  pod,
  termination,
} from './mesh.ts';
import { NODE } from './node.ts';

export interface Check {
  readonly name: string;
  run(mesh: NodeMesh, driver: CgroupDriver): Promise<void>;
}

const CLIENT = { namespace: SHOP, name: 'client' } as const;
/** As the kubelet names a static pod's mirror. */
const STATIC = { namespace: SHOP, name: `static-${NODE}` } as const;
const WEB = { namespace: SHOP, name: 'web' } as const;

/** Where a container's cgroup is below the node's root, as kubelet and containerd name it. */
const CGROUPS: Readonly<Record<CgroupDriver, RegExp>> = {
  systemd:
    /^\/kubepods\.slice\/kubepods-besteffort\.slice\/kubepods-besteffort-pod[0-9a-f_]{36}\.slice\/cri-containerd-[0-9a-f]{64}\.scope$/,
  cgroupfs: /^\/kubepods\/besteffort\/pod[0-9a-f-]{36}\/[0-9a-f]{64}$/,
};

/** What the node has in /data: a static pod, JSON being YAML too. */
export const NODE_FILES = {
  'static.yaml': JSON.stringify(pod({ namespace: SHOP, name: 'static' }, undefined)),
} as const;

/** Waits until the agent has told the API server what it does with a pod. */
async function untilAnnotated(
  { node }: NodeMesh,
  { namespace, name }: Place,
  wanted: string | undefined,
): Promise<void> {
  await node.until(
    `${namespace}/${name} is annotated ${wanted ?? 'no more'}`,
    async () => {
      const found = await node.cluster.pod(namespace, name);
      return found !== undefined && found.metadata.annotations?.[REDIRECTION] === wanted;
    },
    60_000,
  );
}

export const CHECKS: readonly Check[] = [
  {
    name: 'a pod outside the mesh connects directly',
    async run(mesh) {
      await mesh.node.start(pod(CLIENT, undefined));
      assert.equal(await mesh.travel(CLIENT), 'direct');
    },
  },
  {
    name: 'its namespace enrolled, a running pod goes through the proxy, which learns the original destination',
    async run(mesh) {
      await mesh.label(SHOP, ENROLLED);
      await untilAnnotated(mesh, CLIENT, 'enabled');
      assert.equal(await mesh.travel(CLIENT), 'redirected');
    },
  },
  {
    name: 'status names the cgroups that kubelet and containerd have made',
    async run(mesh, driver) {
      const { pods } = await mesh.status();
      const client = pods.find(
        ({ namespace, name }) => namespace === CLIENT.namespace && name === CLIENT.name,
      );
      assert.equal(client?.verdict, 'in');
      const paths = client.cgroups.map(({ path }) => path ?? '').filter((path) => CGROUPS[driver].test(path));
      // Its one container and its sandbox.
      assert.equal(paths.length, 2, JSON.stringify(client.cgroups));
    },
  },
  {
    name: 'new pods whose first act is connect(), in an init container too, go through the proxy; those outside the mesh do not',
    async run(mesh) {
      const { node, server } = mesh;
      const names = ['first-1', 'first-2', 'first-3'];
      const inside = names.map((name) => firstAct({ namespace: SHOP, name }, server));
      const ended = await node.start(...inside, firstAct({ namespace: PLAIN, name: 'first' }, server));
      for (const each of ended) {
        const travels = [];
        for (const text of termination(each)) travels.push(await mesh.travelled(text));
        const expected = each.metadata.namespace === SHOP ? 'redirected' : 'direct';
        assert.deepEqual(travels, [expected, expected], each.metadata.name);
      }
      await node.remove(...names.map((name) => ({ namespace: SHOP, name })), {
        namespace: PLAIN,
        name: 'first',
      });
    },
  },
  {
    name: 'a static pod, whose cgroup bears the hash of its file in place of its UID, goes through the proxy',
    async run(mesh) {
      const { node } = mesh;
      await mesh.host('cp', '/data/static.yaml', '/etc/kubernetes/manifests/');
      await untilAnnotated(mesh, STATIC, 'enabled');
      const mirror = await node.cluster.pod(STATIC.namespace, STATIC.name);
      const hash = mirror?.metadata.annotations?.[CONFIG_HASH] ?? '';
      assert.match(hash, /^[0-9a-f]{32}$/);
      await node.until(
        'it runs',
        async () =>
          (await node.cluster.pod(STATIC.namespace, STATIC.name))?.status?.containerStatuses?.[0]?.ready,
      );
      assert.equal(await mesh.travel(STATIC), 'redirected');
      const { pods } = await mesh.status();
      const cgroups =
        pods.find(({ uid }) => uid === mirror?.metadata.uid)?.cgroups.map(({ path }) => path ?? '') ?? [];
      assert.equal(
        cgroups.filter((path) => path.includes(`pod${hash}`)).length >= 2,
        true,
        JSON.stringify(cgroups),
      );
      await mesh.host('rm', '/etc/kubernetes/manifests/static.yaml');
      await node.until(
        'it is gone',
        async () => (await node.cluster.pod(STATIC.namespace, STATIC.name)) === undefined,
      );
    },
  },
  {
    name: 'doctor, run in the agent, finds nothing wrong with the node',
    async run(mesh) {
      const text = await mesh.node.exec(
        AGENT.namespace,
        AGENT.name,
        'agent',
        'cgroute',
        'doctor',
        '-o',
        'json',
      );
      const lines = JSON.parse(text) as readonly DoctorLine[];
      // The image has no iptables, and the agent of deploy/cgroute.yaml serves no sidecars.
      assert.deepEqual(
        lines.filter(({ state, check }) => state !== 'ok' && !/^ip6?tables-/.test(check)),
        [],
      );
      assert.ok(lines.length > 20, `${lines.length} lines`);
    },
  },
  {
    name: "the kubelet's probe reaches an enrolled pod past the proxy; other processes of the host come to it by the proxy's inbound port",
    async run(mesh) {
      const { node } = mesh;
      const [web] = await node.start(
        pod(
          WEB,
          ['sock', 'serve', '0.0.0.0', String(SERVER_PORT)],
          {},
          { readinessProbe: { tcpSocket: { port: SERVER_PORT }, periodSeconds: 1 } },
        ),
      );
      const to = { ip: web?.status?.podIP ?? '', port: SERVER_PORT };
      await untilAnnotated(mesh, WEB, 'enabled');
      const probes = async (): Promise<number> =>
        (await node.logs(WEB.namespace, WEB.name, 'main')).split('\n').length;
      const before = await probes();
      await node.until('two more probes have come', async () => (await probes()) >= before + 2, 30_000);
      assert.deepEqual(
        (await mesh.proxied()).filter(({ destination }) => destination === `${to.ip}:${to.port}`),
        [],
      );
      assert.equal(await mesh.hostTravel(to), 'inbound');
      await node.remove(WEB);
    },
  },
  {
    name: 'the agent killed with SIGKILL: connections go through the proxy until the kubelet has started it again, and after',
    async run(mesh) {
      const { node } = mesh;
      const restarts = async (): Promise<{ readonly count: number; readonly ready: boolean }> => {
        const [status] =
          (await node.cluster.pod(AGENT.namespace, AGENT.name))?.status?.containerStatuses ?? [];
        return { count: status?.restartCount ?? 0, ready: status?.ready ?? false };
      };
      const { agent } = await mesh.status();
      const before = await restarts();
      await mesh.host('kill', '-KILL', String(agent.pid));
      const travels: string[] = [];
      await node.until('the agent is ready again', async () => {
        travels.push(await mesh.travel(CLIENT));
        const { count, ready } = await restarts();
        return count > before.count && ready;
      });
      travels.push(await mesh.travel(CLIENT));
      assert.deepEqual([...new Set(travels)], ['redirected']);
      assert.ok(travels.length >= 3, `only ${travels.length} connections`);
      assert.notEqual((await mesh.status()).agent.pid, agent.pid);
    },
  },
  {
    name: 'the kubelet restarted: running pods and new ones still go through the proxy',
    async run(mesh) {
      const { node } = mesh;
      const kubelet = async (): Promise<string> =>
        (await mesh.host('systemctl', 'show', '--property=MainPID', '--value', 'kubelet')).trim();
      const was = await kubelet();
      // The answer may be cut off, as it is the kubelet that gives it.
      await mesh.host('systemctl', '--no-block', 'restart', 'kubelet').catch(() => undefined);
      await node.until('the kubelet is another process', async () => ![was, '0'].includes(await kubelet()));
      const place = { namespace: SHOP, name: 'after' };
      for (const text of (await node.start(firstAct(place, mesh.server))).flatMap(termination))
        assert.equal(await mesh.travelled(text), 'redirected');
      assert.equal(await mesh.travel(CLIENT), 'redirected');
      await node.remove(place);
    },
  },
  {
    name: 'the label kmesh.net/bypass takes a pod out of the path, and without it the pod is back',
    async run(mesh) {
      await mesh.label(SHOP, { [BYPASS]: 'enabled' }, CLIENT.name);
      await mesh.node.until(
        'it connects directly',
        async () => (await mesh.travel(CLIENT)) === 'direct',
        60_000,
      );
      await mesh.label(SHOP, { [BYPASS]: null }, CLIENT.name);
      await mesh.node.until(
        'it is redirected',
        async () => (await mesh.travel(CLIENT)) === 'redirected',
        60_000,
      );
    },
  },
  {
    name: "the namespace's label taken away: pods connect directly, and lose the annotation",
    async run(mesh) {
      await mesh.label(SHOP, { [MODE]: null });
      await untilAnnotated(mesh, CLIENT, undefined);
      assert.equal(await mesh.travel(CLIENT), 'direct');
    },
  },
  {
    name: 'the DaemonSet deleted, the agent takes its links and maps off the node',
    async run(mesh) {
      const { node } = mesh;
      const pins = async (): Promise<string> =>
        (await mesh.host('find', '/sys/fs/bpf', '-mindepth', '1')).trim();
      assert.notEqual(await pins(), '');
      await node.cluster.api.request('DELETE', '/apis/apps/v1/namespaces/kube-system/daemonsets/cgroute');
      await node.remove(AGENT);
      assert.equal(await pins(), '');
      assert.equal(await mesh.travel(CLIENT), 'direct');
    },
  },
];
