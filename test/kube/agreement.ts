/**
 * Whether the API, the maps, `status` and real connections of a node say the same
 * of every pod, by the rules of the oracle; and whether the maps hold nothing else.
 */
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import PQueue from 'p-queue';
import { beginWait } from '../../deploy/stage/deadline.ts';
import type { KubeApi, ObjectList } from '../harness/kube-api.ts';
import type { Mesh, MeshNode } from '../harness/kube-mesh.ts';
import { SERVER_PORT } from '../../deploy/stage/node.ts';
import type { KubeObject, Pod } from '../harness/kube-objects.ts';
import { type Allowed, type Expected, type NamespaceLabels, expectedOf } from '../harness/verdict-oracle.ts';
import { CONFIG_HASH, REDIRECTION } from '../harness/label-names.ts';

interface CgroupInfo {
  readonly is_in_mesh: number;
  readonly cgroup_ip: readonly number[];
  readonly flags: number;
  readonly slot: number;
}

interface PodInfo extends Omit<CgroupInfo, 'cgroup_ip'> {
  readonly verdict: string;
  readonly reason: string;
  readonly pod_namespace: string;
  readonly pod_name: string;
  readonly service_account: string;
}

/** All namespaces of the API with their labels. */
export async function namespaceLabels(api: KubeApi): Promise<NamespaceLabels> {
  const { items } = await api.get<ObjectList<KubeObject>>('/api/v1/namespaces');
  return new Map(items.map(({ metadata }) => [metadata.name, metadata.labels ?? {}]));
}

export async function podsOn(api: KubeApi, node: string): Promise<readonly Pod[]> {
  return (
    await api.get<ObjectList<Pod>>(
      `/api/v1/pods?fieldSelector=${encodeURIComponent(`spec.nodeName=${node}`)}`,
    )
  ).items;
}

/** What stands for the pod in its cgroups' names. */
function keyOf({ metadata: { annotations = {}, uid = '' } }: Pod): string {
  return annotations[CONFIG_HASH] ?? uid;
}

/** The ids of each pod's cgroups by what stands for the pod in their names, read from the tree. */
export function cgroupsOfPods(root: string): Map<string, string[]> {
  const found = new Map<string, string[]>();
  const walk = (directory: string, outer: string | undefined): void => {
    for (const entry of readdirSync(directory, { withFileTypes: true })) {
      if (!entry.isDirectory()) continue;
      const path = join(directory, entry.name);
      const own = /pod([0-9a-f]{8}([-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(\.slice)?$/
        .exec(entry.name)?.[1]
        ?.replaceAll('_', '-');
      const uid = outer ?? own;
      if (uid !== undefined)
        found.set(uid, [...(found.get(uid) ?? []), String(statSync(path, { bigint: true }).ino)]);
      walk(path, uid);
    }
  };
  walk(root, undefined);
  return found;
}

/** Where they don't: a sentence each. */
export async function disagreements(mesh: Mesh, node: MeshNode, allowed: Allowed = 'any'): Promise<string[]> {
  const { api } = mesh.cluster;
  const [pods, namespaces, status, cgroupInfos, podInfos, addresses] = await Promise.all([
    podsOn(api, node.name),
    namespaceLabels(api),
    node.status(),
    node.entries('cgroup_info_map'),
    node.entries('pod_info_map'),
    node.entries('pod_ip_map'),
  ]);
  const tree = cgroupsOfPods(join(mesh.sandbox.cgroupRoot, node.name));
  const infoOf = new Map(cgroupInfos.map(({ key, value }) => [String(key), value as unknown as CgroupInfo]));
  const podOf = new Map(
    podInfos.map(({ key, value }) => [(key as { readonly text: string }).text, value as unknown as PodInfo]),
  );
  const wrong: string[] = [];
  const same = (what: string, is: unknown, should: unknown): void => {
    const [left, right] = [JSON.stringify(is), JSON.stringify(should)];
    if (left !== right) wrong.push(`${what}: expected ${right}, got ${left}`);
  };

  const shownOf = Map.groupBy(status.pods, ({ uid }) => uid);
  const slotOfAddress = new Map<string, number>();
  const rest = new Set(infoOf.keys());
  for (const pod of pods) {
    const {
      metadata: { name, namespace = '', uid = '' },
      spec,
      status: { podIPs = [], phase } = {},
    } = pod;
    const key = keyOf(pod);
    const should = expectedOf(pod, namespaces, allowed);
    const about = `${namespace}/${name} (${uid})`;
    const ips = podIPs.map(({ ip }) => ip);
    const info = podOf.get(key);
    const shown = shownOf.get(uid) ?? [];
    const ids = (tree.get(key) ?? []).sort();
    const ended = phase === 'Succeeded' || phase === 'Failed';
    if (ended && ids.length === 0) {
      same(`${about}, which has ended, in status`, shown, []);
      same(`${about}, which has ended, in pod_info_map`, info ?? null, null);
      continue;
    }
    same(
      `${about} in status`,
      shown.map(({ verdict, reason }) => [verdict, reason]),
      [[should.verdict, should.reason]],
    );
    same(`${about} in pod_info_map`, info && [info.verdict, info.reason, info.flags, info.is_in_mesh], [
      should.verdict,
      should.reason,
      should.flags,
      Number(should.verdict !== 'out'),
    ]);
    same(
      `${about}: its service account in pod_info_map`,
      info?.service_account,
      spec['serviceAccountName'] ?? 'default',
    );
    same(`${about}: its cgroups in status`, shown[0]?.cgroups.map(({ id }) => id).sort(), ids);
    if (spec.hostNetwork !== true && ips.length > 0)
      same(`${about}: its addresses in status`, shown[0]?.ips, ips);
    for (const id of ids) {
      const entry = infoOf.get(id);
      rest.delete(id);
      same(`${about}: its cgroup ${id}`, entry && [entry.is_in_mesh, entry.flags, entry.slot], [
        Number(should.verdict !== 'out'),
        should.flags,
        info?.slot,
      ]);
      if (spec.hostNetwork !== true && ips[0] !== undefined)
        same(`${about}: the address of its cgroup ${id}`, entry?.cgroup_ip.slice(12).join('.'), ips[0]);
    }
    podOf.delete(key);
    if (should.inbound === 'inbound' && !ended) for (const ip of ips) slotOfAddress.set(ip, info?.slot ?? -1);
  }
  same("cgroups in cgroup_info_map that are no pod's", [...rest], []);
  same(
    'pods in pod_info_map that the API does not have',
    [...podOf.values()].map(({ pod_namespace, pod_name }) => `${pod_namespace}/${pod_name}`),
    [],
  );
  same('unknown cgroups', status.unknown, []);
  const claimed = addresses.map(({ key, value }) => [
    addressOf((key as { readonly word_be: readonly number[] }).word_be),
    value['slot'],
  ]);
  const order = (all: readonly unknown[]): string[] => all.map(String).sort();
  same('pod_ip_map', order(claimed), order([...slotOfAddress]));
  return wrong;
}

/** Four words in network order, as this machine's byte order reads them. */
function addressOf(words: readonly number[]): string {
  const bytes = Buffer.from(Uint32Array.from(words).buffer);
  if (bytes.subarray(0, 12).every((byte) => byte === 0)) return bytes.subarray(12).join('.');
  const text = Array.from({ length: 8 }, (_, at) => bytes.readUInt16BE(2 * at).toString(16)).join(':');
  return new URL(`http://[${text}]`).hostname.slice(1, -1);
}

/** Waits until nothing disagrees. */
export async function agree(mesh: Mesh, node: MeshNode, allowed: Allowed = 'any'): Promise<void> {
  for (const wait = beginWait(); ; await delay(50)) {
    const wrong = await disagreements(mesh, node, allowed);
    if (wrong.length === 0) return;
    if (wait.isOver())
      throw new Error(
        `${node.name}: ${wait.passed()}, and ${wrong.length} things do not agree:\n${wrong.slice(0, 20).join('\n')}`,
      );
  }
}

/** Waits until the annotation is on the pods that are in the mesh and run, and on no others. */
export async function annotationsAgree(mesh: Mesh, node: MeshNode, allowed: Allowed = 'any'): Promise<void> {
  for (const wait = beginWait(); ; await delay(50)) {
    const [pods, namespaces] = await Promise.all([
      podsOn(mesh.cluster.api, node.name),
      namespaceLabels(mesh.cluster.api),
    ]);
    const tree = cgroupsOfPods(join(mesh.sandbox.cgroupRoot, node.name));
    const wrong = pods.filter((pod) => {
      const { annotations = {} } = pod.metadata;
      return (
        (annotations[REDIRECTION] === 'enabled') !==
        (expectedOf(pod, namespaces, allowed).verdict !== 'out' && tree.has(keyOf(pod)))
      );
    });
    if (wrong.length === 0) return;
    const shown = wrong.map(
      ({ metadata: { namespace, name, annotations } }) =>
        `${namespace}/${name}: ${JSON.stringify(annotations)}`,
    );
    if (wait.isOver())
      throw new Error(
        `${node.name}: ${wait.passed()}, and the annotation is wrong on ${wrong.length} pods:\n${shown.slice(0, 20).join('\n')}`,
      );
  }
}

/**
 * Connects from each running pod to the server, and from the host to each running
 * pod that serves; a sentence for each connection that does not travel as it should.
 */
export async function strayConnections(
  mesh: Mesh,
  node: MeshNode,
  allowed: Allowed = 'any',
  of: (pod: Pod) => boolean = () => true,
): Promise<{ readonly made: number; readonly wrong: string[] }> {
  const { api } = mesh.cluster;
  const [pods, namespaces] = await Promise.all([podsOn(api, node.name), namespaceLabels(api)]);
  const running = new Map(
    node.kubelet
      .pods()
      .filter(({ worker }) => !worker.over)
      .map((pod) => [pod.uid, pod]),
  );
  const wrong: string[] = [];
  let made = 0;
  const queue = new PQueue({ concurrency: 4 });
  const check = async (
    what: string,
    travel: () => Promise<string>,
    should: Expected['outbound' | 'inbound'],
  ): Promise<void> => {
    made++;
    const did = await travel().catch((error: unknown) => String(error));
    if (did !== should) wrong.push(`${what}: expected ${should}, got ${did}`);
  };
  await Promise.all(
    pods.filter(of).map(async (pod) => {
      const { name, namespace, uid, labels = {} } = pod.metadata;
      const here = running.get(uid);
      if (here === undefined || labels['app'] === 'ztunnel') return;
      const should = expectedOf(pod, namespaces, allowed);
      const ip = pod.status?.podIP;
      await queue.add(() =>
        check(
          `${namespace}/${name} (${should.reason}) to the server`,
          () => node.travel(here.place()),
          should.outbound,
        ),
      );
      if (pod.spec.hostNetwork === true || ip === undefined) return;
      await queue.add(() =>
        check(
          `the host to ${namespace}/${name} (${should.reason})`,
          () => node.travel(node.hostPlace, { ip, port: SERVER_PORT }),
          should.inbound,
        ),
      );
    }),
  );
  return { made, wrong };
}
