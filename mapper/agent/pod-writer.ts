/**
 * A decision about a pod into the kernel's maps, with what must stand before an
 * entry and what follows it. Only differences are written.
 */
import { isIP } from 'node:net';
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import { infoFlag, type CgroupInfo } from '../../native/layout/layouts.ts';
import type { Cgroup } from '../../watcher/cgroup-tree.ts';
import type { Config } from '../config/config.ts';
import type { Written } from '../connections/connection-reset.ts';
import type { Decision } from '../decisions/decision.ts';
import type { Enrolment } from '../inventory/enrolment.ts';
import { isOutermost } from '../inventory/owned-cgroup.ts';
import type { PodNetwork } from '../inventory/pod-networks.ts';
import { MapMirror } from '../maps/map-mirror.ts';
import { PodAddressMap } from '../maps/pod-address-map.ts';
import { PodCounters } from '../maps/pod-counters.ts';
import {
  cgroupEntry,
  firstOfEach,
  hasOptions,
  isInboundRedirected,
  isRedirected,
  monitorEntry,
  ownEntry,
  podAddresses,
  podEntry,
  rememberedEntry,
  unknownEntry,
  type PodFacts,
} from '../maps/pod-entry.ts';
import { PodLocals } from '../maps/pod-locals.ts';
import { PodOptions } from '../maps/pod-options.ts';
import { PodSlots } from '../maps/pod-slots.ts';
import { addressText } from '../objects/address.ts';
import type { Pod } from '../objects/pod.ts';
import type { HandoffPlaces } from '../placement/handoff-places.ts';
import type { NodeProxy } from '../placement/node-proxy.ts';
import type { SidecarRules } from '../sidecars/sidecar-rules.ts';
import type { PodsCgroup } from './cgroup-ledger.ts';

export interface PodWriterOptions {
  readonly dataPlane: Pick<DataPlane, 'maps'>;
  readonly config: Pick<Config, 'sidecarUser'>;
  readonly enrolment: Pick<Enrolment, 'codeOf'>;
  /** Of the pod that the agent runs in. */
  readonly ownKey: string | undefined;
  /** Stands before an entry redirects. */
  readonly handoffs: Pick<
    HandoffPlaces,
    'podRedirected' | 'podReleased' | 'podAwaited' | 'podArrived' | 'hostRedirected' | 'hostPodFound'
  >;
  readonly proxy: Pick<NodeProxy, 'cgroupFound'>;
  readonly sidecars: Pick<SidecarRules, 'want'>;
  /** The pod's entry is written; its cgroups' follow. */
  readonly onWritten: (written: Written) => void;
}

/** A pod as it is to be written. */
export interface PodToWrite {
  readonly key: string;
  readonly pod: Pod;
  readonly decision: Decision;
  readonly cgroups: readonly PodsCgroup[];
  /** Its own; none for one in the host's network. */
  readonly ips: readonly string[];
  readonly network: PodNetwork;
  /** Whether its status says them. */
  readonly isTold: boolean;
  /** Paths of its cgroups as they are when asked. */
  readonly paths: () => readonly string[];
}

export class PodWriter {
  readonly #options: PodWriterOptions;
  readonly #slots: PodSlots;
  readonly #counters: PodCounters;
  readonly #cgroups;
  readonly #podInfos;
  readonly #podOptions: PodOptions;
  readonly #locals: PodLocals;
  readonly #addresses: PodAddressMap;

  /** @throws CgrouteError `EBPF` when the maps cannot be read */
  constructor(options: PodWriterOptions) {
    this.#options = options;
    const { maps } = options.dataPlane;
    this.#slots = new PodSlots(maps.counters.info.maxEntries);
    this.#cgroups = new MapMirror(maps.cgroups, String);
    this.#podInfos = new MapMirror(maps.pods, ({ text }) => text);
    this.#podOptions = new PodOptions(maps);
    this.#locals = new PodLocals(maps);
    this.#addresses = new PodAddressMap(maps.podAddresses, () => options.handoffs.hostRedirected());
    this.#counters = new PodCounters(maps.counters);
    for (const { key, value } of this.#podInfos.entries()) {
      this.#slots.restore(key.text, value.slot);
      this.#counters.restore(value.slot);
    }
  }

  /**
   * All entries of the pod. What is thrown leaves those that were not reached as they
   * were.
   * @returns what of its traffic options or addresses found no room
   * @throws CgrouteError `EBPF`
   */
  write({ key, pod, decision, cgroups, ips, network, isTold, paths }: PodToWrite): unknown {
    const { handoffs, enrolment, config, proxy, sidecars, onWritten } = this.#options;
    const { slot, isNew } = this.#slots.of(key);
    if (isNew) this.#counters.start(slot);
    const addresses = podAddresses(ips);
    const locals = decision.enrolled ? otherAddresses(network, ips) : [];
    const { hasAny: hasLocals, unfit: unfitLocals } = this.#locals.set(slot, locals, network.devices);
    const facts: PodFacts = { slot, decision, addresses, netns: network.netns, hasLocals };
    const unfit = this.#podOptions.setAsFits(
      slot,
      decision.traffic,
      decision.enrolled && decision.sidecar ? config.sidecarUser : undefined,
    );
    const entry = podEntry(pod, facts, enrolment.codeOf(pod));
    const isAwaited = isRedirected(entry) && cgroups.length === 0;
    if (isAwaited) handoffs.podAwaited(key);
    const before = this.#podInfos.get({ text: key });
    this.#podInfos.set({ text: key }, entry);
    onWritten({ pod, decision, before, entry, paths });
    // Before what may find no room: who reaches the pod is another matter.
    this.#addresses.claim(key, decision.reason === 'terminal' ? [] : firstOfEach(ips), {
      slot,
      // What a pod shows in its own network namespace never takes an address from one whose status says so.
      createdAt: isTold ? pod.createdAt : -1,
      redirected: decision.enrolled && !decision.bypassInbound,
      hasOptions: hasOptions(decision),
    });
    for (const each of cgroups) {
      const { cgroup, owner } = each;
      this.#setEntry(cgroup, owner.monitor ? monitorEntry(cgroup.id, slot) : cgroupEntry(cgroup.id, facts));
      if (pod.hostNetwork && !owner.monitor) handoffs.hostPodFound(cgroup);
      if (decision.proxy && isOutermost(each)) proxy.cgroupFound(key, cgroup);
    }
    sidecars.want(pod, decision, ips);
    if (!isAwaited) handoffs.podArrived(key);
    return unfit ?? unfitLocals;
  }

  /**
   * A pod's cgroups without a pod: what an earlier agent knew of it stands, else they are
   * marked. The agent's own are not, as it has to ask who its pod is.
   * @param netns of the network that its processes show now, 0: not known
   * @throws CgrouteError `EBPF`
   */
  writeUnknown(key: string, cgroups: readonly PodsCgroup[], netns = 0n): void {
    const remembered = this.#podInfos.get({ text: key });
    const strange = key === this.#options.ownKey ? ownEntry : unknownEntry;
    for (const { cgroup, owner } of cgroups) {
      const { id } = cgroup;
      if (owner.monitor) this.#setEntry(cgroup, monitorEntry(id, remembered?.slot ?? 0));
      else
        this.#setEntry(
          cgroup,
          remembered === undefined ? strange(id) : rememberedEntry(id, remembered, netns),
        );
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

  /** Nobody's verdict may be applied where the path does not say whose it is. @throws CgrouteError `EBPF` */
  markUnknown({ id }: Cgroup): void {
    this.#cgroups.set(id, unknownEntry(id));
  }

  /** It is nobody's, or only nested in a container: the kernel may have taken it for more. @throws CgrouteError `EBPF` */
  dropCgroup({ id }: Cgroup): void {
    this.#cgroups.drop(id);
  }

  /** It exists no more. @throws CgrouteError `EBPF` */
  removeCgroup({ id }: Cgroup): void {
    this.#cgroups.delete(id);
  }

  /** Inode of the network that the pod's entry has, be it an earlier agent's; 0: not known. */
  netnsOf(key: string): bigint {
    return this.#podInfos.get({ text: key })?.netns ?? 0n;
  }

  /** Whether there is an entry of the pod, be it an earlier agent's. */
  remembers(key: string): boolean {
    return this.#podInfos.get({ text: key }) !== undefined;
  }

  /** The pod is gone. @throws CgrouteError `EBPF` */
  forget(key: string): void {
    this.#addresses.release(key);
    this.#podInfos.delete({ text: key });
    this.#options.handoffs.podArrived(key);
    const slot = this.#slots.release(key);
    if (slot === undefined) return;
    this.#podOptions.clear(slot);
    this.#locals.clear(slot);
  }

  /** What the pod claims is free for others. @throws CgrouteError `EBPF` */
  releaseAddresses(key: string): void {
    this.#addresses.release(key);
  }

  /** Removes what an earlier agent left of cgroups and pods that exist no more. Returns the number of entries. */
  removeLeftovers(isCgroup: (id: bigint) => boolean, isPod: (key: string) => boolean): number {
    let removed = 0;
    for (const { key } of this.#cgroups.entries()) {
      if (!isCgroup(key)) removed += Number(this.#cgroups.delete(key));
    }
    for (const { key } of this.#podInfos.entries()) {
      if (!isPod(key.text)) {
        removed += Number(this.#podInfos.delete(key));
        this.#slots.release(key.text);
      }
    }
    const taken = this.#slots.taken();
    for (const lists of [this.#podOptions, this.#locals])
      for (const slot of lists.slots()) if (!taken.has(slot)) lists.clear(slot);
    return removed + this.#addresses.removeLeftovers();
  }

  /** Undoes what others did to the maps: one step for each, which returns the number of entries. */
  repairs(isGone: (cgroupId: bigint) => boolean): (() => number)[] {
    return [
      () => this.#cgroups.repair({ isGone }),
      () => this.#podInfos.repair(),
      () => this.#addresses.repair(),
      () => this.#podOptions.repair(),
      () => this.#locals.repair(),
    ];
  }

  /** So many entries of pods and cgroups have been written so far. */
  get writes(): number {
    return this.#podInfos.writes + this.#cgroups.writes;
  }

  /** Whether connections from host processes go through the proxy. */
  get isHostRedirected(): boolean {
    return this.#addresses.size > 0;
  }

  /** Connections by branch of pods that are no more, and the highest slot that any pod has had. */
  get counted(): { readonly retired: readonly number[]; readonly highestSlot: number } {
    return { retired: this.#counters.retired, highestSlot: this.#counters.highestSlot };
  }
}

/** Those that the pod's entries do not have: one of each family. */
function otherAddresses({ addresses }: PodNetwork, ips: readonly string[]): PodNetwork['addresses'] {
  const own = [4, 6].map((family) => ips.find((ip) => isIP(ip) === family));
  return addresses.filter(({ ip }) => !own.includes(ip));
}
