/** Kubernetes objects as far as the tests read and write them; the API's own field names (core/v1). */

export type Texts = Readonly<Record<string, string>>;

export interface ObjectMeta {
  readonly name: string;
  readonly namespace?: string;
  readonly uid?: string;
  readonly resourceVersion?: string;
  readonly labels?: Texts;
  readonly annotations?: Texts;
  readonly creationTimestamp?: string;
  /** Set while the object is deleted and its grace period runs. */
  readonly deletionTimestamp?: string;
  /** Seconds. */
  readonly deletionGracePeriodSeconds?: number;
  readonly ownerReferences?: readonly unknown[];
  readonly finalizers?: readonly string[];
  readonly managedFields?: readonly { readonly manager: string; readonly fieldsV1?: unknown }[];
}

export interface KubeObject {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: ObjectMeta;
  readonly [field: string]: unknown;
}

export interface ContainerSpec {
  readonly name: string;
  readonly image: string;
  readonly command?: readonly string[];
  readonly args?: readonly string[];
  readonly resources?: { readonly requests?: Texts; readonly limits?: Texts };
  readonly readinessProbe?: unknown;
  /** Of an init container: `Always` makes it a sidecar. */
  readonly restartPolicy?: string;
}

export interface PodSpec {
  readonly nodeName?: string;
  readonly hostNetwork?: boolean;
  readonly runtimeClassName?: string;
  readonly restartPolicy?: string;
  readonly terminationGracePeriodSeconds?: number;
  readonly containers: readonly ContainerSpec[];
  readonly initContainers?: readonly ContainerSpec[];
  readonly ephemeralContainers?: readonly ContainerSpec[];
  readonly [field: string]: unknown;
}

export interface PodCondition {
  readonly type: string;
  readonly status: string;
  readonly reason?: string;
  readonly lastTransitionTime?: string;
}

export interface ContainerStatus {
  readonly name: string;
  readonly containerID?: string;
  readonly ready: boolean;
  readonly restartCount: number;
  readonly state?: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
  readonly [field: string]: unknown;
}

export interface PodStatus {
  readonly phase?: string;
  readonly podIP?: string;
  readonly podIPs?: readonly { readonly ip: string }[];
  readonly conditions?: readonly PodCondition[];
  readonly containerStatuses?: readonly ContainerStatus[];
  readonly ephemeralContainerStatuses?: readonly ContainerStatus[];
  readonly [field: string]: unknown;
}

export interface Pod extends KubeObject {
  readonly spec: PodSpec;
  readonly status?: PodStatus;
}

export interface PodFields {
  /** The node that it is bound to, as by the scheduler. */
  readonly node: string;
  /** Default `default`. */
  readonly namespace?: string;
  readonly labels?: Texts;
  readonly annotations?: Texts;
  /** What its one container, `main`, runs. Default: its image's own, which is to sleep. */
  readonly command?: readonly string[];
  /** Added to its specification. */
  readonly spec?: Partial<PodSpec>;
}

export function namespaceObject(name: string, labels: Texts = {}): KubeObject {
  return { apiVersion: 'v1', kind: 'Namespace', metadata: { name, labels } };
}

/** A pod of one container, with a grace period of one second. */
export function podObject(name: string, fields: PodFields): Pod {
  const { node, namespace = 'default', labels = {}, annotations = {}, command, spec = {} } = fields;
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, namespace, labels, annotations },
    spec: {
      nodeName: node,
      terminationGracePeriodSeconds: 1,
      containers: [
        { name: 'main', image: 'test.invalid/main', ...(command === undefined ? {} : { command }) },
      ],
      ...spec,
    },
  };
}
