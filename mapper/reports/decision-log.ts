/** What the agent's log says of pods: each verdict when it changes, and each thing worth knowing once. */
import type { Logger } from 'pino';
import type { Pod } from '../objects/pod.ts';
import type { Decision } from '../decisions/decision.ts';

export class DecisionLog {
  readonly #logger: Logger;
  /** What was said about each pod, by its UID. */
  readonly #said = new Map<string, Set<string>>();

  constructor(logger: Logger) {
    this.#logger = logger;
  }

  decided(pod: Pod, before: Decision | undefined, decision: Decision): void {
    const about = { pod: `${pod.namespace}/${pod.name}`, podUid: pod.uid };
    if (before?.verdict !== decision.verdict || before.reason !== decision.reason) {
      this.#logger.info(
        {
          ...about,
          verdict: decision.verdict,
          reason: decision.reason,
          ...(before && { was: before.verdict }),
        },
        'verdict',
      );
    }
    for (const note of decision.notes) {
      const said = this.#said.get(pod.uid) ?? new Set();
      if (said.has(note.message)) continue;
      this.#said.set(pod.uid, said.add(note.message));
      this.#logger.warn({ ...about, code: note.code }, note.message);
    }
  }

  /** The pod is gone. */
  forget(uid: string): void {
    this.#said.delete(uid);
  }
}
