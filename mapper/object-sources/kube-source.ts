/** The API server as the source: the pods of this node, and all namespaces. */
import type { Logger } from 'pino';
import { releaseMemory } from '../../native/boundary/memory.ts';
import type { KubeClient } from '../kube/kube-client.ts';
import { defaultTiming, KubeResource, type KubeTiming, type Restart } from '../kube/kube-resource.ts';
import type { ObjectHandlers, ObjectSource, SourceFigures } from './object-source.ts';
import { podOf, type Pod } from '../objects/pod.ts';
import { namespaceOf, type Namespace } from '../objects/namespace.ts';

export interface KubeSourceOptions {
  readonly client: KubeClient;
  readonly node: string;
  readonly logger: Logger;
  readonly timing?: Partial<KubeTiming>;
}

/** After so many objects their garbage is worth a pause, which waits until nothing has come for a while. */
const GARBAGE_OBJECTS = 100;
const STILL_MS = 3000;

/** Gives the memory back that many objects took; call it for each. */
function releaser(): { readonly taken: () => void } & Disposable {
  let objects = 0;
  let lastAt = 0;
  let timer: NodeJS.Timeout | undefined;
  const look = (): void => {
    const left = lastAt + STILL_MS - performance.now();
    timer = left > 0 ? setTimeout(look, left).unref() : undefined;
    if (timer !== undefined) return;
    objects = 0;
    releaseMemory();
  };
  return {
    taken() {
      lastAt = performance.now();
      if (++objects >= GARBAGE_OBJECTS) timer ??= setTimeout(look, STILL_MS).unref();
    },
    [Symbol.dispose]: () => clearTimeout(timer),
  };
}

/**
 * A pod counts once its namespace is known, and a namespace stays until its last
 * pod is gone. Two watches have no common order; so a pod is never judged without
 * the labels that decide about it.
 */
export function kubeSource({ client, node, logger, timing }: KubeSourceOptions): ObjectSource {
  const resources: KubeResource<Pod | Namespace>[] = [];
  return {
    async follow(handlers) {
      const synced = Promise.withResolvers<void>();
      const both = joined(handlers, synced.resolve);
      const memory = releaser();
      const common = { client, timing: { ...defaultTiming, ...timing }, logger };
      resources.push(
        new KubeResource<Namespace>({
          ...common,
          name: 'namespaces',
          path: '/api/v1/namespaces',
          keyOf: ({ name }) => text(name),
          project: (raw) => {
            memory.taken();
            return namespaceOf(raw);
          },
          onUpsert: (_, namespace) => both.namespace(namespace),
          onRemove: (name) => both.namespaceGone(name),
          onListed: () => both.listed('namespaces'),
        }) as KubeResource<Pod | Namespace>,
        new KubeResource<Pod>({
          ...common,
          name: 'pods',
          path: '/api/v1/pods',
          fieldSelector: `spec.nodeName=${node}`,
          // By UID: a pod that is made again under its name is another pod.
          keyOf: ({ uid }) => text(uid)?.toLowerCase(),
          project: (raw) => {
            memory.taken();
            return podOf(raw);
          },
          onUpsert: (_, pod) => both.pod(pod),
          onRemove: (uid) => both.podGone(uid),
          onListed: () => both.listed('pods'),
        }) as KubeResource<Pod | Namespace>,
      );
      return {
        synced: synced.promise,
        async [Symbol.asyncDispose]() {
          await Promise.all(resources.map((resource) => resource[Symbol.asyncDispose]()));
          client[Symbol.dispose]();
          memory[Symbol.dispose]();
        },
      };
    },
    states: () => resources.map((resource) => resource.state()),
    figures: () => figuresOf(client, resources),
    client,
  };
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' && value !== '' ? value : undefined;
}

function figuresOf(client: KubeClient, resources: readonly KubeResource<Pod | Namespace>[]): SourceFigures {
  const restarts: Record<string, Partial<Record<Restart, number>>> = {};
  const ages: Record<string, number> = {};
  for (const resource of resources) {
    restarts[resource.name] = Object.fromEntries(resource.restarts);
    if (resource.lastEventAgeMs !== undefined) ages[resource.name] = resource.lastEventAgeMs;
  }
  return { requests: client.requests, restarts, lastEventAgeMs: ages };
}

interface Joined {
  pod(pod: Pod): void;
  podGone(uid: string): void;
  namespace(namespace: Namespace): void;
  namespaceGone(name: string): void;
  listed(what: 'pods' | 'namespaces'): void;
}

/** Brings the two watches into one order, and holds everything back until both have listed. */
function joined(handlers: ObjectHandlers, onSynced: () => void): Joined {
  const pods = new Map<string, Pod>();
  const namespaces = new Map<string, Namespace>();
  /** Deleted in the API, and still with pods that we know. */
  const leaving = new Set<string>();
  const listed = new Set<string>();
  let isSynced = false;
  const podsIn = (namespace: string): Pod[] =>
    [...pods.values()].filter((pod) => pod.namespace === namespace);
  const leave = (name: string): void => {
    leaving.delete(name);
    namespaces.delete(name);
    if (isSynced) handlers.onNamespaceGone(name);
  };
  return {
    pod(pod) {
      pods.set(pod.uid, pod);
      if (isSynced && namespaces.has(pod.namespace)) handlers.onPod(pod);
    },
    podGone(uid) {
      const pod = pods.get(uid);
      if (pod === undefined) return;
      pods.delete(uid);
      if (isSynced) handlers.onPodGone(uid);
      if (leaving.has(pod.namespace) && podsIn(pod.namespace).length === 0) leave(pod.namespace);
    },
    namespace(namespace) {
      const isNew = !namespaces.has(namespace.name);
      leaving.delete(namespace.name);
      namespaces.set(namespace.name, namespace);
      if (!isSynced) return;
      handlers.onNamespace(namespace);
      if (isNew) for (const pod of podsIn(namespace.name)) handlers.onPod(pod);
    },
    namespaceGone(name) {
      if (podsIn(name).length > 0) leaving.add(name);
      else leave(name);
    },
    listed(what) {
      listed.add(what);
      if (isSynced || listed.size < 2) return;
      isSynced = true;
      handlers.onObjects({
        pods: [...pods.values()].filter((pod) => namespaces.has(pod.namespace)),
        namespaces: [...namespaces.values()],
      });
      onSynced();
    },
  };
}
