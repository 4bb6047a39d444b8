/** The manifest file of a test: namespaces and pods as objects, written as YAML in one step. */
import { renameSync, writeFileSync } from 'node:fs';
import { stringify } from 'yaml';

type Texts = Readonly<Record<string, string>>;

interface NamespaceObject {
  readonly name: string;
  readonly labels?: Texts;
}

export interface PodObject {
  readonly name: string;
  readonly namespace: string;
  readonly uid: string;
  readonly labels?: Texts;
  readonly annotations?: Texts;
  /** The pod's addresses; without any, `status.podIP` is absent, as before the kubelet knows it. */
  readonly ips?: readonly string[];
  readonly hostNetwork?: boolean;
  readonly serviceAccount?: string;
  readonly runtimeClass?: string;
  readonly phase?: string;
  /** Without it there are no conditions, which counts as ready. */
  readonly ready?: boolean;
  /** RFC 3339. */
  readonly created?: string;
  /** Deleted, and still there for its grace period. */
  readonly terminating?: boolean;
  readonly node?: string;
}

/** What the file is to hold; {@link Manifest.write} puts it there. */
export interface Manifest {
  readonly path: string;
  /** Adds a namespace, or replaces the one of that name. */
  namespace(name: string, labels?: Texts): void;
  removeNamespace(name: string): void;
  /** Adds a pod, or replaces the one of that UID. */
  pod(pod: PodObject): void;
  /** Changes some fields of a pod; a field that is undefined is removed. */
  change(uid: string, fields: { readonly [K in keyof PodObject]?: PodObject[K] | undefined }): void;
  remove(uid: string): void;
  text(): string;
  /** Replaces the file by rename, so that no reader meets half of it. */
  write(): void;
}

/** `v1` objects as `kubectl get -o yaml` prints them, without what nobody reads. */
function manifestText(namespaces: Iterable<NamespaceObject>, pods: Iterable<PodObject>): string {
  const objects = [
    ...[...namespaces].map(({ name, labels }) => ({
      apiVersion: 'v1',
      kind: 'Namespace',
      metadata: { name, labels },
    })),
    ...[...pods].map((pod) => ({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: {
        name: pod.name,
        namespace: pod.namespace,
        uid: pod.uid,
        labels: pod.labels,
        annotations: pod.annotations,
        creationTimestamp: pod.created,
        ...(pod.terminating === true ? { deletionTimestamp: '2026-01-02T00:00:00Z' } : {}),
      },
      spec: {
        nodeName: pod.node,
        hostNetwork: pod.hostNetwork,
        serviceAccountName: pod.serviceAccount,
        runtimeClassName: pod.runtimeClass,
      },
      status: {
        phase: pod.phase,
        podIP: pod.ips?.[0],
        podIPs: pod.ips?.map((ip) => ({ ip })),
        ...(pod.ready === undefined
          ? {}
          : { conditions: [{ type: 'Ready', status: pod.ready ? 'True' : 'False' }] }),
      },
    })),
  ];
  return objects.map((object) => stringify(object, { keepUndefined: false })).join('---\n');
}

/** Replaces a file by rename. */
export function replaceFile(path: string, text: string): void {
  writeFileSync(`${path}.new`, text);
  renameSync(`${path}.new`, path);
}

/** An empty manifest for a file that is not yet there. */
export function makeManifest(path: string): Manifest {
  const namespaces = new Map<string, NamespaceObject>();
  const pods = new Map<string, PodObject>();
  const text = (): string => manifestText(namespaces.values(), pods.values());
  return {
    path,
    text,
    namespace: (name, labels = {}) => void namespaces.set(name, { name, labels }),
    removeNamespace: (name) => void namespaces.delete(name),
    pod: (pod) => void pods.set(pod.uid, pod),
    change(uid, fields) {
      const before = pods.get(uid);
      if (before === undefined) throw new Error(`the manifest has no pod ${uid}`);
      pods.set(uid, { ...before, ...fields } as PodObject);
    },
    remove: (uid) => void pods.delete(uid),
    write: () => replaceFile(path, text()),
  };
}
