/**
 * Is this pod's traffic redirected? A pure function from a pod, its namespace
 * and the configuration to a verdict with one reason.
 *
 * The rules are a table, and the decision is a walk through it: they are tried in
 * order, and the first that applies decides.
 */

import {
  BYPASS_LABEL,
  GATEWAY_LABEL,
  KMESH_REDIRECTION,
  MODE_LABEL,
  REDIRECTION,
  SIDECAR_STATUS,
} from '../objects/label-names.ts';
import { labelValue } from '../objects/labels.ts';
import type { Namespace } from '../objects/namespace.ts';
import { hasEnded, type Pod } from '../objects/pod.ts';
import type { Decision, Ending, Note, Reason, Remembered, RuleStep, Verdict } from './decision.ts';
import {
  caseOf,
  isAnyNamespace,
  nameOf,
  sawAnnotation,
  sawLabel,
  unknownMode,
  type PodCase,
  type VerdictConfig,
} from './pod-case.ts';
import type { MeshClaim } from './redirection-annotation.ts';
import { trafficOptions, type TrafficAnnotations } from './traffic-options.ts';

/** What a rule that applies makes of the pod. */
interface Outcome {
  readonly verdict: Verdict;
  readonly reason: Reason;
  /** The pod is in the mesh, and the rules of enrolled pods have the last word. */
  readonly goesOn?: true;
  /** The pod's bypass label does not count, and is worth no note. */
  readonly apart?: true;
  /** Decided once, and standing. */
  readonly stands?: Decision;
  /** What an operator should know of it. */
  readonly notes?: readonly Note[];
}

/**
 * One row of the table. Rows of one number stand together and are one question,
 * answered by the first of them that applies: a trace has one step for all.
 */
interface Rule {
  /** As `cgroute explain` prints it. */
  readonly number: number;
  /** Tried once a rule has put the pod into the mesh, and only then; the other rules only before that. */
  readonly ofEnrolled?: true;
  readonly condition: string | ((config: VerdictConfig) => string);
  /** The values that answer it, as text. */
  readonly see: (of: PodCase) => string;
  /** Undefined where it does not apply. */
  readonly applies: (of: PodCase) => Outcome | undefined;
  /** What an operator should know once it has been tried, whether it applies or not. */
  readonly notes?: (of: PodCase) => readonly Note[];
}

const apart = (reason: Reason): Outcome => ({ verdict: 'out', reason, apart: true });
const out = (reason: Reason): Outcome => ({ verdict: 'out', reason });
const enrolled = (reason: Reason): Outcome => ({ verdict: 'in', reason, goesOn: true });
/** Also where no rule applies, which the table makes impossible. */
const NOT_ENROLLED = out('not-enrolled');

const NO_ANNOTATIONS: TrafficAnnotations = { options: undefined, problems: [] };

/**
 * A new row has its reason in decision.ts and in docs/operations.md, and is stated
 * a second time in test/harness/verdict-oracle.ts.
 */
const RULES: readonly Rule[] = [
  {
    number: 1,
    condition: 'the pod is in the host network',
    see: ({ pod }) => `spec.hostNetwork: ${pod.hostNetwork}`,
    applies: ({ pod }) => (pod.hostNetwork ? apart('host-network') : undefined),
  },
  {
    number: 2,
    condition: 'the pod has ended, or it has by its phase, and what was decided before that stands',
    see: sawPhase,
    applies: ({ terminal, stands }) => {
      if (terminal) return apart('terminal');
      return stands && { verdict: stands.verdict, reason: stands.reason, stands };
    },
  },
  {
    number: 3,
    condition: ({ proxy }) => `the pod is the node's ztunnel (${selectorText(proxy)})`,
    see: sawProxy,
    applies: ({ proxy }) => (proxy ? apart('proxy') : undefined),
  },
  {
    number: 4,
    condition: ({ excludedNamespaces }) => `the namespace is excluded (${excludedNamespaces.join(', ')})`,
    see: ({ pod }) => `namespace ${pod.namespace}`,
    applies: ({ pod, config }) =>
      config.excludedNamespaces.includes(pod.namespace) ? apart('excluded-namespace') : undefined,
  },
  {
    number: 5,
    condition: 'the pod is a waypoint or a gateway',
    see: ({ pod }) => sawLabel('pod', GATEWAY_LABEL, labelValue(pod.labels, GATEWAY_LABEL)),
    applies: ({ pod, config }) => {
      const controller = labelValue(pod.labels, GATEWAY_LABEL)?.toLowerCase();
      return controller !== undefined && config.gatewayControllers.includes(controller)
        ? apart('gateway')
        : undefined;
    },
  },
  {
    number: 6,
    condition: ({ runtimeClasses }) =>
      `its runtime has a kernel of its own for it (runtimeClasses: ${runtimeClasses.join(', ')})`,
    see: ({ pod }) =>
      pod.runtimeClass === undefined
        ? 'spec.runtimeClassName absent'
        : `spec.runtimeClassName: ${pod.runtimeClass}`,
    applies: ({ otherKernel }) => (otherKernel ? apart('runtime') : undefined),
  },
  {
    number: 7,
    condition: 'another mesh redirects the pod, and takeOver is false',
    see: sawOtherMeshes,
    applies: (of) =>
      of.otherMeshes.length === 0 || of.config.takeOver
        ? undefined
        : { ...apart('other-mesh'), notes: leftToOthers(of) },
  },
  {
    number: 8,
    condition: 'the pod\'s annotation says "disabled", or its label "none"',
    see: ({ pod, ownMode }) =>
      `${sawAnnotation(REDIRECTION, labelValue(pod.annotations, REDIRECTION))}, ${sawLabel('pod', MODE_LABEL, ownMode.value)}`,
    applies: ({ optsOut, ownMode }) => (optsOut || ownMode.mode === 'none' ? out('pod-opt-out') : undefined),
  },
  {
    number: 9,
    condition: ({ meshModes }) => `the pod's label names a mesh mode (${meshModes.join(', ')})`,
    see: ({ ownMode }) => sawLabel('pod', MODE_LABEL, ownMode.value),
    applies: ({ ownMode }) => (ownMode.mode === undefined ? undefined : enrolled('pod-label')),
    notes: ({ pod, ownMode, config }) => unknownMode(`pod ${nameOf(pod)}`, ownMode, config),
  },
  {
    number: 10,
    condition: "the namespace's label names a mesh mode",
    see: sawNamespaceMode,
    applies: ({ mode }) => (mode === undefined ? undefined : enrolled('namespace-label')),
    notes: ({ pod, namespaceMode, config }) =>
      unknownMode(`namespace ${pod.namespace}`, namespaceMode, config),
  },
  {
    number: 10,
    condition: 'no label names a mesh mode',
    see: sawNamespaceMode,
    applies: () => NOT_ENROLLED,
  },
  {
    number: 11,
    ofEnrolled: true,
    condition: 'the pod has a sidecar',
    see: sawSidecar,
    applies: (of) =>
      of.sidecar && of.mode === 'kmesh'
        ? { verdict: 'in', reason: 'sidecar-short-circuited', notes: bypassBeside(of) }
        : undefined,
  },
  {
    number: 11,
    ofEnrolled: true,
    condition: 'the pod has a sidecar',
    see: sawSidecar,
    applies: ({ sidecar }) => (sidecar ? out('sidecar') : undefined),
  },
  {
    number: 12,
    ofEnrolled: true,
    condition: 'the pod asks to be bypassed, and may',
    see: ({ bypass }) => bypass.saw,
    applies: ({ bypass: { reason } }) => (reason === undefined ? undefined : { verdict: 'bypass', reason }),
  },
];

/**
 * Decides about one pod. Total: every input has exactly one reason. Never throws.
 *
 * @param namespace undefined when it is not known; it then counts as one without labels
 * @param remembered counts in the place of the namespace's mode; undefined is nothing to remember
 * @param ending of a pod that has ended by its phase; undefined is one without processes
 */
export function decide(
  pod: Pod,
  namespace: Namespace | undefined,
  config: VerdictConfig,
  remembered?: Remembered,
  ending?: Ending,
): Decision {
  const of = caseOf(pod, namespace, config, remembered, ending);
  const { trace, outcome, isEnrolled, notes } = walk(of);
  if (outcome.stands !== undefined) return { ...outcome.stands, trace };
  const isIn = outcome.verdict !== 'out';
  const labelsCount = outcome.apart !== true;
  const { options: traffic, problems } = isIn ? trafficOptions(pod.annotations) : NO_ANNOTATIONS;
  return {
    verdict: outcome.verdict,
    reason: outcome.reason,
    enrolled: isIn,
    mode: isEnrolled ? of.mode : undefined,
    bypassOutbound: labelsCount && of.bypass.outbound,
    bypassInbound: labelsCount && of.bypass.inbound,
    sidecar: of.sidecar,
    proxy: of.proxy && !of.terminal,
    traffic,
    notes: [
      ...(labelsCount ? of.bypass.notes : []),
      ...notes,
      ...unreadable(pod, problems),
      ...(outcome.notes ?? []),
    ],
    trace,
  };
}

interface Walk {
  /** One step for each number that was tried, in order. */
  readonly trace: readonly RuleStep[];
  readonly outcome: Outcome;
  /** A rule has put the pod into the mesh, whatever a later one made of that. */
  readonly isEnrolled: boolean;
  /** Of the rules that were tried. */
  readonly notes: readonly Note[];
}

function walk(of: PodCase): Walk {
  const trace: RuleStep[] = [];
  const notes: Note[] = [];
  let outcome = NOT_ENROLLED;
  let isEnrolled = false;
  let decides = 0; // no rule's number
  for (const rule of RULES) {
    if ((rule.ofEnrolled === true) !== isEnrolled) continue;
    const { number, condition } = rule;
    const applies = rule.applies(of);
    if (trace.at(-1)?.rule === number) trace.pop();
    trace.push({
      rule: number,
      condition: typeof condition === 'string' ? condition : condition(of.config),
      saw: rule.see(of),
      outcome: applies === undefined ? 'no' : 'yes',
    });
    notes.push(...(rule.notes?.(of) ?? []));
    if (applies === undefined) continue;
    outcome = applies;
    decides = number;
    if (applies.goesOn !== true) break;
    isEnrolled = true;
  }
  return {
    trace: trace.map((step) => (step.rule === decides ? { ...step, outcome: 'decides' } : step)),
    outcome,
    isEnrolled,
    notes,
  };
}

function unreadable(pod: Pod, problems: readonly string[]): readonly Note[] {
  if (problems.length === 0) return [];
  return [{ code: 'traffic-annotation', message: `pod ${nameOf(pod)}: ${problems.join('; ')}` }];
}

/** A pod whose sidecar is short-circuited may be bypassed as well; the reason then does not say so. */
function bypassBeside({ pod, bypass }: PodCase): readonly Note[] {
  if (bypass.reason === undefined) return [];
  return [
    {
      code: 'bypass-beside-sidecar',
      message: `pod ${nameOf(pod)} carries ${BYPASS_LABEL}=${JSON.stringify(bypass.value)} and its sidecar is short-circuited as well: the bypass is in force, the reason shown is that of the earlier rule`,
    },
  ];
}

/** Worth knowing where the pod's labels ask for what another mesh does already. */
function leftToOthers({ pod, mode, ownMode, optsOut, otherMeshes }: PodCase): readonly Note[] {
  if (mode === undefined || ownMode.mode === 'none' || optsOut) return [];
  const claims = otherMeshes.map(claimText).join(' and ');
  return [
    {
      code: 'other-mesh',
      message: `pod ${nameOf(pod)} has the annotation ${claims}: another mesh redirects it, and cgroute leaves it alone (takeOver: false)`,
    },
  ];
}

function claimText({ annotation, value, writer }: MeshClaim): string {
  return `${annotation}=${JSON.stringify(value)}, written by ${writer ?? 'nobody knows whom'}`;
}

function sawOtherMeshes({ pod, config, otherMeshes }: PodCase): string {
  const saw = [REDIRECTION, KMESH_REDIRECTION].map((key) => {
    const writer = pod.writers === undefined ? undefined : labelValue(pod.writers, key);
    const text = sawAnnotation(key, labelValue(pod.annotations, key));
    return writer === undefined ? text : `${text} by ${writer}`;
  });
  return [...saw, ...(otherMeshes.length === 0 ? [] : [`takeOver: ${config.takeOver}`])].join(', ');
}

function selectorText(proxy: VerdictConfig['proxy']): string {
  return isAnyNamespace(proxy.namespaces)
    ? proxy.selector.text
    : `${proxy.selector.text} in ${proxy.namespaces.join(', ')}`;
}

function sawPhase({ pod, terminal, stands }: PodCase): string {
  const saw = `phase ${pod.phase}${pod.terminating ? ', terminating' : ''}`;
  if (!hasEnded(pod)) return saw;
  if (terminal) return `${saw}, and no process is left in its cgroups`;
  return `${saw}, but processes are left in its cgroups${stands === undefined ? '' : `: ${stands.verdict}, because of ${stands.reason}, stands`}`;
}

function sawProxy({ pod, config: { proxy } }: PodCase): string {
  const place = isAnyNamespace(proxy.namespaces) ? '' : ` in namespace ${pod.namespace}`;
  return proxy.selector.matches(pod.labels) ? `labels match${place}` : `labels do not match${place}`;
}

function sawNamespaceMode({ namespaceMode, remembered }: PodCase): string {
  const saw = sawLabel('namespace', MODE_LABEL, namespaceMode.value);
  return remembered === undefined
    ? saw
    : `${saw}; when the pod was first seen, ${remembered.mode ?? 'none'}, which counts (enrollment: new-pods)`;
}

function sawSidecar({ sidecar, mode }: PodCase): string {
  return `annotation ${SIDECAR_STATUS} ${sidecar ? 'present' : 'absent'}, mode ${mode}`;
}
