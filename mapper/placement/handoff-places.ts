/**
 * Where sock_ops is attached, which brings original destinations to the proxy: at
 * the pods that are redirected and, while there are such, at the branches of host
 * processes and at the pods in the host's network. The kernel calls it nine times in a connection's life, so pods that
 * are out and the proxy itself are spared it.
 */
import type { Logger } from 'pino';
import type { CgroupPlace } from '../../native/bpf/cgroup-link.ts';
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import { branch, handoff } from '../../native/layout/layouts.ts';
import type { Cgroup } from '../../watcher/cgroup-tree.ts';
import { isPodTree } from '../decisions/cgroup-path.ts';
import type { OwnedCgroup } from '../inventory/owned-cgroup.ts';
import { MapMirror } from '../maps/map-mirror.ts';

/** A connect() may go on for so long after its pod has left the mesh: six retries of the SYN, and a bit. */
const GRACE_MS = 150_000;
/** More than these are not attached one by one; the map has room for 128. */
const MAX_BRANCHES = 64;
const HOST_SLOT = 0;

export interface HandoffOptions {
  readonly dataPlane: DataPlane;
  readonly root: CgroupPlace;
  readonly logger: Logger;
  /** Whether processes live in the watched root itself, which belong to no branch. */
  readonly hasRootProcesses: () => boolean;
  /** For tests: a clock in milliseconds. */
  readonly now?: () => number;
}

export class HandoffPlaces {
  readonly #options: HandoffOptions;
  /** Outermost cgroups of pods that are redirected. */
  readonly #pods = new Map<bigint, CgroupPlace>();
  /** Cgroups right below the root that hold no pods only. */
  readonly #branches = new Map<bigint, CgroupPlace>();
  /** Outermost cgroups of pods in the host's network, whose processes are the host's to other pods. */
  readonly #hostPods = new Map<bigint, CgroupPlace>();
  /** Pods that the kernel is going to redirect as soon as their cgroups are made. */
  readonly #awaited = new Set<string>();
  readonly #attached = new Map<bigint, CgroupPlace>();
  /** Those that are needed no more, and since when, in milliseconds. */
  readonly #released = new Map<bigint, number>();
  readonly #told;
  readonly #now: () => number;
  #isHostNeeded = false;
  #isRootNeeded = false;
  #undelivered: bigint;
  /** All that runs has been seen: until then, what an earlier agent had told stands. */
  #isSettled = false;

  constructor(options: HandoffOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    this.#told = new MapMirror(options.dataPlane.maps.handoffs, String);
    this.#undelivered = this.#readUndelivered();
  }

  /** To be called before the entries of its pod, if it is one's, are written. */
  cgroupAppeared({ cgroup: { id, path }, owner }: OwnedCgroup): void {
    if (path === '/' || path.indexOf('/', 1) > 0 || isPodTree(path) || owner.kind !== 'none') return;
    this.#branches.set(id, this.#placeOf(id, path));
    if (this.#isHostNeeded) this.#follow();
  }

  cgroupGone({ cgroup: { id } }: OwnedCgroup): void {
    this.#pods.delete(id);
    this.#branches.delete(id);
    this.#hostPods.delete(id);
    this.#released.delete(id);
    this.#told.delete(id);
    if (this.#attached.delete(id)) this.#options.dataPlane.detachHandoff(id);
  }

  /** Connections from this cgroup of a pod are going to be redirected. @throws CgrouteError `EBPF` */
  podRedirected({ id, path, parent }: Cgroup): void {
    if (this.#pods.has(id) || (parent !== undefined && this.#pods.has(parent))) return;
    const place = this.#placeOf(id, path);
    if (!this.#isCovered(place)) this.#attach(place);
    this.#pods.set(id, place);
  }

  /** A cgroup of a pod in the host's network is about to have its entry. @throws CgrouteError `EBPF` */
  hostPodFound({ id, path, parent }: Cgroup): void {
    if (this.#hostPods.has(id) || (parent !== undefined && this.#hostPods.has(parent))) return;
    this.#hostPods.set(id, this.#placeOf(id, path));
    if (this.#isHostNeeded) this.#follow();
  }

  /** They are so no more. */
  podReleased(id: bigint): void {
    this.#pods.delete(id);
  }

  /**
   * A pod that is to be redirected has no cgroup yet, and the kernel will know it
   * before the agent does: until it has one, the root serves all.
   * @throws CgrouteError `EBPF`
   */
  podAwaited(key: string): void {
    if (this.#awaited.has(key)) return;
    const { root } = this.#options;
    this.#attach(root);
    this.#awaited.add(key);
    if (this.#told.get(root.id) === undefined) this.#told.set(root.id, handoff.pods);
  }

  /** It has one by now, or will not be redirected. */
  podArrived(key: string): void {
    this.#awaited.delete(key);
  }

  /** Connections from host processes to pods are going to be redirected. @throws CgrouteError `EBPF` */
  hostRedirected(): void {
    if (this.#isHostNeeded) return;
    this.#isRootNeeded ||= this.#options.hasRootProcesses();
    this.#isHostNeeded = true;
    try {
      this.#follow();
    } catch (error) {
      this.#isHostNeeded = false;
      throw error;
    }
  }

  /** When all that ran at the start has been seen, and from time to time: looks at what nobody tells, and drops what has been of no use for long. @param isHostRedirected whether a pod's address is in the map */
  look(isHostRedirected: boolean): void {
    this.#isSettled = true;
    const undelivered = this.#readUndelivered();
    const isAsked = undelivered > this.#undelivered;
    this.#undelivered = undelivered;
    if (isAsked)
      this.#options.logger.warn(
        'host processes of a cgroup that was not known dialled pods of the mesh and were denied: from now on their connections get to the proxy',
      );
    this.#isRootNeeded ||= isAsked || this.#options.hasRootProcesses();
    this.#isHostNeeded = isHostRedirected;
    this.#follow();
    this.#dropReleased(this.#now() - GRACE_MS);
  }

  /** Undoes what others did to the map. Returns the number of entries. */
  repair(): number {
    return this.#told.repair();
  }

  /** While no agent looks, what appears below the root is to be covered, too. */
  leave(): void {
    this.#isRootNeeded = true;
    this.#follow();
  }

  #placeOf(id: bigint, path: string): CgroupPlace {
    const { root } = this.#options;
    return { path: `${root.path}${path}`, id };
  }

  /** The kernel counts these for no pod: nothing else is denied so for a host process. */
  #readUndelivered(): bigint {
    return this.#options.dataPlane.maps.counters.get(HOST_SLOT)?.count[branch.errorDenied] ?? 0n;
  }

  #hostPlaces(): readonly CgroupPlace[] {
    const isRoot = this.#isRootNeeded || this.#branches.size + this.#hostPods.size > MAX_BRANCHES;
    if (isRoot && (this.#isHostNeeded || this.#pods.size > 0 || this.#awaited.size > 0))
      return [this.#options.root];
    return this.#isHostNeeded ? [...this.#branches.values(), ...this.#hostPods.values()] : [];
  }

  /** Whether a place of host processes holds it. */
  #isCovered({ path }: CgroupPlace): boolean {
    return this.#hostPlaces().some(
      (place) => path.startsWith(`${place.path}/`) && this.#attached.has(place.id),
    );
  }

  #wanted(): Map<bigint, CgroupPlace> {
    const pods = [...this.#pods.values()].filter((place) => !this.#isCovered(place));
    const all = this.#awaited.size > 0 ? [this.#options.root] : [];
    return new Map([...all, ...this.#hostPlaces(), ...pods].map((place) => [place.id, place]));
  }

  /** First what is new, then what is old: no connection falls between. */
  #follow(): void {
    for (const place of this.#hostPlaces()) {
      this.#attach(place);
      this.#told.set(place.id, handoff.all);
    }
    const wanted = this.#wanted();
    for (const place of wanted.values()) this.#attach(place);
    if (!this.#isSettled) return;
    // Where only pods were awaited at the root, each has a place of its own by now.
    const { root } = this.#options;
    const since = this.#told.get(root.id) === handoff.all ? this.#now() : -Infinity;
    const told = new Set(this.#hostPlaces().map(({ id }) => id));
    if (this.#awaited.size > 0 && !told.has(root.id)) this.#told.set(root.id, handoff.pods);
    if (this.#awaited.size > 0) told.add(root.id);
    for (const { key } of this.#told.entries()) if (!told.has(key)) this.#told.delete(key);
    for (const id of this.#attached.keys()) {
      if (!wanted.has(id) && !this.#released.has(id))
        this.#released.set(id, id === this.#options.root.id ? since : this.#now());
    }
  }

  #attach(place: CgroupPlace): void {
    this.#released.delete(place.id);
    if (this.#attached.has(place.id)) return;
    this.#options.dataPlane.attachHandoff(place);
    this.#attached.set(place.id, place);
  }

  #dropReleased(before: number): void {
    for (const [id, since] of this.#released) {
      if (since > before) continue;
      this.#released.delete(id);
      this.#attached.delete(id);
      this.#options.dataPlane.detachHandoff(id);
    }
  }
}
