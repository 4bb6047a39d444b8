/** A source that is followed before there is anybody to be told: what it says meanwhile is kept, and told in one go. */
import type { Namespace } from '../objects/namespace.ts';
import type { Pod } from '../objects/pod.ts';
import type { Following, ObjectHandlers, ObjectSource } from './object-source.ts';

export interface FollowedAhead extends AsyncDisposable {
  /** To be followed once; it begins with all that is known by then. */
  readonly source: ObjectSource;
  /** As {@link Following.synced}. */
  readonly synced: Promise<void>;
}

/**
 * Follows the source from now on. Ends it when disposed of, unless somebody follows it by then.
 * @throws CgrouteError as {@link ObjectSource.follow}
 */
export async function followAhead(source: ObjectSource): Promise<FollowedAhead> {
  const pods = new Map<string, Pod>();
  const namespaces = new Map<string, Namespace>();
  let isListed = false;
  let told: ObjectHandlers | undefined;
  const tellAll = (): void =>
    told?.onObjects({ pods: [...pods.values()], namespaces: [...namespaces.values()] });
  const following: Following = await source.follow({
    onObjects(objects) {
      if (told !== undefined) return told.onObjects(objects);
      isListed = true;
      pods.clear();
      namespaces.clear();
      for (const pod of objects.pods) pods.set(pod.uid, pod);
      for (const namespace of objects.namespaces) namespaces.set(namespace.name, namespace);
    },
    onPod: (pod) => (told === undefined ? void pods.set(pod.uid, pod) : told.onPod(pod)),
    onPodGone: (uid) => (told === undefined ? void pods.delete(uid) : told.onPodGone(uid)),
    onNamespace: (namespace) =>
      told === undefined ? void namespaces.set(namespace.name, namespace) : told.onNamespace(namespace),
    onNamespaceGone: (name) =>
      told === undefined ? void namespaces.delete(name) : told.onNamespaceGone(name),
  });
  return {
    synced: following.synced,
    source: {
      ...(source.client === undefined ? {} : { client: source.client }),
      states: () => source.states(),
      figures: () => source.figures(),
      async follow(handlers) {
        told = handlers;
        if (isListed) tellAll();
        pods.clear();
        namespaces.clear();
        return following;
      },
    },
    async [Symbol.asyncDispose]() {
      if (told === undefined) await following[Symbol.asyncDispose]();
    },
  };
}
