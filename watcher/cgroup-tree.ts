/**
 * The truth about the cgroups at and below the watched root, by inode number.
 *
 * Witnesses give hints; this looks at the file system. All changes of the tree
 * happen in synchronous steps, so a sweep that goes on in slices, a rescan and a
 * look-up for a process event may run into each other without harm.
 */
import { type BigIntStats, type Dir, opendirSync, statSync } from 'node:fs';
import type { Logger } from 'pino';

/** A slice of work that may keep the event loop, and how often the clock is read. */
const SLICE_MS = 4;
const STEPS_PER_LOOK = 16;

/** What listing a directory says that was removed. */
const GONE: ReadonlySet<string | undefined> = new Set(['ENOENT', 'ENODEV', 'ENOTDIR']);

export interface Cgroup {
  /** The directory's inode number, which is the kernel's cgroup id. */
  readonly id: bigint;
  /** Relative to the watched root, with a leading slash; `/` is the root itself. */
  readonly path: string;
  readonly parent: bigint | undefined;
}

export interface CgroupTreeOptions {
  /** The watched root, a directory of a cgroup2 file system. */
  readonly cgroupRoot: string;
  readonly logger: Logger;
  /** A cgroup exists; its parent was reported before it. What it throws is logged. */
  readonly onAppeared: (cgroup: Cgroup) => void;
  /** A cgroup exists no more; its children were reported before it. What it throws is logged. */
  readonly onGone: (cgroup: Cgroup) => void;
  /** What is new in a cgroup could not be seen, for want of file descriptors for instance; said for each. @default nobody is told */
  readonly onUnlisted?: (path: string, error: unknown) => void;
}

export interface CgroupTree {
  /** Every known cgroup. */
  readonly cgroups: ReadonlyMap<bigint, Cgroup>;
  /** The known cgroup at this path. */
  at(path: string): Cgroup | undefined;
  /**
   * The cgroup at this path as it is on disk now; it and its ancestors are taken
   * into the tree if they weren't there. Synchronous, one stat for each level.
   */
  ensure(path: string): Cgroup | undefined;
  /**
   * Looks at the place that a hint names: at what is there and everything below
   * it, or, if it is gone, at its nearest ancestor that exists.
   */
  rescan(path: string): Promise<void>;
  /** Looks at everything, in slices of a few milliseconds. */
  sweep(): Promise<void>;
  /** How many cgroups a sweep met before any hint did, the first sweep not counted. */
  foundBySweep(): number;
}

interface Node extends Cgroup {
  readonly name: string;
  readonly up: Node | undefined;
  readonly children: Map<string, Node>;
  dead: boolean;
}

export function openCgroupTree(options: CgroupTreeOptions): CgroupTree {
  const { cgroupRoot, logger } = options;
  const cgroups = new Map<bigint, Node>();
  let root: Node | undefined;
  let sweeps = 0;
  let found = 0;
  /** A step of a sweep is being made, after the first. */
  let counting = false;

  const diskPath = (path: string): string => (path === '/' ? cgroupRoot : cgroupRoot + path);

  function tell(handler: (cgroup: Cgroup) => void, { id, path, parent }: Node): void {
    try {
      handler({ id, path, parent });
    } catch (err) {
      logger.error(
        { err, cgroupId: String(id), path },
        'a handler of cgroup events failed; the others go on',
      );
    }
  }

  /** 'unknown' when the file system would not say: then nothing is concluded. */
  function look(path: string): BigIntStats | 'unknown' | undefined {
    try {
      const stat = statSync(diskPath(path), { bigint: true, throwIfNoEntry: false });
      return stat?.isDirectory() ? stat : undefined;
    } catch (err) {
      const code = (err as NodeJS.ErrnoException).code;
      if (code === 'ENODEV' || code === 'ENAMETOOLONG') return undefined; // removed while we looked; never existed
      logger.warn({ err, path }, 'a cgroup could not be looked at; what was known of it stays');
      return 'unknown';
    }
  }

  function adopt(up: Node | undefined, name: string, id: bigint): Node {
    const before = cgroups.get(id);
    if (before) drop(before);
    const path = up === undefined ? '/' : up.path === '/' ? `/${name}` : `${up.path}/${name}`;
    const node: Node = { id, path, parent: up?.id, name, up, children: new Map(), dead: false };
    cgroups.set(id, node);
    if (counting) found++;
    if (up) up.children.set(name, node);
    else root = node;
    tell(options.onAppeared, node);
    return node;
  }

  function drop(node: Node): void {
    if (node.dead) return;
    for (const child of [...node.children.values()]) drop(child);
    node.dead = true;
    cgroups.delete(node.id);
    if (node.up?.children.get(node.name) === node) node.up.children.delete(node.name);
    if (root === node) root = undefined;
    tell(options.onGone, node);
  }

  /** The child `name` of `up` (the root without `up`) as it is on disk now, with what stat said. */
  function refresh(up: Node | undefined, name: string): { node: Node; nlink: number } | undefined {
    const known = up === undefined ? root : up.children.get(name);
    const stat = look(up === undefined ? '/' : up.path === '/' ? `/${name}` : `${up.path}/${name}`);
    if (stat === 'unknown') return known && { node: known, nlink: known.children.size + 2 };
    if (known && known.id !== stat?.ino) drop(known);
    if (stat === undefined || up?.dead) return undefined;
    const node = known?.dead === false ? known : adopt(up, name, stat.ino);
    return node.dead ? undefined : { node, nlink: Number(stat.nlink) };
  }

  /** Yields each directory that a listing names and the tree doesn't know. */
  function* unknownChildren(node: Node): Generator<string | undefined> {
    let directory: Dir | undefined;
    try {
      directory = opendirSync(diskPath(node.path), { bufferSize: 64 });
      for (let entry = directory.readSync(); entry !== null; entry = directory.readSync()) {
        yield entry.isDirectory() && !node.children.has(entry.name) ? entry.name : undefined;
      }
    } catch (error) {
      // Removed meanwhile: the next look at its parent sees that.
      if (!GONE.has((error as NodeJS.ErrnoException).code)) options.onUnlisted?.(node.path, error);
    } finally {
      directory?.closeSync();
    }
  }

  /** Looks at one cgroup and at all below it; yields after each small step. */
  function* visit(up: Node | undefined, name: string): Generator<void> {
    const seen = refresh(up, name);
    yield;
    if (!seen) return;
    const visited = new Set<string>();
    yield* visitKnown(seen.node, visited);
    yield* visitUnknown(seen.node, seen.nlink, visited);
  }

  /** Those children that the tree knows, also by a look-up meanwhile, which says nothing of what is below them. */
  function* visitKnown(node: Node, visited: Set<string>): Generator<void> {
    for (const child of [...node.children.keys()]) {
      if (visited.has(child)) continue;
      visited.add(child);
      yield* visit(node, child);
    }
  }

  /**
   * Looks at those children of `node` that were not visited.
   *
   * A cgroup directory has two links and one more for each subdirectory, so a
   * directory whose children are all known needs no listing.
   */
  function* visitUnknown(node: Node, links: number, visited: Set<string>): Generator<void> {
    // Unequal may be old news, as something was found in between: the count of now decides.
    const isWhole = (count: number | undefined): boolean => node.children.size + 2 === count;
    if (!node.dead && !isWhole(links) && !isWhole(refresh(node.up, node.name)?.nlink)) {
      for (const child of unknownChildren(node)) {
        if (child !== undefined) visited.add(child);
        if (child !== undefined) yield* visit(node, child);
        yield;
        if (node.dead) return;
      }
    }
    while (!node.dead && [...node.children.keys()].some((child) => !visited.has(child)))
      yield* visitKnown(node, visited);
  }

  /** As {@link visit}, for a place whose name came from a hint. */
  function* visitPath(path: string): Generator<void> {
    const names = path.split('/').filter((name) => name !== '');
    if (names.includes('..') || names.includes('.')) return;
    let up: Node | undefined;
    let links = 0;
    for (const [depth, name] of ['', ...names].entries()) {
      // The first that the tree doesn't know is new with everything below it.
      const known = up === undefined ? root : up.children.get(name);
      if (depth === names.length || known === undefined) return yield* visitNew(up, name, links);
      const seen = refresh(up, name);
      if (seen?.node !== known) return yield* visitNew(up, name, links);
      up = known;
      links = seen.nlink;
    }
  }

  /** Looks at `name` in `up`, and where that doesn't exist, at what else may be new in `up`. */
  function* visitNew(up: Node | undefined, name: string, links: number): Generator<void> {
    const before = new Set(up?.children.keys());
    yield* visit(up, name);
    if (up && !up.children.has(name)) yield* visitUnknown(up, links, before);
  }

  async function inSlices(work: Generator<void>): Promise<void> {
    let until = performance.now() + SLICE_MS;
    for (let step = 0; !work.next().done; step++) {
      if (step % STEPS_PER_LOOK !== 0 || performance.now() < until) continue;
      await new Promise((resolve) => setImmediate(resolve));
      until = performance.now() + SLICE_MS;
    }
  }

  function* counted(work: Generator<void>, after: boolean): Generator<void> {
    for (let done = false; !done; ) {
      counting = after;
      done = work.next().done === true;
      counting = false;
      yield;
    }
  }

  function at(path: string): Node | undefined {
    let node = root;
    for (const name of path.split('/')) {
      if (name !== '') node = node?.children.get(name);
    }
    return node;
  }

  function ensure(path: string): Cgroup | undefined {
    const names = path.split('/').filter((name) => name !== '');
    if (names.includes('..') || names.includes('.')) return undefined;
    let node = refresh(undefined, '')?.node;
    for (const name of names) {
      if (node === undefined) return undefined;
      node = refresh(node, name)?.node;
    }
    return node;
  }

  const sweep = (): Promise<void> => inSlices(counted(visit(undefined, ''), sweeps++ > 0));

  return {
    cgroups,
    at,
    ensure,
    rescan: (path) => inSlices(visitPath(path)),
    sweep,
    foundBySweep: () => found,
  };
}
