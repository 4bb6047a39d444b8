/**
 * Sidecars out of their pods' path: which pods should have which rules in their
 * own network namespace, and that they have them.
 *
 * A short-circuited pod counts as redirected once the rules stand. Until then its
 * sidecar keeps its connections, which would else be redirected twice.
 */
import PQueue from 'p-queue';
import type { Logger } from 'pino';
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import { messageOf } from '../../native/error.ts';
import type { FilterPin, RuleKind } from '../../native/netns/iptables-rules.ts';
import { bypassDirection, infoFlag } from '../../native/layout/layouts.ts';
import { isThere } from '../../native/boundary/presence.ts';
import { effectiveCapabilities, hostNamespaces } from '../../native/boundary/privilege.ts';
import type { SourceState } from '../../watcher/source-state.ts';
import type { Config } from '../config/config.ts';
import { SIDECAR_STATUS } from '../objects/label-names.ts';
import type { Pod } from '../objects/pod.ts';
import type { Decision } from '../decisions/decision.ts';
import { BypassList } from './bypass-list.ts';
import { PodRules, type SidecarHost, type SidecarWaits } from './pod-rules.ts';

export interface SidecarRulesOptions {
  readonly dataPlane: Pick<DataPlane, 'pinBypass'> & {
    readonly maps: Pick<DataPlane['maps'], 'bypass4' | 'bypass6' | 'pods'>;
  };
  readonly config: Pick<Config, 'sidecars'>;
  readonly procRoot: string;
  readonly host: SidecarHost;
  readonly logger: Logger;
  /** What {@link SidecarRules.adjust} says of the pod has changed. */
  readonly onChanged: (uid: string) => void;
  readonly waits?: SidecarWaits;
}

export interface SidecarFigures {
  readonly bypassed: number;
  readonly shortCircuited: number;
  /** No process, or no rules of a sidecar, so far. */
  readonly waiting: number;
  readonly failing: number;
  /** Failures since the start. */
  readonly failures: number;
}

const WAITS: SidecarWaits = { absent: [50, 30_000], failed: [1000, 120_000] };
/** A pod with very many rules of its own must not keep all others waiting. */
const AT_ONCE = 2;
const SWITCHED_OFF =
  "the agent runs with sidecars: false; to allow it, set sidecars: true in the chart's values, or without the chart in the agent's configuration";
const SHORT_CIRCUITED = 'sidecar-short-circuited';

/** What a pod with a sidecar should have; the mode is known where no rule before the sidecar's decided. */
export function ruleKindOf({ sidecar, mode, bypassOutbound, bypassInbound }: Decision): RuleKind | undefined {
  if (!sidecar) return undefined;
  if (mode === 'kmesh') return 'short-circuit';
  return bypassOutbound || bypassInbound ? 'bypass' : undefined;
}

const directionsOf = ({ bypassOutbound, bypassInbound }: Decision): number =>
  (bypassOutbound ? bypassDirection.outbound : 0) | (bypassInbound ? bypassDirection.inbound : 0);

/** Why this process cannot change rules inside pods; undefined where it can. */
export function unableToEnter(procRoot: string): string | undefined {
  const held = effectiveCapabilities(procRoot);
  for (const capability of ['CAP_SYS_ADMIN', 'CAP_NET_ADMIN'] as const) {
    if (!held.has(capability))
      return `the agent lacks ${capability}, which it takes to change rules inside a pod's network namespace (in the chart, sidecars: true)`;
  }
  if (hostNamespaces(procRoot).net === undefined)
    return "the host's network namespace cannot be told from a pod's: the agent needs CAP_SYS_PTRACE and hostPID";
  return undefined;
}

export class SidecarRules implements Disposable {
  readonly #options: SidecarRulesOptions;
  readonly #unable: string | undefined;
  #filter: FilterPin | undefined;
  readonly #bypass: BypassList;
  readonly #pods = new Map<string, PodRules>();
  /** Pods that an earlier agent knew to have a sidecar, until they have been looked at: whether it was short-circuited. */
  readonly #before: Map<string, boolean>;
  readonly #queue = new PQueue({ concurrency: AT_ONCE });
  #failures = 0;
  #drift = 0;
  readonly #stop = new AbortController();

  constructor(options: SidecarRulesOptions) {
    this.#options = options;
    const { maps } = options.dataPlane;
    this.#bypass = new BypassList(maps);
    this.#before = new Map(
      maps.pods
        .entries()
        .filter(([, { flags }]) => (flags & infoFlag.sidecar) !== 0)
        .map(([, { uid, reason }]) => [uid, reason === SHORT_CIRCUITED]),
    );
    let unable = options.config.sidecars ? unableToEnter(options.procRoot) : SWITCHED_OFF;
    try {
      if (unable === undefined) this.#filter = options.dataPlane.pinBypass();
    } catch (error) {
      unable = messageOf(error);
    }
    this.#unable = unable;
    // Nothing is wrong with what was asked for.
    if (unable !== undefined)
      options.logger[unable === SWITCHED_OFF ? 'info' : 'warn'](
        `sidecars stay in the path of their pods: ${unable}`,
      );
  }

  /** The decision as long as the rules that it takes are not there; to be asked before {@link want}. */
  adjust(pod: Pod, decision: Decision): Decision {
    const kind = ruleKindOf(decision);
    const note = (message: string): Decision['notes'] => [
      ...decision.notes,
      { code: 'sidecar-stays', message: `the sidecar of pod ${pod.namespace}/${pod.name} ${message}` },
    ];
    // Its connections are redirected as before: they would else belong to no data plane.
    if (this.#unable !== undefined && this.#before.get(pod.uid) === true)
      return {
        ...decision,
        notes: note(
          `is kept out of its path by rules that an earlier agent left, until the pod is replaced or an agent may remove them: ${this.#unable}`,
        ),
      };
    const rules = this.#pods.get(pod.uid);
    if (kind === undefined) {
      if (rules?.problem === undefined || !rules.isLeft) return decision;
      return {
        ...decision,
        notes: note(
          `is kept out of its path by rules that could not be removed, and no data plane has its connections: ${rules.problem}`,
        ),
      };
    }
    const problem = this.#unable ?? rules?.problem;
    const notes =
      problem === undefined
        ? decision.notes
        : note(`cannot be ${kind === 'bypass' ? 'bypassed' : 'short-circuited'}: ${problem}`);
    if (kind === 'bypass' || (this.#unable === undefined && this.#isOutOfPath(pod.uid, rules)))
      return { ...decision, notes };
    return { ...decision, verdict: 'out', reason: 'sidecar', enrolled: false, traffic: undefined, notes };
  }

  #isOutOfPath(uid: string, rules: PodRules | undefined): boolean {
    // An earlier agent's rules stand; and where nothing runs yet, nothing is redirected twice.
    return (
      this.#before.get(uid) === true || (rules !== undefined && (rules.isShortCircuited || !rules.hasProcess))
    );
  }

  /** Where the pod's processes are; before its decision is asked for. */
  place(pod: Pod, paths: readonly string[]): void {
    const rules = this.#pods.get(pod.uid);
    if (rules !== undefined) rules.place(pod, paths);
    else if (pod.annotations[SIDECAR_STATUS] !== undefined || this.#before.has(pod.uid))
      this.#pods.set(pod.uid, this.#rulesOf(pod, paths));
  }

  #rulesOf(pod: Pod, paths: readonly string[]): PodRules {
    const { procRoot, host, logger, onChanged, waits = WAITS } = this.#options;
    return new PodRules(pod, paths, {
      procRoot,
      host,
      logger,
      waits,
      filter: () => this.#filter,
      queue: this.#queue,
      stop: this.#stop.signal,
      isLeft: this.#before.get(pod.uid) === true,
      onKnown: (uid) => void this.#before.delete(uid),
      onChanged,
      onFailed: () => void this.#failures++,
      onDrift: (tables) => void (this.#drift += tables),
    });
  }

  /** What the pod should have. Returns at once. */
  want(pod: Pod, decision: Decision, ips: readonly string[]): void {
    const rules = this.#pods.get(pod.uid);
    if (rules === undefined || pod.hostNetwork) return;
    const kind = this.#unable === undefined ? ruleKindOf(decision) : undefined;
    // The map is the switch: it counts at once, and the rules follow.
    this.#bypass.set(pod.uid, ips, kind === 'bypass' ? directionsOf(decision) : 0);
    if (this.#unable === undefined) rules.want(kind, ips);
  }

  forget(uid: string): void {
    const rules = this.#pods.get(uid);
    if (rules === undefined) return;
    this.#pods.delete(uid);
    rules[Symbol.dispose]();
    this.#bypass.forget(uid);
  }

  /** Once all pods are known: entries of those that are no more. */
  removeLeftovers(): number {
    return this.#bypass.removeLeftovers();
  }

  /** Looks from time to time whether all is as it was left. Returns what has been put back since the last time. */
  repair(): number {
    let repaired = this.#drift;
    this.#drift = 0;
    if (this.#filter !== undefined && !isThere(this.#filter.path)) {
      this.#filter = this.#options.dataPlane.pinBypass();
      repaired++;
    }
    for (const rules of this.#pods.values())
      if (rules.kind !== undefined && rules.standing === 'done') rules.look();
    return repaired + this.#bypass.repair();
  }

  get figures(): SidecarFigures {
    const all = [...this.#pods.values()];
    const wanted = all.filter(({ kind }) => kind !== undefined);
    const count = (check: (rules: PodRules) => boolean): number => wanted.filter(check).length;
    return {
      bypassed: count(({ kind, standing }) => standing === 'done' && kind === 'bypass'),
      shortCircuited: count(({ kind, standing }) => standing === 'done' && kind === 'short-circuit'),
      waiting: count(({ standing }) => standing === 'waiting' || standing === 'unknown'),
      // Also those whose rules are to go.
      failing: all.filter(({ standing }) => standing === 'failed').length,
      failures: this.#failures,
    };
  }

  /** What is being done about a pod's sidecar, for `explain`. */
  words(uid: string): string | undefined {
    return this.#pods.get(uid)?.words();
  }

  source(): SourceState {
    const name = 'sidecars';
    if (this.#unable !== undefined)
      return { name, state: 'off', detail: `they stay in the path of their pods: ${this.#unable}` };
    const { bypassed, shortCircuited, waiting, failing } = this.figures;
    const broken = [...this.#pods.values()].find(({ standing }) => standing === 'failed');
    const detail = `${bypassed} bypassed, ${shortCircuited} short-circuited, ${waiting} waiting for a sidecar's rules`;
    if (broken === undefined) return { name, state: 'ok', detail };
    return {
      name,
      state: 'degraded',
      detail: `${detail}, ${failing} failing; pod ${broken.pod.namespace}/${broken.pod.name}: ${broken.problem ?? ''}`,
    };
  }

  /** Resolves when nothing is being changed any more; nothing is from then on. */
  async stop(): Promise<void> {
    this[Symbol.dispose]();
    await this.#queue.onIdle();
  }

  [Symbol.dispose](): void {
    this.#stop.abort();
    for (const rules of this.#pods.values()) rules[Symbol.dispose]();
  }
}
