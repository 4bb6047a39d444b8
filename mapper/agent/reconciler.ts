/**
 * Makes the kernel's maps say what should be so, pod by pod. Every fact (a cgroup
 * appeared, a label changed, an address became known) leads to the same step for
 * the pod that it concerns, and only differences are written.
 */
import type { Logger } from 'pino';
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import { CgrouteError, messageOf } from '../../native/error.ts';
import { infoFlag, type CgroupInfo } from '../../native/layout/layouts.ts';
import type { Cgroup } from '../../watcher/cgroup-tree.ts';
import { ownerOf, type PodCgroup } from '../decisions/cgroup-path.ts';
import type { Config } from '../config/config.ts';
import type { Written } from '../connections/connection-reset.ts';
import { DecisionLog } from '../reports/decision-log.ts';
import type { Enrolment } from '../inventory/enrolment.ts';
import type { PodView } from '../cli/explain.ts';
import type { HandoffPlaces } from '../placement/handoff-places.ts';
import type { Inventory } from '../inventory/inventory.ts';
import { MapMirror } from '../maps/map-mirror.ts';
import type { FormerConnections } from '../reports/connection-metrics.ts';
import type { CgroupFigures } from '../reports/pod-metrics.ts';
import { isMirror, podKeys, type Pod } from '../objects/pod.ts';
import {
  cgroupEntry,
  hasOptions,
  isInboundRedirected,
  isRedirected,
  monitorEntry,
  podAddresses,
  podEntry,
  rememberedEntry,
  unknownEntry,
  type PodFacts,
} from '../maps/pod-entry.ts';
import { addressText, isNobodys } from '../objects/address.ts';
import { PodAddressMap } from '../maps/pod-address-map.ts';
import { PodCounters } from '../maps/pod-counters.ts';
import { PodOptions } from '../maps/pod-options.ts';
import { PodQueue } from '../pacing/pod-queue.ts';
import { PodSlots } from '../maps/pod-slots.ts';
import type { PodTrees } from '../placement/pod-trees.ts';
import type { SidecarRules } from '../sidecars/sidecar-rules.ts';
import type { Decision } from '../decisions/decision.ts';

/** What the reconciler asks of the host. */
export interface HostView {
  cgroupIdAt(path: string): bigint | undefined;
  /** True for an address of the host itself. */
  isOwnAddress(ip: string): boolean;
  /** Addresses of the network namespace of any process below these cgroups; undefined when that tells nothing. */
  addressesIn(paths: readonly string[]): readonly string[] | undefined;
}

/** For metrics; totals are since the agent's start. */
interface ReconcilerFigures extends CgroupFigures, FormerConnections {
  /** Pods whose entries could not be written. */
  readonly failedPods: number;
  /** By errno. */
  readonly errors: ReadonlyMap<string, number>;
}

export interface ReconcilerOptions {
  readonly dataPlane: DataPlane;
  readonly inventory: Inventory;
  readonly enrolment: Enrolment;
  readonly sidecars: Pick<SidecarRules, 'place' | 'want' | 'forget' | 'words'>;
  readonly config: Config;
  readonly host: HostView;
  readonly trees: PodTrees;
  readonly handoffs: HandoffPlaces;
  readonly logger: Logger;
  /** The outermost cgroup of a pod that is a proxy of the node; said more than once. */
  readonly onProxyCgroup: (podKey: string, cgroup: Cgroup) => void;
  /** A pod's entries are what they should be. */
  readonly onReconciled: () => void;
  readonly onWritten: ((written: Written) => void) | undefined;
  /** An object's change has reached the maps, so long after it was told. */
  readonly onMapped: (seconds: number) => void;
}

type KnownCgroup = Cgroup & { readonly owner: PodCgroup; readonly seenAt: number };

interface PodState {
  readonly cgroups: Map<bigint, KnownCgroup>;
  /** The pod as it was last seen: one that the API has forgotten keeps what it had until its cgroups go. */
  pod: Pod | undefined;
  decision: Decision | undefined;
  /** Found in the network namespace, for want of any in the pod's status. */
  foundIps: readonly string[];
}

/** The pod's own cgroup, or a container's that is pod and container in one. */
const isOutermost = ({ path, owner }: KnownCgroup): boolean => path.split('/').length - 1 === owner.podDepth;

export class Reconciler {
  readonly #options: ReconcilerOptions;
  readonly #pods = new Map<string, PodState>();
  /** The pod of each cgroup, and the keys of each pod of the API. */
  readonly #keyOfCgroup = new Map<bigint, string>();
  readonly #keysOfUid = new Map<string, readonly string[]>();
  readonly #queue: PodQueue;
  readonly #slots: PodSlots;
  readonly #counters: PodCounters;
  readonly #cgroups;
  readonly #podInfos;
  readonly #podOptions: PodOptions;
  readonly #addresses: PodAddressMap;
  readonly #log: DecisionLog;
  /** Pods whose entries could not be written, to be tried again. */
  readonly #failedKeys = new Set<string>();
  /** Cgroups below the kubelet's root of which nobody can say whose they are, and when they were seen. */
  readonly #ambiguous = new Map<bigint, number>();
  #hasTakenOver = false;
  readonly #errnos = new Map<string, number>();
  /** When a change of a pod was told that has not reached the maps, in milliseconds. */
  readonly #changedAt = new Map<string, number>();
  #errors = 0;

  constructor(options: ReconcilerOptions) {
    this.#options = options;
    const { maps } = options.dataPlane;
    this.#queue = new PodQueue(
      (key) => this.#reconcile(key),
      (key, error) => this.#failed(key, error),
    );
    this.#slots = new PodSlots(maps.counters.info.maxEntries);
    this.#cgroups = new MapMirror(maps.cgroups, String);
    this.#podInfos = new MapMirror(maps.pods, ({ text }) => text);
    this.#podOptions = new PodOptions(maps);
    this.#addresses = new PodAddressMap(maps.podAddresses, () => options.handoffs.hostRedirected());
    this.#log = new DecisionLog(options.logger);
    this.#counters = new PodCounters(maps.counters);
    for (const { key, value } of this.#podInfos.entries()) {
      this.#slots.restore(key.text, value.slot);
      this.#counters.restore(value.slot);
    }
  }

  /** A cgroup exists. */
  cgroupAppeared(cgroup: Cgroup): void {
    const owner = ownerOf(cgroup.path);
    this.#options.trees.appeared(cgroup, owner.kind !== 'none', (path) =>
      this.#options.host.cgroupIdAt(path),
    );
    if (owner.kind === 'ambiguous') this.#markUnknown(cgroup, owner.why);
    // What is nobody's, or only nested in a container, the kernel may have taken for more.
    if (owner.kind === 'none' || (owner.kind === 'pod' && owner.nested))
      return this.#attempt('', () => this.#cgroups.drop(cgroup.id));
    if (owner.kind !== 'pod') return;
    this.#state(owner.uid).cgroups.set(cgroup.id, { ...cgroup, owner, seenAt: performance.now() });
    this.#keyOfCgroup.set(cgroup.id, owner.uid);
    this.#queueAll(owner.uid);
  }

  cgroupGone(cgroup: Cgroup): void {
    this.#options.trees.gone(cgroup);
    this.#ambiguous.delete(cgroup.id);
    this.#attempt('', () => this.#cgroups.delete(cgroup.id));
    const key = this.#keyOfCgroup.get(cgroup.id);
    if (key === undefined) return;
    this.#keyOfCgroup.delete(cgroup.id);
    this.#pods.get(key)?.cgroups.delete(cgroup.id);
    this.#queueAll(key);
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

  /** The annotations can be written by anybody: a pod whose own UID names a cgroup is no static pod. */
  #homeOf(pod: Pod): string {
    const { uid, configHash } = pod;
    const has = (key: string): boolean => (this.#pods.get(key)?.cgroups.size ?? 0) > 0;
    return configHash !== undefined && !has(uid) && (has(configHash) || isMirror(pod)) ? configHash : uid;
  }

  /** Whether a process in this cgroup could still tell its pod's address. */
  wantsAddress(cgroupId: bigint): boolean {
    const key = this.#keyOfCgroup.get(cgroupId);
    const state = key === undefined ? undefined : this.#pods.get(key);
    return (
      state?.pod !== undefined &&
      !state.pod.hostNetwork &&
      state.foundIps.length === 0 &&
      this.#toldIps(state.pod).length === 0
    );
  }

  processSeen(cgroupId: bigint): void {
    const key = this.#keyOfCgroup.get(cgroupId);
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

  idle(): Promise<void> {
    return this.#queue.idle();
  }

  /**
   * Once all that runs and all that is known has gone through: entries of cgroups
   * and pods that exist no more, left by an earlier agent, are removed.
   */
  removeLeftovers(): number {
    this.#hasTakenOver = true;
    let removed = 0;
    for (const { key } of this.#cgroups.entries()) {
      if (!this.#keyOfCgroup.has(key) && !this.#ambiguous.has(key))
        removed += Number(this.#cgroups.delete(key));
    }
    for (const { key } of this.#podInfos.entries()) {
      if (!this.#pods.has(key.text)) {
        removed += Number(this.#podInfos.delete(key));
        this.#slots.release(key.text);
      }
    }
    const taken = this.#slots.taken();
    for (const slot of this.#podOptions.slots()) if (!taken.has(slot)) this.#podOptions.clear(slot);
    return removed + this.#addresses.removeLeftovers();
  }

  /** Undoes what others did to the maps: one step for each, which returns the number of entries. */
  repairs(): (() => number)[] {
    const isGone = (id: bigint): boolean => {
      const path = this.#pods.get(this.#keyOfCgroup.get(id) ?? '')?.cgroups.get(id)?.path;
      return path !== undefined && this.#options.host.cgroupIdAt(path) !== id;
    };
    return [
      () => this.#cgroups.repair({ isGone }),
      () => this.#podInfos.repair(),
      () => this.#addresses.repair(),
      () => this.#podOptions.repair(),
    ];
  }

  /** Tries again what failed, a full map for instance. */
  retryFailed(): void {
    for (const key of this.#failedKeys) this.#queue.add(key);
  }

  stop(): void {
    this.#queue.clear();
  }

  /** Whether connections from host processes go through the proxy. */
  get isHostRedirected(): boolean {
    return this.#addresses.size > 0;
  }

  get counts(): {
    readonly pods: number;
    readonly cgroups: number;
    readonly queued: number;
    readonly errors: number;
  } {
    return {
      pods: this.#pods.size,
      cgroups: this.#keyOfCgroup.size,
      queued: this.#queue.size,
      errors: this.#errors,
    };
  }

  get figures(): ReconcilerFigures {
    const unknown = [...this.#pods.values()].flatMap(({ pod, cgroups }) =>
      pod === undefined ? [...cgroups.values()].map(({ seenAt }) => seenAt) : [],
    );
    return {
      tracked: this.#keyOfCgroup.size + this.#ambiguous.size,
      unresolvedSince: [...this.#ambiguous.values(), ...unknown],
      failedPods: this.#failedKeys.size,
      errors: this.#errnos,
      retired: this.#counters.retired,
      highestSlot: this.#counters.highestSlot,
    };
  }

  /** Those too that the API has forgotten, as long as they run. */
  podsNamed(name: string, namespace?: string): PodView[] {
    return [...this.#pods].flatMap(([key, { pod, decision, cgroups }]) =>
      pod?.name !== name || decision === undefined || (namespace ?? pod.namespace) !== pod.namespace
        ? []
        : [
            {
              key,
              pod,
              decision,
              cgroups: [...cgroups.values()],
              failed: this.#failedKeys.has(key),
              sidecar: this.#options.sidecars.words(pod.uid),
            },
          ],
    );
  }

  #state(key: string): PodState {
    const known = this.#pods.get(key);
    if (known !== undefined) return known;
    const state: PodState = { cgroups: new Map(), pod: undefined, decision: undefined, foundIps: [] };
    this.#pods.set(key, state);
    return state;
  }

  #reconcile(key: string): void {
    const claimant = this.#podOf(key);
    const current = claimant !== undefined && this.#homeOf(claimant) === key ? claimant : undefined;
    const state = this.#state(key);
    if (current === undefined && state.cgroups.size === 0) {
      // Before all cgroups have been seen, what the maps remember may yet be some pod's.
      if (this.#hasTakenOver || this.#podInfos.get({ text: key }) === undefined) this.#forget(key);
      else this.#pods.delete(key);
      // What it claimed as a pod of an earlier agent's, whose cgroups have gone since, nobody would let go of later.
      this.#addresses.release(key);
      return;
    }
    state.pod = current ?? state.pod;
    // What fails from here on is noted again.
    this.#failedKeys.delete(key);
    if (state.pod === undefined) {
      this.#changedAt.delete(key);
      this.#reconcileUnknown(key, state);
      return;
    }
    this.#options.sidecars.place(
      state.pod,
      [...state.cgroups.values()]
        .filter(({ owner }) => !owner.monitor && !owner.nested)
        .map(({ path }) => path),
    );
    if (current !== undefined || state.decision === undefined) {
      const before = state.decision;
      state.decision = this.#options.enrolment.decide(state.pod);
      this.#log.decided(state.pod, before, state.decision);
    }
    const writes = this.#podInfos.writes + this.#cgroups.writes;
    this.#write(key, state, state.pod, state.decision);
    const changedAt = this.#changedAt.get(key);
    this.#changedAt.delete(key);
    if (
      changedAt !== undefined &&
      state.cgroups.size > 0 &&
      this.#podInfos.writes + this.#cgroups.writes > writes
    )
      this.#options.onMapped((performance.now() - changedAt) / 1000);
    this.#options.onReconciled();
  }

  /** A pod's cgroups without a pod: what an earlier agent knew of it stands, else it is marked. */
  #reconcileUnknown(key: string, state: PodState): void {
    const remembered = this.#podInfos.get({ text: key });
    for (const cgroup of state.cgroups.values()) {
      const { id, owner } = cgroup;
      if (owner.monitor) this.#setEntry(cgroup, monitorEntry(id, remembered?.slot ?? 0));
      else
        this.#setEntry(cgroup, remembered === undefined ? unknownEntry(id) : rememberedEntry(id, remembered));
    }
    if (remembered === undefined) return;
    const ips = [remembered.ip4, remembered.ip6].map(addressText).filter((ip) => ip !== undefined);
    // When it was made is forgotten, so any pod that is known has the better claim.
    this.#addresses.claim(key, ips, {
      slot: remembered.slot,
      createdAt: -1,
      redirected: isInboundRedirected(remembered),
      hasOptions: (remembered.flags & infoFlag.options) !== 0,
    });
  }

  #setEntry(cgroup: Cgroup, entry: CgroupInfo): void {
    const { handoffs } = this.#options;
    if (isRedirected(entry)) handoffs.podRedirected(cgroup);
    this.#cgroups.set(cgroup.id, entry);
    if (!isRedirected(entry)) handoffs.podReleased(cgroup.id);
  }

  #write(key: string, state: PodState, pod: Pod, decision: Decision): void {
    const { slot, isNew } = this.#slots.of(key);
    if (isNew) this.#counters.start(slot);
    const ips = pod.hostNetwork ? [] : this.#addressesOf(state, pod);
    const facts: PodFacts = { slot, decision, addresses: podAddresses(ips) };
    const unfit = this.#podOptions.setAsFits(
      slot,
      decision.traffic,
      decision.enrolled && decision.sidecar ? this.#options.config.sidecarUser : undefined,
    );
    const entry = podEntry(pod, facts, this.#options.enrolment.codeOf(pod));
    const isAwaited = isRedirected(entry) && state.cgroups.size === 0;
    if (isAwaited) this.#options.handoffs.podAwaited(key);
    const before = this.#podInfos.get({ text: key });
    this.#podInfos.set({ text: key }, entry);
    this.#options.onWritten?.({
      pod,
      decision,
      before,
      entry,
      paths: () => [...state.cgroups.values()].filter(({ owner }) => !owner.monitor).map(({ path }) => path),
    });
    for (const cgroup of state.cgroups.values()) {
      const { id, owner } = cgroup;
      this.#setEntry(cgroup, owner.monitor ? monitorEntry(id, slot) : cgroupEntry(id, facts));
      if (decision.proxy && isOutermost(cgroup)) this.#options.onProxyCgroup(key, cgroup);
    }
    this.#options.sidecars.want(pod, decision, ips);
    if (!isAwaited) this.#options.handoffs.podArrived(key);
    const ended = pod.phase === 'Succeeded' || pod.phase === 'Failed';
    // What a pod shows in its own network namespace never takes an address from one whose status says so.
    const since = this.#toldIps(pod).length > 0 ? pod.createdAt : -1;
    const redirected = decision.enrolled && !decision.bypassInbound;
    this.#addresses.claim(key, ended ? [] : ips, {
      slot,
      createdAt: since,
      redirected,
      hasOptions: hasOptions(decision),
    });
    if (unfit !== undefined) this.#failed(key, unfit);
  }

  /** Those of the pod's status that can be a pod's. */
  #toldIps(pod: Pod): readonly string[] {
    return pod.ips.filter((ip) => !isNobodys(ip) && !this.#options.host.isOwnAddress(ip));
  }

  /** The addresses that count for a pod; the host's own for one in the host's network. */
  addressesOf(pod: Pod): readonly string[] {
    if (pod.hostNetwork) return pod.ips;
    const state = this.#pods.get(this.#homeOf(pod));
    return state === undefined ? this.#toldIps(pod) : this.#addressesOf(state, pod);
  }

  #addressesOf(state: PodState, pod: Pod): readonly string[] {
    const told = this.#toldIps(pod);
    if (told.length > 0) return told;
    if (state.foundIps.length === 0) {
      const paths = [...state.cgroups.values()].filter(({ owner }) => !owner.monitor).map(({ path }) => path);
      state.foundIps = this.#options.host.addressesIn(paths) ?? [];
    }
    return state.foundIps;
  }

  #forget(key: string): void {
    const uid = this.#pods.get(key)?.pod?.uid;
    if (uid !== undefined && this.#options.inventory.pod(uid) === undefined) {
      this.#log.forget(uid);
      this.#options.sidecars.forget(uid);
    }
    this.#addresses.release(key);
    this.#podInfos.delete({ text: key });
    this.#options.handoffs.podArrived(key);
    const slot = this.#slots.release(key);
    if (slot !== undefined) this.#podOptions.clear(slot);
    this.#pods.delete(key);
    this.#changedAt.delete(key);
    this.#failedKeys.delete(key);
    this.#options.onReconciled();
  }

  /** Nobody's verdict may be applied where the path does not say whose it is. */
  #markUnknown(cgroup: Cgroup, why: string): void {
    this.#ambiguous.set(cgroup.id, performance.now());
    this.#attempt('', () => this.#cgroups.set(cgroup.id, unknownEntry(cgroup.id)));
    this.#options.logger.warn(
      { cgroupId: String(cgroup.id), path: cgroup.path },
      `a cgroup's path does not say whose it is: ${why}`,
    );
  }

  #attempt(key: string, work: () => unknown): void {
    try {
      work();
    } catch (error) {
      this.#failed(key, error);
    }
  }

  #failed(key: string, error: unknown): void {
    this.#errors++;
    const errno = (error instanceof CgrouteError ? error.errno : undefined) ?? 'other';
    this.#errnos.set(errno, (this.#errnos.get(errno) ?? 0) + 1);
    if (key !== '') this.#failedKeys.add(key);
    this.#options.logger.error(
      { err: error, podUid: key },
      `the maps could not be brought up to date: ${messageOf(error)}`,
    );
  }
}
