/**
 * Decides about pods with the memory that `enrollment: new-pods` takes: a change
 * of a namespace's label concerns only pods that are seen for the first time after
 * it. What each pod had stands in `pod_info_map`, so it outlives the agent.
 */
import { crc32 } from 'node:zlib';
import type { DataPlane } from '../native/data-plane.ts';
import type { Config } from './config.ts';
import type { Inventory } from './inventory.ts';
import { podKeys, type Pod } from './objects.ts';
import { decide, namespaceMode, type Decision, type Remembered } from './verdict.ts';

/** Of `pod_info.namespace_mode`; anything else stands for a mesh mode. */
const NOT_RECORDED = 0;
const NO_MODE = 1;

/** A mode as the map has it. The lists of modes are short, and two of one code unheard of. */
export function modeCode(mode: string | undefined): number {
  if (mode === undefined) return NO_MODE;
  const code = crc32(mode);
  return code > NO_MODE ? code : NO_MODE + 1;
}

/** A mode that is not configured any more counts as absent, as on a label. Undefined when nothing was recorded. */
export function modeOfCode(code: number, meshModes: readonly string[]): Remembered | undefined {
  return code === NOT_RECORDED ? undefined : { mode: meshModes.find((mode) => modeCode(mode) === code) };
}

export interface EnrolmentOptions {
  readonly inventory: Pick<Inventory, 'namespace'>;
  readonly config: Config;
  readonly maps: { readonly pods: Pick<DataPlane['maps']['pods'], 'get'> };
  /** Has the last word on pods with a sidecar. */
  readonly adjust?: (pod: Pod, decision: Decision) => Decision;
}

export class Enrolment {
  readonly #options: EnrolmentOptions;
  readonly #holds: boolean;
  /** What each pod had when it was first seen, by its UID. */
  readonly #had = new Map<string, Remembered>();

  constructor(options: EnrolmentOptions) {
    this.#options = options;
    this.#holds = options.config.enrollment === 'new-pods';
  }

  decide(pod: Pod): Decision {
    const { inventory, config, adjust } = this.#options;
    const decision = decide(pod, inventory.namespace(pod.namespace), config, this.#holds ? this.#remembered(pod) : undefined);
    return adjust?.(pod, decision) ?? decision;
  }

  /** The pod is there, so from now on its namespace's label may change; or it is gone. */
  changed(uid: string, pod: Pod | undefined): void {
    if (pod === undefined) this.#had.delete(uid);
    else if (this.#holds) this.#remembered(pod);
  }

  /** What the pod's entry is to remember; with `live` what its namespace has now, for the day that this is changed. */
  codeOf(pod: Pod): number {
    return modeCode((this.#holds ? this.#remembered(pod) : this.#now(pod)).mode);
  }

  #remembered(pod: Pod): Remembered {
    const known = this.#had.get(pod.uid);
    if (known !== undefined) return known;
    const had = this.#recalled(pod) ?? this.#now(pod);
    this.#had.set(pod.uid, had);
    return had;
  }

  #now({ namespace }: Pod): Remembered {
    const { inventory, config } = this.#options;
    return { mode: namespaceMode(inventory.namespace(namespace), config) };
  }

  /** From an earlier agent, or from before the API forgot the pod for a while. A static pod's UID is its image's in the API, which may be made again. */
  #recalled(pod: Pod): Remembered | undefined {
    const { maps, config } = this.#options;
    for (const text of podKeys(pod)) {
      const entry = maps.pods.get({ text });
      const had = entry === undefined ? undefined : modeOfCode(entry.namespaceMode, config.meshModes);
      if (had !== undefined) return had;
    }
    return undefined;
  }
}
