/**
 * A pod, in the only shape in which the agent keeps it.
 *
 * A pod of the API is tens of kilobytes; what decides about it is a few hundred
 * bytes. A manifest file and the API server's lists and watches go through the
 * same function.
 */

import { canonicalIp } from './address.ts';
import { FIELD_MANAGER, ownersOf } from './field-owners.ts';
import {
  CONFIG_HASH,
  CONFIG_MIRROR,
  KMESH_REDIRECTION,
  REDIRECTION,
  SIDECAR_STATUS,
  TRAFFIC,
} from './label-names.ts';
import { labelsOf, type Labels } from './labels.ts';
import type { Namespace } from './namespace.ts';
import { versionOf } from './object-age.ts';
import {
  flag,
  optionalRecord,
  optionalText,
  projected,
  record,
  requiredText,
  timeOf,
  type Origin,
  type Path,
  type Problem,
  type Refuse,
} from './projection.ts';

export const PHASES = ['Pending', 'Running', 'Succeeded', 'Failed', 'Unknown'] as const;
export type Phase = (typeof PHASES)[number];

export interface Pod {
  readonly namespace: string;
  readonly name: string;
  /** Lower case. */
  readonly uid: string;
  /** Of a static pod: what stands in its cgroup's path in place of the UID. Lower case. */
  readonly configHash?: string;
  /** `spec.nodeName`; absent until the pod is scheduled. */
  readonly node?: string;
  readonly hostNetwork: boolean;
  /** `spec.serviceAccountName`; `default` where none is named, as in a static pod. */
  readonly serviceAccount: string;
  /** `spec.runtimeClassName`; absent for the node's usual runtime. */
  readonly runtimeClass?: string;
  readonly phase: Phase;
  readonly ready: boolean;
  /** When that was last said otherwise, milliseconds since the epoch; absent where nothing tells. */
  readonly readySince?: number;
  /** Deleted in the API, and still running for its grace period. */
  readonly terminating: boolean;
  /** Milliseconds since the epoch; 0 when unknown. */
  readonly createdAt: number;
  /** `resourceVersion`; absent in a manifest that a person wrote. */
  readonly version?: bigint;
  /** `podIPs`, then `podIP`; canonical text, each once. A pod in the host's network has the host's here. */
  readonly ips: readonly string[];
  readonly labels: Labels;
  /** Only those of {@link keepsAnnotation}. */
  readonly annotations: Labels;
  /**
   * Who has written the annotations about redirection, by their names: another field
   * manager than cgroute where one owns it, too. Without those of whom it is not known.
   */
  readonly writers?: Labels;
}

/** What may stand for the pod in its cgroup's name: its UID or, for a static pod, its configuration's hash. */
export const podKeys = ({ uid, configHash }: Pod): readonly string[] =>
  configHash === undefined ? [uid] : [uid, configHash];

/** By its phase: it has run, and will not be started again. Processes of it may run on until the kubelet has stopped them. */
export const hasEnded = ({ phase }: Pick<Pod, 'phase'>): boolean =>
  phase === 'Succeeded' || phase === 'Failed';

/** The kubelet's own image in the API of a static pod. */
export const isMirror = ({ annotations }: Pod): boolean => annotations[CONFIG_MIRROR] !== undefined;

/** The pods and namespaces that one read or one list gave, whole. */
export interface Objects {
  readonly pods: readonly Pod[];
  readonly namespaces: readonly Namespace[];
}

const KEPT_ANNOTATIONS: ReadonlySet<string> = new Set([
  SIDECAR_STATUS,
  CONFIG_HASH,
  CONFIG_MIRROR,
  REDIRECTION,
  KMESH_REDIRECTION,
]);

const UID_FORM = /^(?:[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{32})$/i;

export function keepsAnnotation(key: string): boolean {
  return KEPT_ANNOTATIONS.has(key) || key.startsWith(TRAFFIC);
}

/** Projects a raw Pod. Never throws. A manifest's pod without a namespace is in `default`, as with kubectl. */
export function podOf(value: unknown, origin: Origin = 'api'): Pod | Problem {
  return projected((refuse) => {
    const strict = origin === 'manifest';
    const pod = record(value, [], refuse);
    const metadata = record(pod['metadata'], ['metadata'], refuse);
    const spec = optionalRecord(pod['spec'], ['spec'], refuse);
    const status = optionalRecord(pod['status'], ['status'], refuse);

    const name = requiredText(metadata['name'], ['metadata', 'name'], refuse);
    const namespace = optionalText(metadata['namespace'], ['metadata', 'namespace'], refuse) ?? 'default';
    const uid = requiredText(metadata['uid'], ['metadata', 'uid'], refuse).toLowerCase();
    if (strict && !UID_FORM.test(uid)) {
      refuse(
        ['metadata', 'uid'],
        'a UID such as 2c48913c-b29f-11e7-9350-020968147796, or the 32 hex digits of a static pod',
        uid,
      );
    }
    const annotations = labelsOf(
      metadata['annotations'],
      ['metadata', 'annotations'],
      refuse,
      keepsAnnotation,
    );
    const writers = writersOf(metadata, annotations);
    const configHash = annotations[CONFIG_HASH]?.toLowerCase() || undefined;
    const node = optionalText(spec['nodeName'], ['spec', 'nodeName'], refuse);
    const serviceAccount = optionalText(spec['serviceAccountName'], ['spec', 'serviceAccountName'], refuse);
    const runtimeClass = optionalText(spec['runtimeClassName'], ['spec', 'runtimeClassName'], refuse);
    const version = versionOf(metadata);
    const readySince = readySinceOf(status['conditions']);
    return {
      namespace,
      name,
      uid,
      ...(configHash === undefined ? {} : { configHash }),
      ...(node === undefined ? {} : { node }),
      hostNetwork: flag(spec['hostNetwork'], ['spec', 'hostNetwork'], refuse),
      serviceAccount: serviceAccount ?? 'default',
      ...(runtimeClass === undefined ? {} : { runtimeClass }),
      phase: phaseOf(status['phase'], strict, refuse),
      ready: readyOf(status['conditions'], strict, refuse),
      ...(readySince === undefined ? {} : { readySince }),
      terminating: metadata['deletionTimestamp'] !== undefined && metadata['deletionTimestamp'] !== null,
      createdAt: timeOf(metadata['creationTimestamp'], strict, refuse),
      ...(version === undefined ? {} : { version }),
      ips: ipsOf(status, strict, refuse),
      labels: labelsOf(metadata['labels'], ['metadata', 'labels'], refuse),
      annotations,
      ...(writers === undefined ? {} : { writers }),
    };
  });
}

/** Of all that the API tells of writers nothing else is kept: it is the largest part of many pods. */
function writersOf(metadata: Readonly<Record<string, unknown>>, annotations: Labels): Pod['writers'] {
  const known = [REDIRECTION, KMESH_REDIRECTION].flatMap((key) => {
    if (!Object.hasOwn(annotations, key)) return [];
    const names = ownersOf(metadata, 'annotations', key).map(({ name }) => name);
    const name = names.find((each) => each !== FIELD_MANAGER) ?? names[0];
    return name === undefined ? [] : [[key, name] as const];
  });
  return known.length === 0 ? undefined : Object.fromEntries(known);
}

function phaseOf(value: unknown, strict: boolean, refuse: Refuse): Phase {
  if (value === undefined || value === null) return strict ? 'Running' : 'Pending';
  const phase = PHASES.find((known) => known === value);
  if (phase === undefined && strict) return refuse(['status', 'phase'], `one of ${PHASES.join(', ')}`, value);
  return phase ?? 'Unknown';
}

function readyOf(value: unknown, strict: boolean, refuse: Refuse): boolean {
  if (value === undefined || value === null) return strict;
  if (!Array.isArray(value)) return refuse(['status', 'conditions'], 'a list', value);
  return value.some((raw, index) => {
    const condition = record(raw, ['status', 'conditions', index], refuse);
    return (
      condition['type'] === 'Ready' &&
      (condition['status'] === 'True' || (strict && condition['status'] === true))
    );
  });
}

/** Only for words: whatever cannot be read is not there. */
function readySinceOf(conditions: unknown): number | undefined {
  if (!Array.isArray(conditions)) return undefined;
  const ready = (conditions as readonly (Readonly<Record<string, unknown>> | null | undefined)[]).find(
    (condition) => condition?.['type'] === 'Ready',
  );
  const at = ready?.['lastTransitionTime'];
  const time = typeof at === 'string' ? Date.parse(at) : NaN;
  return Number.isNaN(time) ? undefined : time;
}

function ipsOf(
  status: Readonly<Record<string, unknown>>,
  strict: boolean,
  refuse: Refuse,
): readonly string[] {
  const ips = new Set<string>();
  const add = (value: unknown, at: Path): void => {
    if (value === undefined || value === null || value === '') return;
    const ip = typeof value === 'string' ? canonicalIp(value) : undefined;
    if (ip !== undefined) ips.add(ip);
    else if (strict) refuse(at, 'an IP address', value);
  };
  const list = status['podIPs'];
  if (Array.isArray(list)) {
    list.forEach((raw, index) => {
      const at = ['status', 'podIPs', index];
      // The API's form is `- ip: ADDRESS`; a plain address is what a person writes.
      if (strict && typeof raw === 'string') add(raw, at);
      else add(record(raw, at, refuse)['ip'], [...at, 'ip']);
    });
  } else if (list !== undefined && list !== null && strict) {
    refuse(['status', 'podIPs'], 'a list', list);
  }
  add(status['podIP'], ['status', 'podIP']);
  return [...ips];
}
