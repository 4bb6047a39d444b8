/**
 * Decides about pods with the memory that `enrollment: new-pods` takes: a change
 * of a namespace's label concerns only pods that were made after it. What each pod
 * had stands in `pod_info_map`, so it outlives the agent.
 */
import { crc32 } from 'node:zlib';
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import type { Config } from '../config/config.ts';
import type { Inventory } from './inventory.ts';
import { isYounger, NamespaceModes, type FirstSight } from './namespace-modes.ts';
import { hasEnded, podKeys, type Pod } from '../objects/pod.ts';
import type { Namespace } from '../objects/namespace.ts';
import { namespaceMode } from '../decisions/pod-case.ts';
import { trafficOptions } from '../decisions/traffic-options.ts';
import { decide } from '../decisions/verdict.ts';
import { REASONS, VERDICTS, type Decision, type Ending, type Remembered } from '../decisions/decision.ts';
import { infoFlag } from '../../native/layout/layouts.ts';
import type { EndedPods } from './ended-pods.ts';

/** Of `pod_info.namespace_mode`; anything else stands for a mesh mode. */
const NOT_RECORDED = 0;
const NO_MODE = 1;

/** A mode as the map has it. The lists of modes are short, and two of one code unheard of. */
export function modeCode(mode: string | undefined): number {
  if (mode === undefined) return NO_MODE;
  const code = crc32(mode);
  return code > NO_MODE ? code : NO_MODE + 1;
}

/** A mode that is not configured any more counts as absent, as on a label. Undefined when nothing was recorded. */
export function modeOfCode(code: number, meshModes: readonly string[]): Remembered | undefined {
  return code === NOT_RECORDED ? undefined : { mode: meshModes.find((mode) => modeCode(mode) === code) };
}

/** By its labels, as if it had not ended. */
const RUNS_ON: Ending = { isRunning: true, last: undefined };

export interface EnrolmentOptions {
  readonly inventory: Pick<Inventory, 'namespace' | 'pod'>;
  readonly config: Config;
  readonly maps: { readonly pods: Pick<DataPlane['maps']['pods'], 'get'> };
  readonly ended: EndedPods;
  /** Has the last word on pods with a sidecar. */
  readonly adjust?: (pod: Pod, decision: Decision) => Decision;
}

interface Had extends Remembered {
  readonly namespace: string;
  /** Undefined where it was recalled: nothing that is told now makes that any other. */
  readonly sight: FirstSight | undefined;
}

export class Enrolment {
  readonly #options: EnrolmentOptions;
  readonly #holds: boolean;
  /** What each pod had when it was made, by its UID. */
  readonly #had = new Map<string, Had>();
  readonly #modes: NamespaceModes;

  constructor(options: EnrolmentOptions) {
    this.#options = options;
    this.#holds = options.config.enrollment === 'new-pods';
    this.#modes = new NamespaceModes(options.config);
  }

  /** To be called before the inventory has it, and before pods that came with it. */
  namespaceSeen(namespace: Namespace): void {
    if (!this.#holds) return;
    const change = this.#modes.seen(namespace);
    if (change === undefined) return;
    // The pods' watch may be ahead.
    for (const [uid, had] of this.#had) {
      if (had.namespace === namespace.name && had.sight !== undefined && isYounger(had.sight, change))
        this.#had.set(uid, { ...had, mode: change.mode });
    }
  }

  namespaceGone(name: string): void {
    this.#modes.gone(name);
  }

  /** There are no others. */
  namespacesAre(namespaces: readonly Namespace[]): void {
    const names = new Set(namespaces.map(({ name }) => name));
    for (const name of this.#modes.names) if (!names.has(name)) this.#modes.gone(name);
    for (const namespace of namespaces) this.namespaceSeen(namespace);
  }

  decide(pod: Pod): Decision {
    return hasEnded(pod) ? this.#decide(pod, this.#endingOf(pod)) : this.#decide(pod);
  }

  /** It has ended, and nothing of it is left or will be. */
  isOver(pod: Pod): boolean {
    return hasEnded(pod) && !this.#endingOf(pod).isRunning;
  }

  #endingOf(pod: Pod): Ending {
    return this.#options.ended.of(
      pod,
      () => this.#recalledDecision(pod),
      () => this.#decide(pod, RUNS_ON),
    );
  }

  #decide(pod: Pod, ending?: Ending): Decision {
    const { inventory, config, adjust } = this.#options;
    const decision = decide(
      pod,
      inventory.namespace(pod.namespace),
      config,
      this.#holds ? this.#remembered(pod) : undefined,
      ending,
    );
    if (ending?.last !== undefined) return decision;
    return adjust?.(pod, decision) ?? decision;
  }

  /** To be called before the inventory has it, and before its namespace, if that came with it. */
  podSeen(pod: Pod): void {
    const { inventory, ended } = this.#options;
    if (!hasEnded(pod)) return ended.forget(pod.uid);
    const before = inventory.pod(pod.uid);
    if (before !== undefined && !hasEnded(before)) ended.ended(pod, this.#decide(before));
  }

  /** What an earlier agent had decided. It takes a pod for terminal that has no processes; one that has some is decided anew. */
  #recalledDecision(pod: Pod): Decision | undefined {
    const { maps } = this.#options;
    const entry = podKeys(pod)
      .map((text) => maps.pods.get({ text }))
      .find((each) => each !== undefined);
    const verdict = VERDICTS.find((each) => each === entry?.verdict);
    const reason = REASONS.find((each) => each === entry?.reason);
    if (entry === undefined || verdict === undefined || reason === undefined || reason === 'terminal')
      return undefined;
    const anew = this.#decide(pod, RUNS_ON);
    if (anew.verdict === verdict && anew.reason === reason) return anew;
    const enrolled = verdict !== 'out';
    return {
      ...anew,
      verdict,
      reason,
      enrolled,
      bypassOutbound: enrolled ? (entry.flags & infoFlag.bypassOutbound) !== 0 : anew.bypassOutbound,
      bypassInbound: enrolled ? (entry.flags & infoFlag.bypassInbound) !== 0 : anew.bypassInbound,
      proxy: (entry.flags & infoFlag.proxy) !== 0,
      traffic: enrolled ? trafficOptions(pod.annotations).options : undefined,
    };
  }

  /** The pod is there, so from now on its namespace's label may change; or it is gone. */
  changed(uid: string, pod: Pod | undefined): void {
    if (pod === undefined) {
      this.#had.delete(uid);
      this.#options.ended.forget(uid);
    } else if (this.#holds) this.#remembered(pod);
  }

  /** What the pod's entry is to remember; with `live` what its namespace has now, for the day that this is changed. */
  codeOf(pod: Pod): number {
    return modeCode((this.#holds ? this.#remembered(pod) : this.#now(pod)).mode);
  }

  #remembered(pod: Pod): Remembered {
    const known = this.#had.get(pod.uid);
    if (known !== undefined) return known;
    const { namespace, createdAt, version } = pod;
    const recalled = this.#recalled(pod);
    const sight = recalled === undefined ? { createdAt, version, seenAt: performance.now() } : undefined;
    const had = {
      namespace,
      sight,
      mode: sight === undefined ? recalled?.mode : this.#modes.at(namespace, sight),
    };
    this.#had.set(pod.uid, had);
    return had;
  }

  #now({ namespace }: Pod): Remembered {
    const { inventory, config } = this.#options;
    return { mode: namespaceMode(inventory.namespace(namespace), config) };
  }

  /** From an earlier agent, or from before the API forgot the pod for a while. A static pod's UID is its image's in the API, which may be made again. */
  #recalled(pod: Pod): Remembered | undefined {
    const { maps, config } = this.#options;
    for (const text of podKeys(pod)) {
      const entry = maps.pods.get({ text });
      const had = entry === undefined ? undefined : modeOfCode(entry.namespaceMode, config.meshModes);
      if (had !== undefined) return had;
    }
    return undefined;
  }
}
