/**
 * What became of connections of pods before anybody knew them: refused, or let past
 * the mesh. A pod that has been one of these is told so once it is known; what goes
 * on is logged once, for as long as it does.
 */
import type { Logger } from 'pino';
import type { PinnedMaps } from '../../native/data-plane/maps.ts';
import { branch, infoFlag } from '../../native/layout/layouts.ts';
import type { Decision } from '../decisions/decision.ts';
import { SHARED_SLOT } from '../maps/pod-slots.ts';
import type { Pod } from '../objects/pod.ts';

export interface UnknownPodsOptions {
  readonly maps: Pick<PinnedMaps, 'cgroups' | 'counters'>;
  readonly logger: Logger;
  /** Says it on the pod. */
  readonly tell: (pod: Pod, message: string) => void;
}

interface Counted {
  readonly refused: bigint;
  readonly passed: bigint;
}

export class UnknownPods {
  readonly #options: UnknownPodsOptions;
  /** At the last look; all that there is are news to the first, as no agent ran. */
  #before: Counted = { refused: 0n, passed: 0n };
  #isSaid = false;

  constructor(options: UnknownPodsOptions) {
    this.#options = options;
  }

  /** A pod has a verdict for the first time; the entries of its cgroups are still as they were before it. */
  known(pod: Pod, decision: Decision, cgroupIds: Iterable<bigint>): void {
    if (pod.hostNetwork || ![...cgroupIds].some((id) => this.#isUnknown(id))) return;
    const { refused, passed } = this.#sinceLook();
    const { tell, logger } = this.#options;
    const say = (message: string): void => {
      logger.warn({ podUid: pod.uid }, `pod ${pod.namespace}/${pod.name}: ${message}`);
      tell(pod, message);
    };
    if (refused > 0n)
      say(
        `nobody knew this pod until now, and ${refused} connections of such pods were refused meanwhile (unknownPods: deny)`,
      );
    if (passed > 0n && decision.enrolled)
      say(
        `nobody knew this pod until now, and ${passed} connections of such pods passed the mesh by meanwhile (unknownPods: allow)`,
      );
  }

  look(): void {
    const { refused } = this.#sinceLook();
    this.#before = this.#counted();
    if (refused > 0n && !this.#isSaid)
      this.#options.logger.warn(
        { connections: Number(refused) },
        'connections of pods that nobody knows are refused (unknownPods: deny): `cgroute status` lists their cgroups',
      );
    this.#isSaid = refused > 0n;
  }

  #isUnknown(id: bigint): boolean {
    const flags = this.#options.maps.cgroups.get(id)?.flags ?? 0;
    return (flags & infoFlag.unknownPod) !== 0;
  }

  #counted(): Counted {
    const counts = this.#options.maps.counters.get(SHARED_SLOT)?.count ?? [];
    return { refused: counts[branch.unknownDenied] ?? 0n, passed: counts[branch.unknownAllowed] ?? 0n };
  }

  #sinceLook(): Counted {
    const { refused, passed } = this.#counted();
    return { refused: refused - this.#before.refused, passed: passed - this.#before.passed };
  }
}
