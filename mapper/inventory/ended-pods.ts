/**
 * Pods that have ended by what the API says, and whose processes may run on: an evicted
 * one for its grace period, say. What was decided of such a pod before stands until the
 * last of them has ended; from then on it is over, whatever is put into its cgroups.
 */
import type { Decision, Ending } from '../decisions/decision.ts';
import type { Pod } from '../objects/pod.ts';

/** Of a pod's cgroups: `unseen`, there is none; else whether a process is in them. */
export type Life = 'unseen' | 'running' | 'empty';

export interface EndedPodsOptions {
  readonly lifeOf: (pod: Pod) => Life;
  /** All cgroups that there are have been seen. */
  readonly isComplete: () => boolean;
}

interface Ended {
  readonly pod: Pod;
  last: Decision | undefined;
  isOver: boolean;
}

const OVER: Ending = { isRunning: false, last: undefined };

export class EndedPods {
  readonly #options: EndedPodsOptions;
  readonly #pods = new Map<string, Ended>();
  /** Those of which it was last said that they run. */
  readonly #running = new Set<string>();

  constructor(options: EndedPodsOptions) {
    this.#options = options;
  }

  /** It has just ended by what the API says, and this was decided of it until now. */
  ended(pod: Pod, last: Decision): void {
    this.#pods.set(pod.uid, { pod, last, isOver: false });
  }

  /** It is gone, or has not ended after all. */
  forget(uid: string): void {
    this.#pods.delete(uid);
    this.#running.delete(uid);
  }

  /**
   * How it is by now.
   * @param recall what an earlier agent had decided of it
   * @param decideAnew for one of which nobody remembers anything; it stands from then on
   */
  of(pod: Pod, recall: () => Decision | undefined, decideAnew: () => Decision): Ending {
    const { uid } = pod;
    const known = this.#pods.get(uid) ?? { pod, last: recall(), isOver: false };
    this.#pods.set(uid, known);
    if (known.isOver) return OVER;
    const life = this.#options.lifeOf(pod);
    // Before all cgroups have been seen, it may yet turn out to have some.
    const isRunning =
      life === 'running' || (life === 'unseen' && known.last !== undefined && !this.#options.isComplete());
    if (isRunning) {
      this.#running.add(uid);
      known.last ??= decideAnew();
      return { isRunning, last: known.last };
    }
    if (life === 'empty') {
      known.isOver = true;
      known.last = undefined;
    }
    return OVER;
  }

  /** Those whose last process has ended since they were said to run. */
  look(): readonly string[] {
    const over = [...this.#running].filter((uid) => {
      const pod = this.#pods.get(uid)?.pod;
      return pod === undefined || this.#options.lifeOf(pod) !== 'running';
    });
    for (const uid of over) this.#running.delete(uid);
    return over;
  }
}
