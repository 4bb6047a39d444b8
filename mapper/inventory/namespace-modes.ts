/**
 * Which mode a namespace's label named when a pod was made, for `enrollment:
 * new-pods`. The pods and the namespaces are watched apart, so a pod may be told
 * of before the label that is older, or after one that is younger.
 *
 * Nothing in the API says it outright. Times are whole seconds, so where they are
 * further apart than that they decide. Within it the resource versions do: they are
 * revisions of one etcd, which Kubernetes promises within a kind only; in a cluster
 * that keeps pods and namespaces in different ones they mislead for a second at most.
 * A pod's version is that of its first sight, when it was bound to this node, and not
 * of its making: of a pod that waited for that within the second, nothing can tell.
 */
import type { Config } from '../config/config.ts';
import type { Pod } from '../objects/pod.ts';
import type { Namespace } from '../objects/namespace.ts';
import { namespaceMode } from '../decisions/pod-case.ts';

/** A pod at its first sight. */
export interface FirstSight extends Pick<Pod, 'createdAt'> {
  readonly version: bigint | undefined;
  /** Milliseconds of `performance.now()`. */
  readonly seenAt: number;
}

export interface ModeChange {
  /** Undefined where no label names a mesh mode any more. */
  readonly mode: string | undefined;
  /** As {@link Namespace.modeSetAt}. */
  readonly setAt: number | undefined;
  readonly version: bigint | undefined;
  /** Milliseconds of `performance.now()`. */
  readonly seenAt: number;
}

/** Two times of this difference may be of the same moment: each is cut to a second, and of another API server's clock. */
const SAME_TIME_MS = 1000;
/** One of the two watches may be so far behind the other; a removed label has no time, and only this bounds its versions. */
const LAG_MS = 10_000;
/** A pod may have waited for its node, or to be told of, through so many. */
export const MOST_CHANGES = 100;

/** Whether the pod was made after the change, as far as that can be told. */
export function isYounger({ createdAt, version, seenAt }: FirstSight, change: ModeChange): boolean {
  if (change.setAt !== undefined && createdAt > 0 && Math.abs(createdAt - change.setAt) > SAME_TIME_MS)
    return createdAt > change.setAt;
  const isFarApart = change.setAt === undefined && Math.abs(seenAt - change.seenAt) > LAG_MS;
  if (version === undefined || change.version === undefined || isFarApart) return seenAt >= change.seenAt;
  return version > change.version;
}

interface History {
  /** Before all changes that are remembered. */
  first: string | undefined;
  readonly changes: ModeChange[];
}

export class NamespaceModes {
  readonly #config: Config;
  readonly #histories = new Map<string, History>();

  constructor(config: Config) {
    this.#config = config;
  }

  /** Gives the change, if its mode is another than before. What it has when it is first seen counts as what it always had. */
  seen(namespace: Namespace, seenAt = performance.now()): ModeChange | undefined {
    const mode = namespaceMode(namespace, this.#config);
    const history = this.#histories.get(namespace.name);
    if (history === undefined) {
      this.#histories.set(namespace.name, { first: mode, changes: [] });
      return undefined;
    }
    if (latest(history) === mode) return undefined;
    const change = { mode, setAt: namespace.modeSetAt, version: namespace.version, seenAt };
    history.changes.push(change);
    if (history.changes.length > MOST_CHANGES) history.first = history.changes.shift()?.mode;
    return change;
  }

  gone(name: string): void {
    this.#histories.delete(name);
  }

  get names(): Iterable<string> {
    return this.#histories.keys();
  }

  /** What a pod of this namespace had when it was made. */
  at(name: string, pod: FirstSight): string | undefined {
    const history = this.#histories.get(name);
    const change = history?.changes.findLast((each) => isYounger(pod, each));
    return change === undefined ? history?.first : change.mode;
  }
}

function latest({ first, changes }: History): string | undefined {
  const last = changes.at(-1);
  return last === undefined ? first : last.mode;
}
