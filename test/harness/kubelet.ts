/**
 * Stands in for the kubelet of one node: registers the node, follows the pods
 * that are bound to it, runs them (kubelet-pod.ts) and reports their status, late
 * as real kubelets do. It asks the API server as `system:node:NAME`, so it may
 * do what kubelets may.
 *
 * It has no probes, volumes, images, evictions, leases and no server of its own:
 * `kubectl exec` and `kubectl logs` don't work, {@link PodOnNode.exec} does.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Cluster } from './kube.ts';
import { type ObjectList, makeKubeApi } from './kube-api.ts';
import type { KubeObject, Pod } from './kube-objects.ts';
import { type CgroupDriver, podTrees } from './kubelet-cgroups.ts';
import { nodeObject } from './kubelet-node.ts';
import { type PodOnNode, podOnNode } from './kubelet-view.ts';
import { type PodWorker, startPodWorker } from './kubelet-pod.ts';
import { type PoolOptions, type Runtime, makePodNetwork } from './kubelet-runtime.ts';
import { kubeletRequests } from './kubelet-requests.ts';
import { isRunning } from './kubelet-status.ts';
import { staticPod } from './kubelet-static.ts';
import { type Network, type NetworkHost, makeNetwork } from '../../deploy/stage/netns.ts';
import { eventually } from '../../deploy/stage/process.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';
import { CONFIG_MIRROR } from './label-names.ts';

export interface KubeletOptions extends PoolOptions {
  /** The node's name. */
  readonly node: string;
  /** Default `systemd`. */
  readonly driver?: CgroupDriver;
  /** Default `runc`; for all pods, or pod by pod. */
  readonly runtime?: Runtime | ((pod: Pod) => Runtime);
  /** The node's own root below the sandbox's, for several nodes on one machine: `node-a`. Default: the sandbox's. */
  readonly root?: string;
  /** Where its pods are. Default: one of its own. Two kubelets on one network need two ranges. */
  readonly network?: Network;
  /** The node itself in that network: its address, and where pods with `hostNetwork` are. Default: the gateway. */
  readonly host?: NetworkHost;
  /** Pods that somebody else runs. Default: none. */
  readonly leaves?: (pod: Pod) => boolean;
  /** From a change to its report, milliseconds. Default 200. Infinity: until {@link Kubelet.setStatusDelay} says otherwise. */
  readonly statusDelayMs?: number;
}

export interface Kubelet extends AsyncDisposable {
  readonly node: string;
  readonly network: Network;
  readonly host: NetworkHost;
  /** What went wrong and was tried again. */
  readonly problems: readonly string[];
  /** All that it runs or still has to clean up. */
  pods(): PodOnNode[];
  /** Waits until the pod's containers run, whether the API server knows it or not. */
  started(namespace: string, name: string): Promise<PodOnNode>;
  /** Waits until the pod runs and has been reported so, with its addresses. */
  running(namespace: string, name: string): Promise<PodOnNode>;
  setStatusDelay(milliseconds: number): void;
  /** Runs a pod without the API server, as from a file in the directory of manifests. Its name gets the node's at its end. */
  addStaticPod(manifest: Pod): PodOnNode & { readonly hash: string };
  removeStaticPod(namespace: string, name: string): Promise<void>;
}

interface Entry {
  readonly worker: PodWorker;
  readonly staticHash: string | undefined;
  /** The API's object: the pod itself, or a static pod's mirror. */
  object: Pod | undefined;
  reported: Pod['status'];
  dirty: boolean;
  timer: NodeJS.Timeout | undefined;
  ending: Promise<void> | undefined;
}

/** Starts a kubelet. When it is disposed of, its containers run on until the sandbox ends. */
export async function startKubelet(
  cluster: Cluster,
  sandbox: Sandbox,
  options: KubeletOptions,
): Promise<Kubelet> {
  const { node, driver = 'systemd', runtime = 'runc', network = await makeNetwork(sandbox) } = options;
  const { host = network.gateway } = options;
  const root = options.root === undefined ? '' : `${options.root}/`;
  const podNetwork = makePodNetwork(network, options);
  const identity = await cluster.certificate(`system:node:${node}`, 'system:nodes');
  const api = makeKubeApi(cluster.endpoint, identity, `kubelet/${node}`);
  const closing = new AbortController();
  const closed = closing.signal;
  /** By UID; static pods by their hash. */
  const entries = new Map<string, Entry>();
  const problems: string[] = [];
  let statusDelay = options.statusDelayMs ?? 200;

  for (const tree of podTrees(driver)) sandbox.cgroup(root + tree);
  const self = await api.request<KubeObject>('POST', '/api/v1/nodes', nodeObject(node, host));

  const problem = (what: string, error: unknown): void =>
    void (closed.aborted || problems.push(`${what}: ${String(error)}`));

  const requests = kubeletRequests(api, node, closed, problem);

  function start(pod: Pod, cgroupUid: string, staticHash?: string): Entry {
    const place = {
      sandbox,
      driver,
      root,
      podNetwork,
      host,
      runtime: typeof runtime === 'string' ? runtime : runtime(pod),
    };
    const { name, namespace = 'default' } = pod.metadata;
    const worker = startPodWorker(
      place,
      { name, namespace, cgroupUid, spec: pod.spec },
      () => void markDirty(entry),
      (error) => problem(`${namespace}/${name}`, error),
    );
    const entry: Entry = {
      worker,
      staticHash,
      object: staticHash === undefined ? pod : undefined,
      reported: undefined,
      dirty: false,
      timer: undefined,
      ending: undefined,
    };
    entries.set(cgroupUid, entry);
    markDirty(entry);
    return entry;
  }

  function markDirty(entry: Entry): void {
    entry.dirty = true;
    if (entry.timer !== undefined || statusDelay === Infinity || entry.ending !== undefined) return;
    entry.timer = setTimeout(
      () =>
        void report(entry).finally(() => {
          entry.timer = undefined;
          if (entry.dirty && entry.object !== undefined) markDirty(entry);
        }),
      statusDelay,
    );
    entry.timer.unref();
  }

  async function report(entry: Entry): Promise<void> {
    const { object } = entry;
    if (object?.metadata.uid === undefined) return;
    entry.dirty = false;
    const status = entry.worker.status(entry.reported ?? object.status);
    await requests.patchStatus(object, status);
    entry.reported = status;
  }

  /** Containers first, then the last report, then the cgroup, then the API's object. */
  function end(entry: Entry, graceSeconds: number): Promise<void> {
    const ended = entry.worker.terminate(graceSeconds);
    return (entry.ending ??= ended
      .then(async () => {
        clearTimeout(entry.timer);
        if (statusDelay !== Infinity) await report(entry);
        entry.worker.removeCgroup();
        if (entry.object !== undefined) await requests.deletePod(entry.object);
        entries.delete(entry.worker.cgroupUid);
      })
      .catch((error: unknown) => problem(`end of ${entry.worker.name}`, error)));
  }

  function see(pod: Pod): void {
    if (closed.aborted || options.leaves?.(pod) === true) return; // or an answer that was on its way
    const { annotations = {}, uid = '', deletionTimestamp, deletionGracePeriodSeconds = 30 } = pod.metadata;
    const mirrorOf = annotations[CONFIG_MIRROR];
    if (mirrorOf !== undefined) return seeMirror(pod, mirrorOf);
    const known = entries.get(uid);
    const isOver = pod.status?.phase === 'Succeeded' || pod.status?.phase === 'Failed';
    if (known === undefined && (isOver || deletionTimestamp !== undefined)) {
      if (deletionTimestamp !== undefined) void requests.deletePod(pod);
      return;
    }
    const entry = known ?? start(pod, uid);
    entry.object = pod;
    entry.worker.update(pod.spec);
    if (deletionTimestamp !== undefined) void end(entry, deletionGracePeriodSeconds);
  }

  function seeMirror(mirror: Pod, hash: string): void {
    const entry = entries.get(hash);
    if (entry === undefined || entry.ending !== undefined || mirror.metadata.deletionTimestamp !== undefined)
      return void requests.deletePod(mirror);
    if (entry.object?.metadata.uid !== mirror.metadata.uid) markDirty(entry);
    entry.object = mirror;
  }

  function lose(pod: Pod): void {
    const entry = [...entries.values()].find(({ object }) => object?.metadata.uid === pod.metadata.uid);
    if (entry === undefined || entry.ending !== undefined) return;
    if (entry.staticHash === undefined) return void end(entry, 0); // deleted by force
    entry.object = undefined;
    void makeMirror(entry);
  }

  const mirrors = new Map<Entry, Pod>();

  /** The API's picture of a static pod, with a UID of its own. Made again when somebody deletes it. */
  async function makeMirror(entry: Entry): Promise<void> {
    const mirror = mirrors.get(entry);
    if (mirror === undefined) return;
    const path = `/api/v1/namespaces/${mirror.metadata.namespace}/pods`;
    const made = await requests.persist(`mirror pod ${mirror.metadata.name}`, [409], () =>
      api.request<Pod>('POST', path, mirror),
    );
    if (made !== undefined && entry.object === undefined) seeMirror(made, entry.worker.cgroupUid);
  }

  const list = `/api/v1/pods?fieldSelector=${encodeURIComponent(`spec.nodeName=${node}`)}`;

  async function follow(): Promise<void> {
    while (!closed.aborted) {
      try {
        const { items, metadata } = await api.get<ObjectList<Pod>>(list);
        const uids = new Set(items.map((pod) => pod.metadata.uid));
        for (const { object } of entries.values())
          if (object !== undefined && !uids.has(object.metadata.uid)) lose(object);
        for (const pod of items) see(pod);
        for await (const { type, object } of api.watch<Pod>(
          `${list}&resourceVersion=${metadata.resourceVersion}`,
          closed,
        )) {
          if (type === 'DELETED') lose(object);
          else if (type !== 'BOOKMARK') see(object);
        }
      } catch (error) {
        problem('watch', error);
        await delay(200, undefined, { ref: false });
      }
    }
  }

  async function until(
    namespace: string,
    name: string,
    what: string,
    check: (entry: Entry) => boolean,
  ): Promise<PodOnNode> {
    const find = (): Entry | undefined =>
      [...entries.values()].find(
        (entry) =>
          entry.worker.name === name &&
          entry.worker.namespace === namespace &&
          entry.ending === undefined &&
          check(entry),
      );
    const entry = await eventually(`${namespace}/${name} ${what} on ${node}`, find).catch(
      (error: unknown) => {
        throw new Error(`${String(error)}\n${problems.slice(-5).join('\n')}`);
      },
    );
    return podOnNode(entry);
  }

  const runs = ({ worker }: Entry): boolean =>
    worker.network !== undefined &&
    [...worker.containers.values()].every((each) => each.kind !== 'main' || isRunning(each));

  void follow();
  return {
    node,
    network,
    host,
    problems,
    pods: () => [...entries.values()].map(podOnNode),
    started: (namespace, name) => until(namespace, name, 'has started', runs),
    running: (namespace, name) =>
      until(
        namespace,
        name,
        'runs',
        (entry) =>
          runs(entry) &&
          entry.reported?.conditions?.some(({ type, status }) => type === 'Ready' && status === 'True') ===
            true,
      ),
    setStatusDelay(milliseconds) {
      statusDelay = milliseconds;
      for (const entry of entries.values()) if (entry.dirty) markDirty(entry);
    },
    addStaticPod(manifest) {
      const { hash, pod } = staticPod(manifest, node, self.metadata.uid ?? '');
      const entry = start(pod, hash, hash);
      mirrors.set(entry, pod);
      void makeMirror(entry);
      return Object.assign(podOnNode(entry), { hash });
    },
    async removeStaticPod(namespace, name) {
      const entry = [...mirrors.keys()].find(
        ({ worker }) => worker.namespace === namespace && worker.name === `${name}-${node}`,
      );
      if (entry === undefined) throw new Error(`${node} has no static pod ${namespace}/${name}`);
      mirrors.delete(entry);
      await end(entry, 1);
    },
    async [Symbol.asyncDispose]() {
      closing.abort();
      for (const entry of entries.values()) {
        clearTimeout(entry.timer);
        entry.worker.abandon();
      }
      api[Symbol.dispose]();
    },
  };
}
