/** The case of one pod: what the rules ask of its labels and annotations, its namespace and the configuration. */

import type { Config } from '../config/config.ts';
import { ANY_NAMESPACE } from '../config/settings-table.ts';
import { ALLOW_BYPASS_LABEL, BYPASS_LABEL, MODE_LABEL, SIDECAR_STATUS } from '../objects/label-names.ts';
import { labelValue, type Labels } from '../objects/labels.ts';
import type { Namespace } from '../objects/namespace.ts';
import { hasEnded, type Pod } from '../objects/pod.ts';
import type { Decision, Ending, Note, Remembered } from './decision.ts';
import { optsOut, otherMeshes, type MeshClaim } from './redirection-annotation.ts';

/** What the decision reads of the configuration. */
export type VerdictConfig = Pick<
  Config,
  'meshModes' | 'excludedNamespaces' | 'gatewayControllers' | 'runtimeClasses' | 'takeOver' | 'bypass'
> & {
  readonly proxy: Pick<Config['proxy'], 'selector' | 'namespaces'>;
};

export interface PodCase {
  readonly pod: Pod;
  readonly config: VerdictConfig;
  /** It has succeeded or failed, and none of its processes is left. */
  readonly terminal: boolean;
  /** It has succeeded or failed, and its processes run on: what was decided before that, which stands. */
  readonly stands: Decision | undefined;
  /** One of the node's ztunnels by its labels and namespace, running or not. */
  readonly proxy: boolean;
  readonly sidecar: boolean;
  /** Its sockets live in another kernel. */
  readonly otherKernel: boolean;
  readonly otherMeshes: readonly MeshClaim[];
  /** Its annotation asks for no redirection, as Istio's older way of opting out. */
  readonly optsOut: boolean;
  readonly ownMode: ModeLabel;
  readonly namespaceMode: ModeLabel;
  readonly remembered: Remembered | undefined;
  /** The mesh mode that counts, in lower case: the pod's own, else the namespace's. Undefined where there is none. */
  readonly mode: string | undefined;
  readonly bypass: Bypass;
}

/** The mode label of a pod or a namespace. */
export interface ModeLabel {
  /** As it is written; undefined where there is none. */
  readonly value: string | undefined;
  /** In lower case: a mesh mode, or `none`. Undefined for an absent or unknown one. */
  readonly mode: string | undefined;
}

/** The bypass label of a pod. */
export interface Bypass {
  /** As it is written; undefined where there is none. */
  readonly value: string | undefined;
  readonly outbound: boolean;
  readonly inbound: boolean;
  /** Undefined when there is none, or it is refused. */
  readonly reason: 'bypass' | 'bypass-outbound' | 'bypass-inbound' | undefined;
  readonly saw: string;
  /** Of one that is unknown or refused. */
  readonly notes: readonly Note[];
}

export function caseOf(
  pod: Pod,
  namespace: Namespace | undefined,
  config: VerdictConfig,
  remembered: Remembered | undefined,
  ending: Ending | undefined,
): PodCase {
  const ownMode = modeLabelOf(pod.labels, config);
  const namespaceLabel = modeLabelOf(namespace?.labels, config);
  const runsOn = ending?.isRunning === true;
  const theirs = remembered === undefined ? namespaceLabel : remembered;
  return {
    pod,
    config,
    terminal: hasEnded(pod) && !runsOn,
    stands: hasEnded(pod) && runsOn ? ending.last : undefined,
    proxy: isProxy(pod, config.proxy),
    sidecar: labelValue(pod.annotations, SIDECAR_STATUS) !== undefined,
    otherKernel: isOneOf(config.runtimeClasses, pod.runtimeClass),
    otherMeshes: otherMeshes(pod),
    optsOut: optsOut(pod),
    ownMode,
    namespaceMode: namespaceLabel,
    remembered,
    mode: meshModeOf(ownMode) ?? meshModeOf(theirs),
    bypass: bypassOf(pod, namespace, config),
  };
}

/** Names, of which one that ends in `*` stands for all that begin like it. */
function isOneOf(names: readonly string[], name: string | undefined): boolean {
  if (name === undefined) return false;
  return names.some((each) => (each.endsWith('*') ? name.startsWith(each.slice(0, -1)) : name === each));
}

/** Whether a pod is one of the node's ztunnels by its labels and namespace. */
export function isProxy(pod: Pod, proxy: VerdictConfig['proxy']): boolean {
  return proxy.selector.matches(pod.labels) && mayHoldProxy(pod.namespace, proxy);
}

/** Whether the selector counts in a namespace. */
export function mayHoldProxy(
  namespace: string,
  { namespaces }: Pick<Config['proxy'], 'namespaces'>,
): boolean {
  return isAnyNamespace(namespaces) || namespaces.includes(namespace);
}

export function isAnyNamespace(namespaces: readonly string[]): boolean {
  return namespaces.includes(ANY_NAMESPACE);
}

/** The mesh mode that a namespace's label names; undefined for none, and for one that is not known. */
export function namespaceMode(namespace: Namespace | undefined, config: VerdictConfig): string | undefined {
  return meshModeOf(modeLabelOf(namespace?.labels, config));
}

/** `none` is a mode that a label may name, and no mesh mode. */
function meshModeOf({ mode }: Pick<ModeLabel, 'mode'>): string | undefined {
  return mode === 'none' ? undefined : mode;
}

function modeLabelOf(labels: Labels | undefined, config: VerdictConfig): ModeLabel {
  const value = labels === undefined ? undefined : labelValue(labels, MODE_LABEL);
  const mode = value?.toLowerCase() ?? '';
  return { value, mode: mode === 'none' || config.meshModes.includes(mode) ? mode : undefined };
}

/** What to say of a mode label whose value is unknown; an empty one says nothing. */
export function unknownMode(
  owner: string,
  { value, mode }: ModeLabel,
  config: VerdictConfig,
): readonly Note[] {
  if (value === undefined || value === '' || mode !== undefined) return [];
  return [
    {
      code: 'unknown-mode',
      message: `${owner} has ${MODE_LABEL}=${JSON.stringify(value)}, expected one of ${config.meshModes.join(', ')} or none: it counts as absent`,
    },
  ];
}

/** The label's values, compared without regard to case as those of the mode label are. */
const BYPASS_REASONS: Readonly<Record<string, NonNullable<Bypass['reason']>>> = {
  enabled: 'bypass',
  outbound: 'bypass-outbound',
  inbound: 'bypass-inbound',
};

function bypassOf(pod: Pod, namespace: Namespace | undefined, config: VerdictConfig): Bypass {
  const value = labelValue(pod.labels, BYPASS_LABEL);
  const saw = sawLabel('pod', BYPASS_LABEL, value);
  const none = { value, outbound: false, inbound: false, reason: undefined, saw, notes: [] };
  if (value === undefined || value === '') return none;

  const word = value.toLowerCase();
  const reason = Object.hasOwn(BYPASS_REASONS, word) ? BYPASS_REASONS[word] : undefined;
  const label = `pod ${nameOf(pod)} has ${BYPASS_LABEL}=${JSON.stringify(value)}`;
  if (reason === undefined) {
    const expected = Object.keys(BYPASS_REASONS).join(', ');
    return {
      ...none,
      notes: [
        { code: 'unknown-bypass', message: `${label}, expected one of ${expected}: it counts as absent` },
      ],
    };
  }
  const { allowed } = config.bypass;
  const permission = namespace === undefined ? undefined : labelValue(namespace.labels, ALLOW_BYPASS_LABEL);
  const may = allowed === 'any' || (allowed === 'namespace' && permission === 'true');
  const sawAll = `${saw}, bypass.allowed: ${allowed}${allowed === 'namespace' ? `, ${sawLabel('namespace', ALLOW_BYPASS_LABEL, permission)}` : ''}`;
  if (!may) {
    const why =
      allowed === 'never'
        ? 'bypass.allowed is never'
        : `namespace ${pod.namespace} does not carry ${ALLOW_BYPASS_LABEL}=true`;
    return {
      ...none,
      saw: `${sawAll}: refused`,
      notes: [{ code: 'bypass-refused', message: `${label}, which is refused because ${why}` }],
    };
  }
  return {
    ...none,
    outbound: reason !== 'bypass-inbound',
    inbound: reason !== 'bypass-outbound',
    reason,
    saw: sawAll,
  };
}

export function nameOf(pod: Pod): string {
  return `${pod.namespace}/${pod.name}`;
}

/** A label as the trace shows it. */
export function sawLabel(owner: string, key: string, value: string | undefined): string {
  return `${owner} label ${saw(key, value)}`;
}

/** An annotation of the pod as the trace shows it. */
export function sawAnnotation(key: string, value: string | undefined): string {
  return `annotation ${saw(key, value)}`;
}

function saw(key: string, value: string | undefined): string {
  return `${key} ${value === undefined ? 'absent' : `= ${JSON.stringify(value)}`}`;
}
