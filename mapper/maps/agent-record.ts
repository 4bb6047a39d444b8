/** Who writes the maps, in a map itself: for `status`, which may run elsewhere or when the agent is gone. */
import { statSync } from 'node:fs';
import type { BpfMap } from '../../native/bpf/bpf-map.ts';
import type { AgentInfo } from '../../native/layout/layouts.ts';

const ONLY_KEY = 0;

export class AgentRecord implements Disposable {
  readonly #map: BpfMap<number, AgentInfo>;
  #info: AgentInfo;

  constructor(
    map: BpfMap<number, AgentInfo>,
    about: Pick<AgentInfo, 'node' | 'version' | 'rootLevel' | 'rootId'>,
  ) {
    this.#map = map;
    this.#info = {
      ...about,
      pid: process.pid,
      startedMs: BigInt(Date.now()),
      beatMs: 0n,
      netns: ownNetns(),
      http: '',
    };
  }

  listening(http: string): void {
    this.#info = { ...this.#info, http };
    this.beat();
  }

  /** Writes the record with the time. */
  beat(): void {
    this.#info = { ...this.#info, beatMs: BigInt(Date.now()) };
    this.#map.set(ONLY_KEY, this.#info);
  }

  /** A stopped agent leaves no process id behind, which another process may get. */
  [Symbol.dispose](): void {
    this.#map.set(ONLY_KEY, { ...this.#info, pid: 0, http: '' });
  }
}

export function readAgentRecord(map: BpfMap<number, AgentInfo>): AgentInfo | undefined {
  const info = map.get(ONLY_KEY);
  return info === undefined || info.startedMs === 0n ? undefined : info;
}

function ownNetns(): bigint {
  return statSync('/proc/self/ns/net', { bigint: true }).ino;
}
