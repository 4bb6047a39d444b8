/** The pods of this node and the namespaces, as they are known now, with the ways to find them. */

import type { CgroupOwner } from '../decisions/cgroup-path.ts';
import type { Objects, Pod } from '../objects/pod.ts';
import type { Labels } from '../objects/labels.ts';
import type { Namespace } from '../objects/namespace.ts';

export interface InventoryOptions {
  /** This node's name: pods that name another are left out, pods that name none are taken for its own. */
  readonly node: string;
}

/**
 * Every change gives the UIDs of the pods that it may concern, each once: those
 * that came, went or differ, and those whose namespace differs. A change that
 * changes nothing gives none, so that a list which is read again costs nothing.
 */
export interface Inventory {
  /** Makes these the only objects. */
  replaceAll(objects: Objects): ReadonlySet<string>;
  upsertPod(pod: Pod): ReadonlySet<string>;
  /** By UID, so that a late delete of an old pod never takes a new one of the same name. */
  removePod(uid: string): ReadonlySet<string>;
  upsertNamespace(namespace: Namespace): ReadonlySet<string>;
  removeNamespace(name: string): ReadonlySet<string>;

  pod(uid: string): Pod | undefined;
  pods(): IterableIterator<Pod>;
  /** Every pod of that name: for a moment there may be two, the old one and its successor. */
  podsNamed(namespace: string, name: string): readonly Pod[];
  podsIn(namespace: string): readonly Pod[];
  namespace(name: string): Namespace | undefined;

  /**
   * Joins a cgroup to its pod: by UID; for a static pod by its configuration's
   * hash, as its API object has a UID of its own. Undefined when the pod is not
   * known, and when several pods claim one hash: the annotation can be written by
   * anybody, so none of them is believed.
   */
  podForCgroup(owner: CgroupOwner): Pod | undefined;
}

export function createInventory({ node }: InventoryOptions): Inventory {
  const pods = new Map<string, Pod>();
  const namespaces = new Map<string, Namespace>();
  /** UIDs by the configuration's hash, and by namespace. */
  const byHash = new Map<string, Set<string>>();
  const byNamespace = new Map<string, Set<string>>();

  const put = (pod: Pod): boolean => {
    const before = pods.get(pod.uid);
    if (before !== undefined && samePod(before, pod)) return false;
    if (before !== undefined) drop(before);
    pods.set(pod.uid, pod);
    index(byNamespace, pod.namespace, pod.uid);
    if (pod.configHash !== undefined) index(byHash, pod.configHash, pod.uid);
    return true;
  };

  const drop = (pod: Pod): void => {
    pods.delete(pod.uid);
    unindex(byNamespace, pod.namespace, pod.uid);
    if (pod.configHash !== undefined) unindex(byHash, pod.configHash, pod.uid);
  };

  const isHere = (pod: Pod): boolean => pod.node === undefined || pod.node === node;

  const upsertPod = (pod: Pod): ReadonlySet<string> => {
    if (!isHere(pod)) return removePod(pod.uid);
    return put(pod) ? new Set([pod.uid]) : NOTHING;
  };

  const removePod = (uid: string): ReadonlySet<string> => {
    const pod = pods.get(uid);
    if (pod === undefined) return NOTHING;
    drop(pod);
    return new Set([uid]);
  };

  const upsertNamespace = (namespace: Namespace): ReadonlySet<string> => {
    const before = namespaces.get(namespace.name);
    namespaces.set(namespace.name, namespace);
    // One without labels decides as one that is not known.
    return sameLabels(before?.labels ?? {}, namespace.labels)
      ? NOTHING
      : new Set(byNamespace.get(namespace.name));
  };

  const removeNamespace = (name: string): ReadonlySet<string> => {
    const before = namespaces.get(name);
    if (before === undefined) return NOTHING;
    namespaces.delete(name);
    return sameLabels(before.labels, {}) ? NOTHING : new Set(byNamespace.get(name));
  };

  return {
    replaceAll(objects) {
      const changed = new Set<string>();
      const add = (uids: ReadonlySet<string>): void => uids.forEach((uid) => changed.add(uid));
      const names = new Set(objects.namespaces.map(({ name }) => name));
      const uids = new Set(objects.pods.filter(isHere).map(({ uid }) => uid));
      for (const uid of [...pods.keys()]) if (!uids.has(uid)) add(removePod(uid));
      for (const pod of objects.pods) add(upsertPod(pod));
      for (const name of [...namespaces.keys()]) if (!names.has(name)) add(removeNamespace(name));
      for (const namespace of objects.namespaces) add(upsertNamespace(namespace));
      return changed;
    },
    upsertPod,
    removePod,
    upsertNamespace,
    removeNamespace,

    pod: (uid) => pods.get(uid),
    pods: () => pods.values(),
    podsNamed: (namespace, name) =>
      podsOf(pods, byNamespace.get(namespace)).filter((pod) => pod.name === name),
    podsIn: (namespace) => podsOf(pods, byNamespace.get(namespace)),
    namespace: (name) => namespaces.get(name),

    podForCgroup(owner) {
      if (owner.kind !== 'pod') return undefined;
      const pod = pods.get(owner.uid);
      if (pod !== undefined || !owner.isConfigHash) return pod;
      const [first, second] = podsOf(pods, byHash.get(owner.uid));
      return second === undefined ? first : undefined;
    },
  };
}

const NOTHING: ReadonlySet<string> = new Set();

function podsOf(pods: ReadonlyMap<string, Pod>, uids: ReadonlySet<string> | undefined): readonly Pod[] {
  return [...(uids ?? NOTHING)].flatMap((uid) => pods.get(uid) ?? []);
}

function index(map: Map<string, Set<string>>, key: string, uid: string): void {
  const uids = map.get(key);
  if (uids === undefined) map.set(key, new Set([uid]));
  else uids.add(uid);
}

function unindex(map: Map<string, Set<string>>, key: string, uid: string): void {
  const uids = map.get(key);
  uids?.delete(uid);
  if (uids?.size === 0) map.delete(key);
}

function sameLabels(a: Labels, b: Labels): boolean {
  const keys = Object.keys(a);
  return (
    keys.length === Object.keys(b).length && keys.every((key) => Object.hasOwn(b, key) && a[key] === b[key])
  );
}

/** Whether nothing that is kept of a pod differs. Each key of {@link Pod} has its line, which the type sees to. */
function samePod(a: Pod, b: Pod): boolean {
  const same: { readonly [K in keyof Required<Pod>]: boolean } = {
    namespace: a.namespace === b.namespace,
    name: a.name === b.name,
    uid: a.uid === b.uid,
    configHash: a.configHash === b.configHash,
    node: a.node === b.node,
    hostNetwork: a.hostNetwork === b.hostNetwork,
    serviceAccount: a.serviceAccount === b.serviceAccount,
    runtimeClass: a.runtimeClass === b.runtimeClass,
    phase: a.phase === b.phase,
    ready: a.ready === b.ready,
    readySince: a.readySince === b.readySince,
    terminating: a.terminating === b.terminating,
    createdAt: a.createdAt === b.createdAt,
    // Another version of the object, and maybe of nothing that is kept of it.
    version: true,
    ips: a.ips.length === b.ips.length && a.ips.every((ip, at) => ip === b.ips[at]),
    labels: sameLabels(a.labels, b.labels),
    annotations: sameLabels(a.annotations, b.annotations),
    writers: sameLabels(a.writers ?? {}, b.writers ?? {}),
  };
  return Object.values(same).every(Boolean);
}
