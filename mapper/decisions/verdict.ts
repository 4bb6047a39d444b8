/**
 * Is this pod's traffic redirected? A pure function from a pod, its namespace
 * and the configuration to a verdict with one reason.
 *
 * The rules are tried in order and the first that applies decides. The numbers
 * are those that `cgroute explain` prints.
 */

import type { Config } from '../config/config.ts';
import {
  ALLOW_BYPASS_LABEL,
  BYPASS_LABEL,
  GATEWAY_LABEL,
  MODE_LABEL,
  SIDECAR_STATUS,
} from '../objects/label-names.ts';
import { valueOf } from '../objects/labels.ts';
import type { Namespace } from '../objects/namespace.ts';
import type { Pod } from '../objects/pod.ts';
import type { Decision, Note, Reason, Remembered, RuleStep } from './decision.ts';
import { trafficOptions } from './traffic-options.ts';

/** What the decision reads of the configuration. */
export type VerdictConfig = Pick<
  Config,
  'meshModes' | 'excludedNamespaces' | 'gatewayControllers' | 'bypass'
> & {
  readonly proxy: Pick<Config['proxy'], 'selector' | 'namespaces'>;
};

/**
 * Decides about one pod. Total: every input has exactly one reason. Never throws.
 *
 * @param namespace undefined when it is not known; it then counts as one without labels
 * @param remembered counts in the place of the namespace's mode; undefined is nothing to remember
 */
export function decide(
  pod: Pod,
  namespace: Namespace | undefined,
  config: VerdictConfig,
  remembered?: Remembered,
): Decision {
  const steps: RuleStep[] = [];
  const notes: Note[] = [];
  const terminal = pod.phase === 'Succeeded' || pod.phase === 'Failed';
  const sidecar = valueOf(pod.annotations, SIDECAR_STATUS) !== undefined;
  const proxy = isProxy(pod, config.proxy);
  const known = { sidecar, proxy: proxy && !terminal, traffic: undefined, notes, trace: steps };

  /** Notes one step and hands its answer on. */
  const asked = (rule: number, condition: string, saw: string, outcome: boolean | 'yes'): boolean => {
    steps.push({
      rule,
      condition,
      saw,
      outcome: outcome === true ? 'decides' : outcome === 'yes' ? 'yes' : 'no',
    });
    return outcome !== false;
  };
  const left = (reason: Reason): Decision => ({
    ...known,
    verdict: 'out',
    reason,
    enrolled: false,
    mode: undefined,
    bypassOutbound: false,
    bypassInbound: false,
  });

  if (asked(1, 'the pod is in the host network', `spec.hostNetwork: ${pod.hostNetwork}`, pod.hostNetwork))
    return left('host-network');
  if (asked(2, 'the pod has ended', `phase ${pod.phase}${pod.terminating ? ', terminating' : ''}`, terminal))
    return left('terminal');
  if (
    asked(
      3,
      `the pod is the node's ztunnel (${selectorText(config.proxy)})`,
      sawProxy(pod, config.proxy),
      proxy,
    )
  )
    return left('proxy');
  const excluded = config.excludedNamespaces.includes(pod.namespace);
  if (
    asked(
      4,
      `the namespace is excluded (${config.excludedNamespaces.join(', ')})`,
      `namespace ${pod.namespace}`,
      excluded,
    )
  ) {
    return left('excluded-namespace');
  }
  const controller = valueOf(pod.labels, GATEWAY_LABEL);
  const gateway = controller !== undefined && config.gatewayControllers.includes(controller.toLowerCase());
  if (asked(5, 'the pod is a waypoint or a gateway', sawLabel('pod', GATEWAY_LABEL, controller), gateway))
    return left('gateway');

  const bypass = bypassOf(pod, namespace, config, notes);
  const after = { ...known, bypassOutbound: bypass.outbound, bypassInbound: bypass.inbound };

  const enrolment = enrolmentOf(pod, namespace, config, remembered, notes, asked);
  if (enrolment.mode === undefined) {
    return { ...after, verdict: 'out', reason: enrolment.reason, enrolled: false, mode: undefined };
  }
  const { mode } = enrolment;
  const { options: traffic, problems } = trafficOptions(pod.annotations);

  const shortCircuited = sidecar && mode === 'kmesh';
  const sawSidecar = `annotation ${SIDECAR_STATUS} ${sidecar ? 'present' : 'absent'}, mode ${mode}`;
  asked(8, 'the pod has a sidecar', sawSidecar, sidecar);
  if (sidecar && !shortCircuited)
    return { ...after, verdict: 'out', reason: 'sidecar', enrolled: false, mode };
  if (problems.length > 0)
    notes.push({ code: 'traffic-annotation', message: `pod ${nameOf(pod)}: ${problems.join('; ')}` });
  if (sidecar) {
    if (bypass.reason !== undefined) {
      notes.push({
        code: 'bypass-beside-sidecar',
        message: `pod ${nameOf(pod)} carries ${BYPASS_LABEL}=${JSON.stringify(bypass.value)} and its sidecar is short-circuited as well: the bypass is in force, the reason shown is that of the earlier rule`,
      });
    }
    return { ...after, verdict: 'in', reason: 'sidecar-short-circuited', enrolled: true, mode, traffic };
  }

  asked(9, 'the pod asks to be bypassed, and may', bypass.saw, bypass.reason !== undefined);
  if (bypass.reason !== undefined)
    return { ...after, verdict: 'bypass', reason: bypass.reason, enrolled: true, mode, traffic };
  decideLate(steps);
  return { ...after, verdict: 'in', reason: enrolment.reason, enrolled: true, mode, traffic };
}

/** Whether a pod is one of the node's ztunnels by its labels and namespace. */
export function isProxy(pod: Pod, proxy: VerdictConfig['proxy']): boolean {
  return (
    proxy.selector.matches(pod.labels) &&
    (proxy.namespaces.length === 0 || proxy.namespaces.includes(pod.namespace))
  );
}

/** The mesh mode that a namespace's label names; undefined for none, and for one that is not known. */
export function namespaceMode(namespace: Namespace | undefined, config: VerdictConfig): string | undefined {
  const mode =
    namespace === undefined ? undefined : modeOf(valueOf(namespace.labels, MODE_LABEL), config, [], '');
  return mode === 'none' ? undefined : mode;
}

type Asked = (rule: number, condition: string, saw: string, outcome: boolean | 'yes') => boolean;
type Enrolment =
  | { readonly mode: string; readonly reason: 'pod-label' | 'namespace-label' }
  | { readonly mode: undefined; readonly reason: 'pod-opt-out' | 'not-enrolled' };

/** Rules 6 and 7. */
function enrolmentOf(
  pod: Pod,
  namespace: Namespace | undefined,
  config: VerdictConfig,
  remembered: Remembered | undefined,
  notes: Note[],
  asked: Asked,
): Enrolment {
  const own = valueOf(pod.labels, MODE_LABEL);
  const ownMode = modeOf(own, config, notes, `pod ${nameOf(pod)}`);
  const sawOwn = sawLabel('pod', MODE_LABEL, own);
  if (ownMode === 'none') {
    asked(6, 'the pod\'s label says "none"', sawOwn, true);
    return { mode: undefined, reason: 'pod-opt-out' };
  }
  if (
    asked(
      6,
      `the pod's label names a mesh mode (${config.meshModes.join(', ')})`,
      sawOwn,
      ownMode === undefined ? false : 'yes',
    ) &&
    ownMode !== undefined
  ) {
    return { mode: ownMode, reason: 'pod-label' };
  }

  const theirs = namespace === undefined ? undefined : valueOf(namespace.labels, MODE_LABEL);
  const now = modeOf(theirs, config, notes, `namespace ${pod.namespace}`);
  const mode = remembered === undefined ? now : remembered.mode;
  const sawNow = sawLabel('namespace', MODE_LABEL, theirs);
  const saw =
    remembered === undefined
      ? sawNow
      : `${sawNow}; when the pod was first seen, ${mode ?? 'none'}, which counts (enrollment: new-pods)`;
  if (mode === undefined || mode === 'none') {
    asked(7, 'no label names a mesh mode', saw, true);
    return { mode: undefined, reason: 'not-enrolled' };
  }
  asked(7, "the namespace's label names a mesh mode", saw, 'yes');
  return { mode, reason: 'namespace-label' };
}

/** A label's mode in lower case, or `none`; undefined for an absent or unknown one, which is noted. */
function modeOf(
  value: string | undefined,
  config: VerdictConfig,
  notes: Note[],
  owner: string,
): string | undefined {
  if (value === undefined || value === '') return undefined;
  const mode = value.toLowerCase();
  if (mode === 'none' || config.meshModes.includes(mode)) return mode;
  notes.push({
    code: 'unknown-mode',
    message: `${owner} has ${MODE_LABEL}=${JSON.stringify(value)}, expected one of ${config.meshModes.join(', ')} or none: it counts as absent`,
  });
  return undefined;
}

interface Bypass {
  readonly value: string | undefined;
  readonly outbound: boolean;
  readonly inbound: boolean;
  /** Undefined when there is none, or it is refused. */
  readonly reason: 'bypass' | 'bypass-outbound' | 'bypass-inbound' | undefined;
  readonly saw: string;
}

/** The label's values, compared without regard to case as those of the mode label are. */
const BYPASS_REASONS: Readonly<Record<string, NonNullable<Bypass['reason']>>> = {
  enabled: 'bypass',
  outbound: 'bypass-outbound',
  inbound: 'bypass-inbound',
};

function bypassOf(pod: Pod, namespace: Namespace | undefined, config: VerdictConfig, notes: Note[]): Bypass {
  const value = valueOf(pod.labels, BYPASS_LABEL);
  const saw = sawLabel('pod', BYPASS_LABEL, value);
  const none = { value, outbound: false, inbound: false, reason: undefined };
  if (value === undefined || value === '') return { ...none, saw };

  const word = value.toLowerCase();
  const reason = Object.hasOwn(BYPASS_REASONS, word) ? BYPASS_REASONS[word] : undefined;
  if (reason === undefined) {
    notes.push({
      code: 'unknown-bypass',
      message: `pod ${nameOf(pod)} has ${BYPASS_LABEL}=${JSON.stringify(value)}, expected one of ${Object.keys(BYPASS_REASONS).join(', ')}: it counts as absent`,
    });
    return { ...none, saw };
  }
  const { allowed } = config.bypass;
  const permission = namespace === undefined ? undefined : valueOf(namespace.labels, ALLOW_BYPASS_LABEL);
  const may = allowed === 'any' || (allowed === 'namespace' && permission === 'true');
  const sawAll = `${saw}, bypass.allowed: ${allowed}${allowed === 'namespace' ? `, ${sawLabel('namespace', ALLOW_BYPASS_LABEL, permission)}` : ''}`;
  if (!may) {
    const why =
      allowed === 'never'
        ? 'bypass.allowed is never'
        : `namespace ${pod.namespace} does not carry ${ALLOW_BYPASS_LABEL}=true`;
    notes.push({
      code: 'bypass-refused',
      message: `pod ${nameOf(pod)} has ${BYPASS_LABEL}=${JSON.stringify(value)}, which is refused because ${why}`,
    });
    return { ...none, saw: `${sawAll}: refused` };
  }
  return {
    value,
    outbound: reason !== 'bypass-inbound',
    inbound: reason !== 'bypass-outbound',
    reason,
    saw: sawAll,
  };
}

/** No later rule had anything to say, so the label's own rule decided. */
function decideLate(steps: RuleStep[]): void {
  const index = steps.findIndex((step) => step.outcome === 'yes');
  const step = steps[index];
  if (step !== undefined) steps[index] = { ...step, outcome: 'decides' };
}

function nameOf(pod: Pod): string {
  return `${pod.namespace}/${pod.name}`;
}

function sawLabel(owner: string, key: string, value: string | undefined): string {
  return `${owner} label ${key} ${value === undefined ? 'absent' : `= ${JSON.stringify(value)}`}`;
}

function selectorText(proxy: VerdictConfig['proxy']): string {
  return proxy.namespaces.length === 0
    ? proxy.selector.text
    : `${proxy.selector.text} in ${proxy.namespaces.join(', ')}`;
}

function sawProxy(pod: Pod, proxy: VerdictConfig['proxy']): string {
  const place = proxy.namespaces.length === 0 ? '' : ` in namespace ${pod.namespace}`;
  return proxy.selector.matches(pod.labels) ? `labels match${place}` : `labels do not match${place}`;
}
