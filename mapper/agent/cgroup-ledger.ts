/** Which cgroups there are and whose: of a pod by its key, of nobody, or of one that the path does not tell. */
import type { Cgroup } from '../../watcher/cgroup-tree.ts';
import { ownerOf, type PodCgroup } from '../decisions/cgroup-path.ts';
import { isPods, type OwnedCgroup } from '../inventory/owned-cgroup.ts';
import { isMirror, type Pod } from '../objects/pod.ts';

export type PodsCgroup = OwnedCgroup<PodCgroup>;

interface Known {
  readonly owned: PodsCgroup;
  readonly seenAt: number;
}

export class CgroupLedger {
  /** All that exist, parsed once, but what is nested in a container: a pod makes as many of these as it likes. */
  readonly #all = new Map<bigint, OwnedCgroup>();
  /** Those that a pod's verdict is for, by the pod's key: none that is only nested in a container. */
  readonly #pods = new Map<string, Map<bigint, Known>>();
  /** Those of which nobody can say whose they are, and when they were seen. */
  readonly #ambiguous = new Map<bigint, number>();
  #tracked = 0;

  /** A cgroup exists; with whose it is. */
  appeared(cgroup: Cgroup): OwnedCgroup {
    const owned: OwnedCgroup = { cgroup, owner: ownerOf(cgroup.path) };
    if (this.#all.has(cgroup.id)) this.gone(cgroup);
    if (isPods(owned) && owned.owner.nested) return owned;
    this.#all.set(cgroup.id, owned);
    if (owned.owner.kind === 'ambiguous') this.#ambiguous.set(cgroup.id, performance.now());
    if (!isPods(owned)) return owned;
    const known = this.#pods.get(owned.owner.uid) ?? new Map<bigint, Known>();
    known.set(cgroup.id, { owned, seenAt: performance.now() });
    this.#pods.set(owned.owner.uid, known);
    this.#tracked++;
    return owned;
  }

  /** It exists no more; with whose it was. */
  gone(cgroup: Cgroup): OwnedCgroup {
    const owned = this.#all.get(cgroup.id) ?? { cgroup, owner: ownerOf(cgroup.path) };
    this.#all.delete(cgroup.id);
    this.#ambiguous.delete(cgroup.id);
    const known = isPods(owned) ? this.#pods.get(owned.owner.uid) : undefined;
    if (known?.delete(cgroup.id) === true) this.#tracked--;
    if (isPods(owned) && known?.size === 0) this.#pods.delete(owned.owner.uid);
    return owned;
  }

  /** The key of the pod whose verdict the cgroup has. */
  keyOf(id: bigint): string | undefined {
    const owned = this.#all.get(id);
    return owned !== undefined && isPods(owned) && !owned.owner.nested ? owned.owner.uid : undefined;
  }

  /** Whether it is a pod's, or may be. */
  isTracked(id: bigint): boolean {
    return this.keyOf(id) !== undefined || this.#ambiguous.has(id);
  }

  /** Where it was when it was seen. */
  pathOf(id: bigint): string | undefined {
    return this.#all.get(id)?.cgroup.path;
  }

  of(podKey: string): readonly PodsCgroup[] {
    return [...(this.#pods.get(podKey)?.values() ?? [])].map(({ owned }) => owned);
  }

  has(podKey: string): boolean {
    return this.#pods.has(podKey);
  }

  /** Of those whose processes are in the pod: a monitor watches from outside. */
  pathsOf(podKey: string): string[] {
    return this.of(podKey)
      .filter(({ owner }) => !owner.monitor)
      .map(({ cgroup }) => cgroup.path);
  }

  /**
   * Which of its keys counts for a pod that says to be a static one. The annotations
   * can be written by anybody: a pod whose own UID names a cgroup is no static pod.
   */
  homeOf(pod: Pod): string {
    const { uid, configHash } = pod;
    return configHash !== undefined && !this.has(uid) && (this.has(configHash) || isMirror(pod))
      ? configHash
      : uid;
  }

  /** Those of no pod. */
  hosts(): Cgroup[] {
    return [...this.#all.values()].filter(({ owner }) => owner.kind === 'none').map(({ cgroup }) => cgroup);
  }

  /** Those of pods. */
  get size(): number {
    return this.#tracked;
  }

  /** Those of pods, and those that may be. */
  get trackedSize(): number {
    return this.#tracked + this.#ambiguous.size;
  }

  /** When each was seen whose pod nobody knows, of `performance.now()`. */
  unresolvedSince(isKnown: (podKey: string) => boolean): number[] {
    return [
      ...this.#ambiguous.values(),
      ...[...this.#pods].flatMap(([key, known]) =>
        isKnown(key) ? [] : [...known.values()].map(({ seenAt }) => seenAt),
      ),
    ];
  }
}
