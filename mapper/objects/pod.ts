/**
 * Projections: the only shape in which the agent keeps objects of the API.
 *
 * A pod of the API is tens of kilobytes; what decides about it is a few hundred
 * bytes. A manifest file and the API server's lists and watches go through the
 * same two functions.
 */

import { isIP } from 'node:net';
import { labelSetAt, versionOf } from './object-age.ts';

/** Label or annotation values by key. Made without a prototype, so that a label named `constructor` is only a label. */
export type Labels = Readonly<Record<string, string>>;

export interface Namespace {
  readonly name: string;
  readonly labels: Labels;
  /** Of the API, as {@link Pod.version}. */
  readonly version?: bigint;
  /** When the label {@link MODE_LABEL} got its value, as {@link labelSetAt} has it. */
  readonly modeSetAt?: number;
}

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
  readonly phase: Phase;
  readonly ready: boolean;
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
}

/** What may stand for the pod in its cgroup's name: its UID or, for a static pod, its configuration's hash. */
export const podKeys = ({ uid, configHash }: Pod): readonly string[] =>
  configHash === undefined ? [uid] : [uid, configHash];

/** The kubelet's own image in the API of a static pod. */
export const isMirror = ({ annotations }: Pod): boolean => annotations[CONFIG_MIRROR] !== undefined;

/** The pods and namespaces that one read or one list gave, whole. */
export interface Objects {
  readonly pods: readonly Pod[];
  readonly namespaces: readonly Namespace[];
}

/** What is wrong with an object, in words that follow a file and line, and where in the object that is. */
export interface Problem {
  readonly problem: string;
  readonly at: readonly (string | number)[];
}

/**
 * - `api`: the API server validated the object, so a value of a form that is not
 *   known here is a newer server's, and is left out rather than refused. A pod
 *   without conditions has just been made and is not ready.
 * - `manifest`: a person wrote it. A value that cannot be read is a mistake to
 *   name; a pod without a phase runs, and without conditions it is ready.
 */
export type Origin = 'api' | 'manifest';

export const MODE_LABEL = 'istio.io/dataplane-mode';
export const SIDECAR_STATUS = 'sidecar.istio.io/status';
export const CONFIG_HASH = 'kubernetes.io/config.hash';
const CONFIG_MIRROR = 'kubernetes.io/config.mirror';
const KEPT_ANNOTATIONS: ReadonlySet<string> = new Set([
  SIDECAR_STATUS,
  CONFIG_HASH,
  CONFIG_MIRROR,
  'ambient.istio.io/redirection',
]);
const TRAFFIC_ANNOTATIONS = 'traffic.sidecar.istio.io/';

const UID_FORM = /^(?:[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{32})$/i;

export function keepsAnnotation(key: string): boolean {
  return KEPT_ANNOTATIONS.has(key) || key.startsWith(TRAFFIC_ANNOTATIONS);
}

export function isProblem(value: object): value is Problem {
  return 'problem' in value;
}

/** Projects a raw Namespace. Never throws. */
export function namespaceOf(value: unknown): Namespace | Problem {
  return projected((refuse) => {
    const metadata = record(record(value, [], refuse)['metadata'], ['metadata'], refuse);
    const name = requiredText(metadata['name'], ['metadata', 'name'], refuse);
    const [version, modeSetAt] = [versionOf(metadata), labelSetAt(metadata, MODE_LABEL)];
    return {
      name,
      labels: labelsOf(metadata['labels'], ['metadata', 'labels'], refuse),
      ...(version === undefined ? {} : { version }),
      ...(modeSetAt === undefined ? {} : { modeSetAt }),
    };
  });
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
    const configHash = annotations[CONFIG_HASH]?.toLowerCase() || undefined;
    const node = optionalText(spec['nodeName'], ['spec', 'nodeName'], refuse);
    const version = versionOf(metadata);
    return {
      namespace,
      name,
      uid,
      ...(configHash === undefined ? {} : { configHash }),
      ...(node === undefined ? {} : { node }),
      hostNetwork: flag(spec['hostNetwork'], ['spec', 'hostNetwork'], refuse),
      phase: phaseOf(status['phase'], strict, refuse),
      ready: readyOf(status['conditions'], strict, refuse),
      terminating: metadata['deletionTimestamp'] !== undefined && metadata['deletionTimestamp'] !== null,
      createdAt: timeOf(metadata['creationTimestamp'], strict, refuse),
      ...(version === undefined ? {} : { version }),
      ips: ipsOf(status, strict, refuse),
      labels: labelsOf(metadata['labels'], ['metadata', 'labels'], refuse),
      annotations,
    };
  });
}

/**
 * The canonical text of an IP address (RFC 5952 for IPv6), or undefined for
 * anything else. A v4-mapped address becomes the IPv4 address that it stands for.
 */
export function canonicalIp(text: string): string | undefined {
  const family = isIP(text);
  if (family === 0 || text.includes('%')) return undefined;
  if (family === 4) return text;
  const canonical = new URL(`http://[${text}]`).hostname.slice(1, -1);
  const { 1: high, 2: low } = /^::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(canonical) ?? [];
  if (high === undefined || low === undefined) return canonical;
  const [h, l] = [parseInt(high, 16), parseInt(low, 16)];
  return `${h >> 8}.${h & 255}.${l >> 8}.${l & 255}`;
}

/** A value as an error quotes it: short, on one line, with its type where that is the point. Never throws. */
export function shown(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'object') return 'a mapping';
  if (typeof value === 'string')
    return JSON.stringify(value.length > 80 ? `${value.slice(0, 77)}...` : value);
  return `the ${typeof value} ${String(value)}`;
}

type Path = readonly (string | number)[];
type Refuse = (at: Path, expected: string, came: unknown) => never;

/** Carries one problem from the depth of a projection to its top, and no further. */
const REFUSED = Symbol('refused');

function projected<T extends object>(project: (refuse: Refuse) => T): T | Problem {
  let found: Problem = { problem: 'expected an object that can be read', at: [] };
  const refuse: Refuse = (at, expected, came) => {
    found = { problem: `${dotted(at)}: expected ${expected}, got ${shown(came)}`, at };
    throw REFUSED;
  };
  try {
    return project(refuse);
  } catch {
    // REFUSED; or a getter of the raw value that threw, which is as unreadable.
    return found;
  }
}

function dotted(at: Path): string {
  let text = '';
  for (const step of at) {
    if (typeof step === 'number') text += `[${step}]`;
    else if (/^\w+$/.test(step)) text += text === '' ? step : `.${step}`;
    else text += `[${JSON.stringify(step)}]`;
  }
  return text === '' ? 'object' : text;
}

function record(value: unknown, at: Path, refuse: Refuse): Readonly<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    return refuse(at, 'a mapping', value);
  return value as Readonly<Record<string, unknown>>;
}

function optionalRecord(value: unknown, at: Path, refuse: Refuse): Readonly<Record<string, unknown>> {
  return value === undefined || value === null ? {} : record(value, at, refuse);
}

function requiredText(value: unknown, at: Path, refuse: Refuse): string {
  return optionalText(value, at, refuse) ?? refuse(at, 'a text', value);
}

function optionalText(value: unknown, at: Path, refuse: Refuse): string | undefined {
  if (value === undefined || value === null || value === '') return undefined;
  return typeof value === 'string'
    ? value
    : refuse(at, 'a text (in quotes, if YAML takes it for something else)', value);
}

function flag(value: unknown, at: Path, refuse: Refuse): boolean {
  if (value === undefined || value === null) return false;
  return typeof value === 'boolean' ? value : refuse(at, 'true or false', value);
}

function labelsOf(
  value: unknown,
  at: Path,
  refuse: Refuse,
  keep: (key: string) => boolean = () => true,
): Labels {
  const labels: Record<string, string> = Object.create(null) as Record<string, string>;
  for (const [key, text] of Object.entries(optionalRecord(value, at, refuse))) {
    if (!keep(key)) continue;
    labels[key] =
      typeof text === 'string'
        ? text
        : refuse([...at, key], 'a text (in quotes, if YAML takes it for something else)', text);
  }
  return labels;
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

function timeOf(value: unknown, strict: boolean, refuse: Refuse): number {
  if (value === undefined || value === null) return 0;
  // `Date.parse` takes a lot of things for a date; the API writes RFC 3339 only.
  const time = typeof value === 'string' && /^\d{4}-\d\d-\d\d/.test(value) ? Date.parse(value) : NaN;
  if (!Number.isNaN(time)) return time;
  return strict ? refuse(['metadata', 'creationTimestamp'], 'a time such as 2026-01-31T12:00:00Z', value) : 0;
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
