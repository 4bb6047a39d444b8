/**
 * Where on this host pods live: the cgroups under which kubelets keep them, which
 * get programs of their own, and the branches right below the watched root that
 * hold any, which tell host processes from pods' at the cost of one comparison.
 */
import { isStill, type CgroupPlace } from '../../native/bpf/cgroup-link.ts';
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import { isPodTree } from '../decisions/cgroup-path.ts';
import type { OwnedCgroup } from '../inventory/owned-cgroup.ts';

const NO_KEY = 0;
const NONE: ReadonlySet<bigint> = new Set();

export interface PodTreesOptions {
  readonly dataPlane: {
    readonly maps: Pick<DataPlane['maps'], 'podTrees'>;
    readonly attachPodTree: DataPlane['attachPodTree'];
  };
  readonly cgroupRoot: string;
  readonly cgroupIdAt: (path: string) => bigint | undefined;
}

export class PodTrees {
  readonly #options: PodTreesOptions;
  /** Path of a branch below the root to the ids of those in it that matter. */
  readonly #branches = new Map<string, { id: bigint; users: Set<bigint> }>();
  /** Trees to which no program could be attached. */
  readonly #failed = new Map<bigint, CgroupPlace>();
  /** Trees that wait for the maps to be filled; undefined from then on. */
  #waiting: Map<bigint, CgroupPlace> | undefined = new Map();
  /** Branches that an earlier agent, or the kernel before this one, has listed. */
  readonly #earlier: ReadonlySet<bigint>;

  constructor(options: PodTreesOptions) {
    this.#options = options;
    this.#earlier = new Set(this.#listed().ids);
  }

  #listed(): { readonly ids: bigint[]; readonly isOver: boolean } {
    const { count = 0, id = [] } = this.#options.dataPlane.maps.podTrees.get(NO_KEY) ?? {};
    // A count beyond what fits tells the programs to search everywhere.
    return { ids: [...id.slice(0, count)], isOver: count > id.length };
  }

  /** To be called with every cgroup that appears, before its pod's entries are written. */
  appeared({ cgroup, owner }: OwnedCgroup): void {
    const isTree = isPodTree(cgroup.path);
    if (!isTree && owner.kind === 'none') return;
    const path = branchOf(cgroup.path);
    const id = this.#options.cgroupIdAt(path);
    if (id !== undefined) {
      const branch = this.#branches.get(path);
      if (branch?.id === id) {
        branch.users.add(cgroup.id);
      } else {
        this.#branches.set(path, { id, users: new Set([cgroup.id]) });
        this.#write();
      }
    }
    if (!isTree) return;
    const place: CgroupPlace = { path: `${this.#options.cgroupRoot}${cgroup.path}`, id: cgroup.id };
    if (this.#waiting !== undefined) this.#waiting.set(place.id, place);
    else this.#attach(place);
  }

  #attach(place: CgroupPlace): void {
    this.#failed.set(place.id, place);
    this.#options.dataPlane.attachPodTree(place);
    this.#failed.delete(place.id);
  }

  /** Tries again what failed, each of them. @throws CgrouteError `EBPF` of the last that failed again */
  retry(): void {
    let failure: { readonly error: unknown } | undefined;
    for (const place of [...this.#failed.values()]) {
      try {
        this.#attach(place);
      } catch (error) {
        failure = { error };
      }
    }
    if (failure !== undefined) throw failure.error;
  }

  /** Undoes what others did to the list; what is in it and was not noted here is the kernel's. Returns the number of entries. */
  repair(): number {
    if (this.#waiting !== undefined) return 0;
    const { ids, isOver } = this.#listed();
    if (isOver || [...this.#branches.values()].every((branch) => ids.includes(branch.id))) return 0;
    this.#write();
    return 1;
  }

  /**
   * The maps say what they should: attaches to the trees that are there, and from now on to new ones at once.
   * @throws CgrouteError `EBPF`, but for a tree that has gone away meanwhile
   */
  attach(): void {
    const trees = this.#waiting;
    this.#waiting = undefined;
    this.#write(this.#earlier);
    // Those that are not reached are tried again, where the start goes on without them.
    for (const place of trees?.values() ?? []) this.#failed.set(place.id, place);
    for (const place of trees?.values() ?? []) {
      try {
        this.#attach(place);
      } catch (error) {
        if (isStill(place)) throw error;
        this.#failed.delete(place.id);
      }
    }
  }

  gone({ cgroup }: OwnedCgroup): void {
    this.#waiting?.delete(cgroup.id);
    this.#failed.delete(cgroup.id);
    const path = branchOf(cgroup.path);
    const branch = this.#branches.get(path);
    if (branch?.users.delete(cgroup.id) !== true || branch.users.size > 0) return;
    this.#branches.delete(path);
    this.#write(new Set([branch.id]));
  }

  /**
   * What the kernel noted itself, and the agent has not heard of yet, stays; what an
   * earlier agent listed stays until this one knows all. Each keeps its place, as
   * programs search the list meanwhile.
   */
  #write(gone: ReadonlySet<bigint> = NONE): void {
    const { ids: listed, isOver } = this.#listed();
    const known = new Set([...this.#branches.values()].map((branch) => branch.id));
    const ids = listed.map((id) => (gone.has(id) && !known.has(id) ? 0n : id));
    for (const id of known) {
      if (ids.includes(id)) continue;
      const hole = ids.indexOf(0n);
      ids[hole < 0 ? ids.length : hole] = id;
    }
    while (ids.at(-1) === 0n) ids.pop();
    const searchesAll = isOver && this.#waiting !== undefined;
    this.#options.dataPlane.maps.podTrees.set(NO_KEY, {
      count: searchesAll ? listed.length + 1 : ids.length,
      id: ids,
    });
  }
}

/** `/a` for `/a/b/c`. */
function branchOf(path: string): string {
  const end = path.indexOf('/', 1);
  return end < 0 ? path : path.slice(0, end);
}
