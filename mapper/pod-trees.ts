/**
 * Where on this host pods live: the cgroups under which kubelets keep them, which
 * get programs of their own, and the branches right below the watched root that
 * hold any, which tell host processes from pods' at the cost of one comparison.
 */
import type { CgroupPlace } from '../native/cgroup-link.ts';
import type { DataPlane } from '../native/data-plane.ts';
import type { Cgroup } from '../watcher/cgroup-tree.ts';
import { isPodTree } from './cgroup-path.ts';

const NO_KEY = 0;

export class PodTrees {
  readonly #dataPlane: DataPlane;
  readonly #cgroupRoot: string;
  /** Path of a branch below the root to the ids of those in it that matter. */
  readonly #branches = new Map<string, { id: bigint; users: Set<bigint> }>();
  /** Trees to which no program could be attached. */
  readonly #failed = new Map<bigint, CgroupPlace>();
  /** Trees that wait for the maps to be filled; undefined from then on. */
  #waiting: Map<bigint, CgroupPlace> | undefined = new Map();

  constructor(dataPlane: DataPlane, cgroupRoot: string) {
    this.#dataPlane = dataPlane;
    this.#cgroupRoot = cgroupRoot;
  }

  /** To be called with every cgroup that appears, before its pod's entries are written. */
  appeared(cgroup: Cgroup, isPod: boolean, idAt: (path: string) => bigint | undefined): void {
    const isTree = isPodTree(cgroup.path);
    if (!isTree && !isPod) return;
    const path = branchOf(cgroup.path);
    const id = idAt(path);
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
    const place: CgroupPlace = { path: `${this.#cgroupRoot}${cgroup.path}`, id: cgroup.id };
    if (this.#waiting !== undefined) this.#waiting.set(place.id, place);
    else this.#attach(place);
  }

  #attach(place: CgroupPlace): void {
    this.#failed.set(place.id, place);
    this.#dataPlane.attachPodTree(place);
    this.#failed.delete(place.id);
  }

  /** Tries again what failed. @throws CgrouteError `EBPF` when it fails again */
  retry(): void {
    for (const place of [...this.#failed.values()]) this.#attach(place);
  }

  /** The maps say what they should: attaches to the trees that are there, and from now on to new ones at once. */
  attach(): void {
    const trees = this.#waiting;
    this.#write();
    this.#waiting = undefined;
    for (const place of trees?.values() ?? []) this.#dataPlane.attachPodTree(place);
  }

  gone(cgroup: Cgroup): void {
    this.#waiting?.delete(cgroup.id);
    this.#failed.delete(cgroup.id);
    const path = branchOf(cgroup.path);
    const branch = this.#branches.get(path);
    if (branch?.users.delete(cgroup.id) !== true || branch.users.size > 0) return;
    this.#branches.delete(path);
    this.#write(branch.id);
  }

  /** What the kernel noted itself, and the agent has not heard of yet, stays. */
  #write(gone?: bigint): void {
    const known = new Set([...this.#branches.values()].map((branch) => branch.id));
    const { count = 0, id: noted = [] } = this.#waiting === undefined ? (this.#dataPlane.maps.podTrees.get(NO_KEY) ?? {}) : {};
    const ids = [...known, ...noted.slice(0, count).filter((id) => id !== gone && !known.has(id))];
    // A count beyond what fits tells the programs to search everywhere.
    this.#dataPlane.maps.podTrees.set(NO_KEY, { count: ids.length, id: ids });
  }
}

/** `/a` for `/a/b/c`. */
function branchOf(path: string): string {
  const end = path.indexOf('/', 1);
  return end < 0 ? path : path.slice(0, end);
}
