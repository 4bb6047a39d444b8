/**
 * Makes the kernel's maps say what should be so, pod by pod. Every fact (a cgroup
 * appeared, a label changed, an address became known) leads to the same step for
 * the pod that it concerns, and only differences are written.
 */
import type { Logger } from 'pino';
import type { PodView } from '../cli/explain.ts';
import { ownerOf } from '../decisions/cgroup-path.ts';
import type { Decision } from '../decisions/decision.ts';
import type { Enrolment } from '../inventory/enrolment.ts';
import type { Inventory } from '../inventory/inventory.ts';
import type { OwnedCgroup } from '../inventory/owned-cgroup.ts';
import type { PodAddressBook } from '../inventory/pod-addresses.ts';
import type { PodNetworks } from '../inventory/pod-networks.ts';
import { rankOf } from '../maps/pod-rank.ts';
import { hasEnded, podKeys, type Pod } from '../objects/pod.ts';
import { PodQueue } from '../pacing/pod-queue.ts';
import { DecisionLog } from '../reports/decision-log.ts';
import type { FormerConnections } from '../reports/connection-metrics.ts';
import type { CgroupFigures } from '../reports/pod-metrics.ts';
import type { SidecarRules } from '../sidecars/sidecar-rules.ts';
import type { CgroupLedger } from './cgroup-ledger.ts';
import { PodRoom } from './pod-room.ts';
import type { PodWriter } from './pod-writer.ts';
import { WriteFailures } from './write-failures.ts';

export interface ReconcilerOptions {
  readonly writer: PodWriter;
  readonly ledger: CgroupLedger;
  readonly addresses: PodAddressBook;
  readonly networks: PodNetworks;
  readonly inventory: Inventory;
  readonly enrolment: Enrolment;
  readonly sidecars: Pick<SidecarRules, 'place' | 'forget' | 'words'>;
  readonly logger: Logger;
  readonly cgroupIdAt: (path: string) => bigint | undefined;
  /** A pod's entries are what they should be. */
  readonly onReconciled: () => void;
  /** An object's change has reached the maps, so long after it was told. */
  readonly onMapped: (seconds: number) => void;
  /** A pod has lost its entries to one that needs the room more. */
  readonly onDisplaced: (uid: string) => void;
}

/** For metrics; totals are since the agent's start. */
interface ReconcilerFigures extends CgroupFigures, FormerConnections {
  /** Pods whose entries could not be written. */
  readonly failedPods: number;
  /** By errno. */
  readonly errors: ReadonlyMap<string, number>;
}

interface PodState {
  /** The pod as it was last seen: one that the API has forgotten keeps what it had until its cgroups go. */
  pod: Pod | undefined;
  decision: Decision | undefined;
}

export class Reconciler {
  readonly #options: ReconcilerOptions;
  readonly #pods = new Map<string, PodState>();
  /** The keys of each pod of the API. */
  readonly #keysOfUid = new Map<string, readonly string[]>();
  readonly #queue: PodQueue;
  readonly #room: PodRoom;
  readonly #log: DecisionLog;
  readonly #failures: WriteFailures;
  /** All pods and cgroups that there are have gone through. */
  hasTakenOver = false;
  /** When a change of a pod was told that has not reached the maps, in milliseconds. */
  readonly #changedAt = new Map<string, number>();

  constructor(options: ReconcilerOptions) {
    this.#options = options;
    this.#failures = new WriteFailures(options.logger);
    this.#queue = new PodQueue(
      (key) => this.#reconcile(key),
      (key, error) => this.#failures.failed(key, error),
      (key) => this.#rankOf(key),
    );
    this.#room = new PodRoom({
      writer: options.writer,
      ledger: options.ledger,
      pods: () => this.#pods,
      decisionOf: (key) => this.#pods.get(key)?.decision,
      onDisplaced: (key) => this.#displaced(key),
    });
    this.#log = new DecisionLog(options.logger);
  }

  cgroupAppeared({ cgroup, owner }: OwnedCgroup): void {
    const { writer } = this.#options;
    if (owner.kind === 'ambiguous') this.#markUnknown(cgroup, owner.why);
    else if (owner.kind === 'none' || owner.nested) this.#failures.attempt(() => writer.dropCgroup(cgroup));
    else this.#queueAll(owner.uid);
  }

  cgroupGone({ cgroup, owner }: OwnedCgroup): void {
    this.#failures.attempt(() => this.#options.writer.removeCgroup(cgroup));
    if (owner.kind === 'pod' && !owner.nested) this.#queueAll(owner.uid);
  }

  /** The pod has two keys where it says to be a static one; which of them counts depends on its cgroups. */
  #queueAll(key: string): void {
    this.#queue.add(key);
    const pod = this.#podOf(key);
    if (pod !== undefined) for (const other of podKeys(pod)) this.#queue.add(other);
  }

  /** The key is what a cgroup's name says, so the join is the same with a cgroup or without. */
  #podOf(key: string): Pod | undefined {
    return this.#options.inventory.podForCgroup(ownerOf(`/kubepods/pod${key}`));
  }

  /** Whether a process in this cgroup could still tell its pod's network, or address. */
  wantsProcess(cgroupId: bigint): boolean {
    const { addresses, networks } = this.#options;
    const key = this.#options.ledger.keyOf(cgroupId);
    const { pod, decision } = this.#pods.get(key ?? '') ?? {};
    if (key === undefined || pod === undefined) return false;
    return (decision?.enrolled === true && networks.isWanting(key, pod)) || addresses.isWanting(key, pod);
  }

  processSeen(cgroupId: bigint): void {
    const key = this.#options.ledger.keyOf(cgroupId);
    if (key !== undefined) this.#queue.add(key);
  }

  /** Pods of the inventory came, went or changed, or their namespaces did. */
  objectsChanged(uids: Iterable<string>): void {
    for (const uid of uids) {
      const pod = this.#options.inventory.pod(uid);
      const keys = pod === undefined ? [] : podKeys(pod);
      for (const key of new Set([uid, ...(this.#keysOfUid.get(uid) ?? []), ...keys])) {
        if (!this.#changedAt.has(key)) this.#changedAt.set(key, performance.now());
        this.#queue.add(key);
      }
      if (pod === undefined) this.#keysOfUid.delete(uid);
      else this.#keysOfUid.set(uid, keys);
      this.#options.enrolment.changed(uid, pod);
    }
  }

  /** All cgroups have been seen, and what objects there are as far as anybody says: nothing is written before. */
  begin(): void {
    this.#queue.begin();
  }

  idle(): Promise<void> {
    return this.#queue.idle();
  }

  /**
   * Once all that runs and all that is known has gone through: entries of cgroups
   * and pods that exist no more, left by an earlier agent, are removed.
   */
  removeLeftovers(): number {
    const { writer, ledger } = this.#options;
    this.hasTakenOver = true;
    const removed = writer.removeLeftovers(
      (id) => ledger.isTracked(id),
      (key) => this.#pods.has(key) || ledger.has(key),
    );
    if (removed > 0) this.retryFailed();
    return removed;
  }

  /** Undoes what others did to the maps: one step for each, which returns the number of entries. */
  repairs(): readonly (() => number)[] {
    const { writer, ledger, cgroupIdAt } = this.#options;
    return writer.repairs((id) => {
      const path = ledger.pathOf(id);
      return path !== undefined && cgroupIdAt(path) !== id;
    });
  }

  /** What is known of the host about a pod has changed. */
  lookAgain(key: string): void {
    this.#queue.add(key);
  }

  /** Tries again what failed, a full map for instance. */
  retryFailed(): void {
    for (const key of this.#failures.pods) this.#queue.add(key);
  }

  stop(): void {
    this.#queue.clear();
  }

  /** Whether connections from host processes go through the proxy. */
  get isHostRedirected(): boolean {
    return this.#options.writer.isHostRedirected;
  }

  get counts(): Readonly<Record<'pods' | 'cgroups' | 'queued' | 'errors', number>> {
    return {
      pods: this.#pods.size,
      cgroups: this.#options.ledger.size,
      queued: this.#queue.size,
      errors: this.#failures.total,
    };
  }

  get figures(): ReconcilerFigures {
    const { ledger, writer } = this.#options;
    return {
      tracked: ledger.trackedSize,
      unresolvedSince: ledger.unresolvedSince((key) => this.#pods.get(key)?.pod !== undefined),
      failedPods: this.#failures.pods.size,
      errors: this.#failures.byErrno,
      ...writer.counted,
    };
  }

  /** Those too that the API has forgotten, as long as they run. */
  podsNamed(name: string, namespace?: string): PodView[] {
    const { ledger, sidecars } = this.#options;
    return [...this.#pods].flatMap(([key, { pod, decision }]) =>
      pod?.name !== name || decision === undefined || (namespace ?? pod.namespace) !== pod.namespace
        ? []
        : [
            {
              key,
              pod,
              decision,
              cgroups: ledger.of(key).map(({ cgroup }) => cgroup),
              failed: this.#failures.pods.has(key),
              sidecar: sidecars.words(pod.uid),
            },
          ],
    );
  }

  #reconcile(key: string): void {
    const { writer, ledger, addresses, networks, sidecars, enrolment } = this.#options;
    const claimant = this.#podOf(key);
    const current = claimant !== undefined && ledger.homeOf(claimant) === key ? claimant : undefined;
    if (current !== undefined && !ledger.has(key) && enrolment.isOver(current))
      return this.#end(key, current);
    if (current === undefined && !ledger.has(key)) {
      // Before all cgroups have been seen, what the maps remember may yet be some pod's.
      if (this.hasTakenOver || !writer.remembers(key)) this.#forget(key);
      else this.#pods.delete(key);
      addresses.forget(key);
      networks.forget(key);
      // What it claimed as a pod of an earlier agent's, whose cgroups have gone since, nobody would let go of later.
      writer.releaseAddresses(key);
      return;
    }
    const state = this.#pods.get(key) ?? { pod: undefined, decision: undefined };
    this.#pods.set(key, state);
    state.pod = current ?? state.pod;
    this.#failures.retried(key);
    if (state.pod === undefined) {
      this.#changedAt.delete(key);
      return writer.writeUnknown(key, ledger.of(key), networks.of(key).netns);
    }
    sidecars.place(state.pod, ledger.pathsOf(key));
    if (current !== undefined || state.decision === undefined) {
      const before = state.decision;
      state.decision = enrolment.decide(state.pod);
      this.#log.decided(state.pod, before, state.decision);
    }
    const writes = writer.writes;
    const { pod, decision } = state;
    this.#room.write(key, decision, () => this.#write(key, pod, decision));
    if (!this.#failures.pods.has(key)) this.#failures.over(key);
    const changedAt = this.#changedAt.get(key);
    this.#changedAt.delete(key);
    if (changedAt !== undefined && ledger.has(key) && writer.writes > writes)
      this.#options.onMapped((performance.now() - changedAt) / 1000);
    this.#options.onReconciled();
  }

  /** It is known and takes no room: nothing of it runs, and nothing ever will. */
  #end(key: string, pod: Pod): void {
    const { enrolment, addresses, networks, sidecars } = this.#options;
    const before = this.#pods.get(key)?.decision;
    const decision = enrolment.decide(pod);
    this.#log.decided(pod, before, decision);
    sidecars.forget(pod.uid);
    addresses.forget(key);
    networks.forget(key);
    this.#release(key);
    this.#pods.set(key, { pod, decision });
    this.#options.onReconciled();
  }

  #displaced(key: string): void {
    this.#queue.add(key);
    const uid = this.#pods.get(key)?.pod?.uid;
    if (uid !== undefined) this.#options.onDisplaced(uid);
  }

  #rankOf(key: string): number {
    const { ledger, enrolment } = this.#options;
    const pod = this.#podOf(key);
    return rankOf({
      decision: pod === undefined ? this.#pods.get(key)?.decision : enrolment.decide(pod),
      hasEnded: pod !== undefined && hasEnded(pod),
      hasCgroup: ledger.has(key),
    });
  }

  #write(key: string, pod: Pod, decision: Decision): void {
    const { writer, ledger, addresses, networks } = this.#options;
    const unfit = writer.write({
      key,
      pod,
      decision,
      cgroups: ledger.of(key),
      ips: addresses.ownOf(key, pod),
      network: decision.enrolled ? networks.of(key, pod) : networks.forget(key),
      isTold: addresses.told(pod).length > 0,
      paths: () => ledger.pathsOf(key),
    });
    if (unfit !== undefined) this.#failures.failed(key, unfit);
  }

  #forget(key: string): void {
    const uid = this.#pods.get(key)?.pod?.uid;
    if (uid !== undefined && this.#options.inventory.pod(uid) === undefined) {
      this.#log.forget(uid);
      this.#options.sidecars.forget(uid);
    }
    this.#release(key);
    this.#pods.delete(key);
    this.#options.onReconciled();
  }

  /** What it had in the maps is others'. */
  #release(key: string): void {
    const { writer } = this.#options;
    const hadRoom = writer.remembers(key);
    writer.forget(key);
    this.#room.released(key);
    this.#changedAt.delete(key);
    this.#failures.over(key);
    if (hadRoom) this.retryFailed();
  }

  #markUnknown(cgroup: OwnedCgroup['cgroup'], why: string): void {
    this.#failures.attempt(() => this.#options.writer.markUnknown(cgroup));
    this.#options.logger.warn(
      { cgroupId: String(cgroup.id), path: cgroup.path },
      `a cgroup's path does not say whose it is: ${why}`,
    );
  }
}
