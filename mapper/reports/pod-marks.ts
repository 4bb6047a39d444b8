/**
 * What people see on a pod: the annotation that says its connections are redirected,
 * true to what the kernel's maps hold, and Events when that changes.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import { messageOf } from '../../native/error.ts';
import type { PodCgroup } from '../decisions/cgroup-path.ts';
import { isAnnotated, isOursToWrite } from '../decisions/redirection-annotation.ts';
import type { Config } from '../config/config.ts';
import type { FailureReason } from '../connections/connection-failures.ts';
import type { Enrolment } from '../inventory/enrolment.ts';
import type { Inventory } from '../inventory/inventory.ts';
import type { OwnedCgroup } from '../inventory/owned-cgroup.ts';
import { podKeys, type Pod } from '../objects/pod.ts';
import type { PodAnnotator } from './pod-annotator.ts';
import { NOTE_REASONS, type PodEvents } from './pod-events.ts';

export interface PodMarksOptions {
  readonly inventory: Inventory;
  readonly enrolment: Pick<Enrolment, 'decide'>;
  readonly config: Config;
  readonly maps: Pick<DataPlane['maps'], 'pods' | 'cgroups'>;
  readonly annotator: PodAnnotator | undefined;
  readonly events: PodEvents | undefined;
  /** Resolves when the maps are what they should be. */
  readonly reconciled: () => Promise<void>;
  readonly logger: Logger;
}

interface Mark {
  redirected: boolean;
  notes: ReadonlySet<string>;
}

/** So long the maps wait for the annotation of pods that leave to be taken off. */
const LEAVE_FIRST_MS = 25;
/** A pod that runs for so long should have a cgroup. */
const CGROUP_EXPECTED_MS = 60_000;

/** Compares what should be so with what the maps hold, pod by pod, and says it on the pod. */
export class PodMarks implements Disposable {
  readonly #options: PodMarksOptions;
  readonly #cgroups = new Map<string, Set<bigint>>();
  readonly #marks = new Map<string, Mark>();
  /** To be looked at, and those that should be redirected and are not yet. */
  readonly #dirty = new Set<string>();
  #isStarted = false;
  #isStopped = false;
  #isQueued = false;

  constructor(options: PodMarksOptions) {
    this.#options = options;
  }

  cgroupAppeared({ cgroup: { id }, owner }: OwnedCgroup): void {
    if (owner.kind !== 'pod' || owner.nested || owner.monitor) return;
    const ids = this.#cgroups.get(owner.uid);
    if (ids === undefined) this.#cgroups.set(owner.uid, new Set([id]));
    else ids.add(id);
    this.#touch(owner);
  }

  cgroupGone({ cgroup: { id }, owner }: OwnedCgroup): void {
    if (owner.kind !== 'pod') return;
    const ids = this.#cgroups.get(owner.uid);
    if (ids?.delete(id) === true && ids.size === 0) this.#cgroups.delete(owner.uid);
    this.#touch(owner);
  }

  #touch(owner: PodCgroup): void {
    const pod = this.#options.inventory.podForCgroup(owner);
    if (pod !== undefined) this.#dirty.add(pod.uid);
    this.soon();
  }

  /** The maps hold what an earlier agent or this one knows: from now on pods are told. */
  start(): void {
    for (const { uid } of this.#options.inventory.pods()) this.#dirty.add(uid);
    this.#look(true);
    this.#isStarted = true;
    this.soon();
  }

  /** Looks at what changed, once the maps are through. */
  soon(): void {
    if (!this.#isStarted || this.#isQueued || this.#dirty.size === 0) return;
    this.#isQueued = true;
    void this.#lookLater();
  }

  async #lookLater(): Promise<void> {
    await this.#options.reconciled();
    this.#isQueued = false;
    if (!this.#isStopped) this.#look(false);
  }

  #look(isInitial: boolean): void {
    for (const uid of [...this.#dirty]) {
      this.#dirty.delete(uid);
      try {
        this.#lookAt(uid, isInitial);
      } catch (error) {
        this.#options.logger.warn(
          { err: error, podUid: uid },
          `it could not be told whether a pod is redirected: ${messageOf(error)}`,
        );
      }
    }
  }

  #lookAt(uid: string, isInitial: boolean): void {
    const { inventory, enrolment, annotator, events, config } = this.#options;
    const pod = inventory.pod(uid);
    if (pod === undefined) {
      this.#marks.delete(uid);
      annotator?.forget(uid);
      return;
    }
    const decision = enrolment.decide(pod);
    const missing = decision.enrolled ? this.#missing(pod) : undefined;
    const redirected = decision.enrolled && missing === undefined;
    const mark = this.#marks.get(uid);
    // What an earlier agent said needs no saying again; without annotations nobody knows what it said.
    const isMarked = isAnnotated(pod) && isOursToWrite(pod, false);
    const before = mark?.redirected ?? (isMarked || (isInitial && !config.annotate && redirected));
    annotator?.want(pod, redirected);
    if (redirected && !before)
      events?.report(
        pod,
        'MeshEnrolled',
        `connections of this pod are redirected to the node's proxy (${decision.reason})`,
      );
    if (!decision.enrolled && before && decision.reason !== 'terminal' && !pod.terminating) {
      events?.report(
        pod,
        'MeshRemoved',
        `connections of this pod are no longer redirected (${decision.reason})`,
      );
    }
    if (missing?.why !== undefined)
      events?.report(
        pod,
        'NotRedirected',
        `connections of this pod should be redirected (${decision.reason}) and are not: ${missing.why}`,
      );
    if (!decision.enrolled && this.#isWithoutRoom(pod))
      this.connectionsFail(
        uid,
        'NoRoom',
        `connections of this pod are treated as an unknown pod's (unknownPods: ${config.unknownPods}): the kernel's map of pods, which has room for ${this.#options.maps.pods.info.maxEntries}, is full (maxPods)`,
      );
    for (const { code, message } of decision.notes) {
      const reason = NOTE_REASONS[code];
      if (reason !== undefined && mark?.notes.has(message) !== true) events?.report(pod, reason, message);
    }
    this.#marks.set(uid, { redirected, notes: new Set(decision.notes.map(({ message }) => message)) });
    if (missing !== undefined) this.#dirty.add(uid);
  }

  /** What becomes of a pod's connections for want of a proxy, or of room. */
  connectionsFail(uid: string, reason: FailureReason, message: string): void {
    const pod = this.#options.inventory.pod(uid);
    if (pod !== undefined) this.#options.events?.report(pod, reason, message);
  }

  /** What became of connections before the pod was known. */
  knownLate(pod: Pod, message: string): void {
    this.#options.events?.report(pod, 'KnownLate', message);
  }

  /** Connections that were open before the pod's verdict changed go on as they were. */
  notReset(pod: Pod, message: string): void {
    this.#options.events?.report(pod, 'ConnectionsNotReset', message);
  }

  /** Whether it runs, and has no entry. */
  #isWithoutRoom(pod: Pod): boolean {
    const { maps } = this.#options;
    const keys = podKeys(pod);
    return (
      keys.some((key) => this.#cgroups.has(key)) &&
      !keys.some((key) => maps.pods.get({ text: key }) !== undefined)
    );
  }

  /** Why the maps don't redirect the pod, without a `why` where that is only a matter of time; undefined where they do. */
  #missing(pod: Pod): { readonly why?: string } | undefined {
    const { maps } = this.#options;
    const keys = podKeys(pod);
    const ids = keys.flatMap((key) => [...(this.#cgroups.get(key) ?? [])]);
    const isOld = pod.createdAt > 0 && Date.now() - pod.createdAt > CGROUP_EXPECTED_MS;
    if (ids.length === 0)
      return pod.phase === 'Running' && isOld ? { why: 'no cgroup of it was found on the node' } : {};
    if (!keys.some((key) => maps.pods.get({ text: key })?.isInMesh === 1)) {
      return {
        why: `it is missing in the kernel's map of pods, which has room for ${maps.pods.info.maxEntries}; the agent's log says why`,
      };
    }
    if (ids.some((id) => maps.cgroups.get(id)?.isInMesh === 1)) return undefined;
    return {
      why: `none of its ${ids.length} cgroups is in the kernel's map, which has room for ${maps.cgroups.info.maxEntries}; the agent's log says why`,
    };
  }

  /**
   * These pods changed, and the maps don't follow yet: who leaves loses the
   * annotation first. `follow` is called at once for all others, and for those
   * when that is done or a moment has passed.
   */
  objectsChanged(uids: Iterable<string>, follow: (uids: Iterable<string>) => void): void {
    const { inventory, annotator } = this.#options;
    const now: string[] = [];
    const leaving: string[] = [];
    for (const uid of uids) {
      const pod = inventory.pod(uid);
      this.#dirty.add(uid);
      if (
        !this.#isStarted ||
        pod === undefined ||
        annotator === undefined ||
        this.#marks.get(uid)?.redirected !== true ||
        this.#options.enrolment.decide(pod).enrolled
      ) {
        now.push(uid);
        continue;
      }
      annotator.want(pod, false);
      leaving.push(uid);
    }
    if (now.length > 0) follow(now);
    if (leaving.length > 0 && annotator !== undefined)
      void this.#followAfter(annotator.settled(leaving), leaving, follow);
    this.soon();
  }

  async #followAfter(
    settled: Promise<void>,
    uids: readonly string[],
    follow: (uids: Iterable<string>) => void,
  ): Promise<void> {
    await Promise.race([settled, delay(LEAVE_FIRST_MS)]);
    if (this.#isStopped) return;
    follow(uids);
    for (const uid of uids) this.#dirty.add(uid);
    this.soon();
  }

  /**
   * Nothing more is said, and the annotations go, because redirection is about to end
   * for all. Resolves once that is so, or it has failed once.
   */
  async takeOff(): Promise<void> {
    const { annotator, inventory } = this.#options;
    this.#isStopped = true;
    if (annotator === undefined || !this.#isStarted) return;
    const marked = [...inventory.pods()].filter(({ uid }) => this.#marks.get(uid)?.redirected === true);
    for (const pod of marked) annotator.want(pod, false);
    await annotator.settled(marked.map(({ uid }) => uid));
  }

  [Symbol.dispose](): void {
    this.#isStopped = true;
    this.#options.annotator?.[Symbol.dispose]();
    this.#options.events?.[Symbol.dispose]();
  }
}
