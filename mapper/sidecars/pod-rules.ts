/**
 * The rules of one pod in its own network namespace: which they should be, whether
 * they are, and the work that makes them so.
 */
import type PQueue from 'p-queue';
import type { Logger } from 'pino';
import { messageOf } from '../../native/error.ts';
import {
  isAsWanted,
  readNat,
  removeNat,
  ruleText,
  writeNat,
  type FilterPin,
  type NatTable,
  type RuleKind,
} from '../../native/netns/iptables-rules.ts';
import { openPodNetns, type PodNetns } from '../../native/netns/pod-netns.ts';
import type { Addresses } from '../../watcher/proc.ts';
import type { Pod } from '../objects/pod.ts';
import { makeBackoff, type Backoff } from '../pacing/backoff.ts';

/** What of the host is looked at. */
export interface SidecarHost {
  pidsOf(path: string): readonly number[];
  addressesOf(pid: number): Addresses | undefined;
}

/** First and longest wait, milliseconds: for a sidecar that is not there yet, and after a failure. */
export interface SidecarWaits {
  readonly absent: readonly [number, number];
  readonly failed: readonly [number, number];
}

export interface PodRulesOptions {
  readonly procRoot: string;
  readonly host: SidecarHost;
  readonly logger: Logger;
  /** The filter that rules of a bypassed pod name, as it is pinned now. */
  readonly filter: () => FilterPin | undefined;
  /** All pods share it, so that few are looked at at once. */
  readonly queue: PQueue;
  /** Nothing is begun from then on. */
  readonly stop: AbortSignal;
  readonly waits: SidecarWaits;
  /** An earlier agent's rules for a short-circuited sidecar are there, as far as anybody knows. */
  readonly isLeft: boolean;
  /** What is so by now is known: what an earlier agent knew counts no more. */
  readonly onKnown: (uid: string) => void;
  /** {@link PodRules.standing} or {@link PodRules.problem} has changed. */
  readonly onChanged: (uid: string) => void;
  readonly onFailed: () => void;
  /** So many tables had been altered by somebody else. */
  readonly onDrift: (tables: number) => void;
}

export type Standing = 'unknown' | 'waiting' | 'done' | 'failed';

interface Done {
  readonly inode: number;
  readonly kind: RuleKind | undefined;
  readonly tools: ReadonlySet<string>;
}

interface PodProcess {
  readonly pid: number;
  readonly path: string;
  readonly inode: number;
}

export class PodRules implements Disposable {
  readonly #options: PodRulesOptions;
  #pod: Pod;
  /** Cgroups of its containers, relative to the watched root. */
  #paths: readonly string[];
  #ips: readonly string[] = [];
  #kind: RuleKind | undefined;
  #standing: Standing = 'unknown';
  #isShortCircuited = false;
  #isLeft: boolean;
  #problem: string | undefined;
  /** Whose table could not be written last: the next try begins there, before it changes any other. */
  #stuck: NatTable['tool'] | undefined;
  /** The namespace where it was done last, and in which tables. */
  #done: Done | undefined;
  #isRunning = false;
  #isDirty = true;
  #isEnded = false;
  #timer: NodeJS.Timeout | undefined;
  readonly #absent: Backoff;
  readonly #failed: Backoff;

  constructor(pod: Pod, paths: readonly string[], options: PodRulesOptions) {
    this.#options = options;
    this.#pod = pod;
    this.#paths = paths;
    this.#isLeft = options.isLeft;
    this.#absent = makeBackoff(...options.waits.absent);
    this.#failed = makeBackoff(...options.waits.failed);
  }

  get pod(): Pod {
    return this.#pod;
  }

  /** What it should have. */
  get kind(): RuleKind | undefined {
    return this.#kind;
  }

  get standing(): Standing {
    return this.#standing;
  }

  /** The rules stood when they were last read. */
  get isShortCircuited(): boolean {
    return this.#isShortCircuited;
  }

  /** Its sidecar was short-circuited, and the rules for that have not been seen gone. */
  get isLeft(): boolean {
    return this.#isLeft;
  }

  /** Why it failed, in a sentence that stays the same while it does. */
  get problem(): string | undefined {
    return this.#problem;
  }

  get hasProcess(): boolean {
    return this.#paths.some((path) => this.#options.host.pidsOf(path).length > 0);
  }

  /** Where the pod's processes are. */
  place(pod: Pod, paths: readonly string[]): void {
    this.#isDirty ||= paths.join() !== this.#paths.join();
    this.#pod = pod;
    this.#paths = paths;
  }

  /** What it should have, and the addresses that tell its own network namespace. Returns at once. */
  want(kind: RuleKind | undefined, ips: readonly string[]): void {
    this.#ips = ips;
    if (kind !== this.#kind) {
      this.#isLeft = kind !== 'short-circuit' && (this.#isLeft || this.#kind === 'short-circuit');
      this.#kind = kind;
      this.#standing = 'unknown';
      this.#isShortCircuited = false;
      if (kind !== 'short-circuit') this.#options.onKnown(this.#pod.uid);
      this.#problem = undefined;
    }
    if (this.#standing === 'done' && !this.#isDirty) return;
    this.#absent.reset();
    if (this.#isDirty) this.#failed.reset();
    this.look();
  }

  /** Looks whether all is as it should be. */
  look(): void {
    this.#isDirty = true;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#isRunning || this.#isOver) return;
    this.#isRunning = true;
    void this.#options.queue.add(async () => {
      // What changes meanwhile is looked at once more.
      while (this.#isDirty && !this.#isOver) {
        this.#isDirty = false;
        await this.#lookNow();
      }
      this.#isRunning = false;
    });
  }

  get #isOver(): boolean {
    return this.#isEnded || this.#options.stop.aborted;
  }

  async #lookNow(): Promise<void> {
    const { logger, onFailed, onChanged } = this.#options;
    const kind = this.#kind;
    let standing: Standing;
    let problem: string | undefined;
    try {
      standing = await this.#enter(kind);
      this.#failed.reset();
    } catch (error) {
      standing = 'failed';
      problem = messageOf(error);
      onFailed();
      logger[this.#problem === problem ? 'debug' : 'warn'](
        { err: error, ...this.#about },
        `the rules for a pod's sidecar could not be brought up to date, and are tried again: ${problem}`,
      );
    }
    if (this.#kind !== kind) return;
    const changed = problem !== this.#problem || (kind !== undefined && standing !== this.#standing);
    if (standing === 'done') this.#isLeft = false;
    this.#standing = standing;
    this.#problem = problem;
    if (standing === 'failed') this.#lookAfter(this.#failed.next());
    // Rules that are not wanted cannot come by themselves.
    else if (standing === 'waiting') this.#lookAfter(this.#absent.next());
    if (changed) onChanged(this.#pod.uid);
  }

  #lookAfter(ms: number): void {
    if (!this.#isOver) this.#timer = setTimeout(() => this.look(), ms).unref();
  }

  async #enter(kind: RuleKind | undefined): Promise<Standing> {
    const { procRoot, host, filter } = this.#options;
    const found = this.#process();
    if (found === undefined) return 'waiting';
    const { pid, path, inode } = found;
    using netns = openPodNetns(pid, procRoot);
    const isStill = (): boolean => host.pidsOf(path).includes(pid);
    // The PID may be another process's by now, in any namespace.
    if (netns === undefined || netns.inode !== inode || !isStill()) return 'waiting';
    const pin = filter();
    const text = kind === undefined || pin === undefined ? undefined : ruleText(kind, pin);
    const { tables, missing } = await readNat(netns, pid, procRoot);
    if (!isStill()) return 'waiting';
    this.#isLeft =
      kind !== 'short-circuit' && tables.some(({ own }) => own.some((rule) => rule.kind === 'short-circuit'));
    const wrong = tables.filter((table) => !isAsWanted(table, text));
    if (wrong.length > 0) this.#setShortCircuited(kind, false);
    const after = wrong.length > 0 ? await this.#change(netns, pid, kind, text, wrong) : tables;
    this.#stuck = undefined;
    const holding = after.filter(({ hasSidecar }) => hasSidecar);
    if (kind !== undefined && holding.length === 0 && missing[0] !== undefined)
      throw new Error(
        `the program ${missing[0]}-save is not installed where the agent runs, and the sidecar's rules may be there: install the package iptables`,
      );
    this.#setShortCircuited(kind, kind === 'short-circuit');
    this.#noteDrift(kind, inode, wrong);
    this.#done = { inode, kind, tools: new Set(holding.map(({ tool }) => tool)) };
    if (wrong.length > 0)
      this.#options.logger.info(
        { ...this.#about, rules: kind ?? 'none', tables: wrong.map(({ tool }) => tool) },
        'the rules for a sidecar were changed',
      );
    if (kind === undefined || holding.length > 0) return 'done';
    return kind === 'short-circuit' ? 'done' : 'waiting';
  }

  /** One of the pod that is in the pod's own network, which has the pod's address. */
  #process(): PodProcess | undefined {
    const host = this.#options.host;
    for (const path of this.#paths) {
      for (const pid of host.pidsOf(path)) {
        const addresses = host.addressesOf(pid);
        if (
          addresses !== undefined &&
          !addresses.isHost &&
          addresses.ips.some((ip) => this.#ips.includes(ip))
        )
          return { pid, path, inode: addresses.netns };
      }
    }
    return undefined;
  }

  /** Writes these tables, and gives all as they are after that. */
  async #change(
    netns: PodNetns,
    pid: number,
    kind: RuleKind | undefined,
    text: string | undefined,
    wrong: readonly NatTable[],
  ): Promise<readonly NatTable[]> {
    const { procRoot } = this.#options;
    const first = this.#stuck;
    try {
      for (const table of wrong.toSorted((a, b) => Number(b.tool === first) - Number(a.tool === first))) {
        this.#stuck = table.tool;
        await writeNat(netns, table, text);
      }
      const { tables } = await readNat(netns, pid, procRoot);
      const stillWrong = tables.find((table) => !isAsWanted(table, text));
      if (stillWrong !== undefined)
        throw new Error(
          `the rules do not stand first in the nat table of ${stillWrong.tool}: somebody else changes it at the same time`,
        );
      return tables;
    } catch (error) {
      // In one family alone they would leave its connections to no data plane, as the pod is not redirected.
      if (kind === 'short-circuit') await removeNat(netns, pid, procRoot);
      throw error;
    }
  }

  #setShortCircuited(kind: RuleKind | undefined, is: boolean): void {
    this.#options.onKnown(this.#pod.uid);
    if (this.#kind === kind) this.#isShortCircuited = is;
  }

  #noteDrift(kind: RuleKind | undefined, inode: number, wrong: readonly NatTable[]): void {
    const done = this.#done;
    const drifted =
      done?.inode === inode && done.kind === kind ? wrong.filter(({ tool }) => done.tools.has(tool)) : [];
    if (drifted.length === 0) return;
    this.#options.onDrift(drifted.length);
    this.#options.logger.warn(
      { ...this.#about, tables: drifted.map(({ tool }) => tool) },
      'rules for a sidecar had been removed or moved by somebody else, and are first again',
    );
  }

  get #about(): { readonly podUid: string; readonly pod: string } {
    const { uid, namespace, name } = this.#pod;
    return { podUid: uid, pod: `${namespace}/${name}` };
  }

  /** What is being done about the sidecar, for `explain`; undefined where nothing is to be done. */
  words(): string | undefined {
    if (this.#kind === undefined) return undefined;
    const what = this.#kind === 'bypass' ? 'bypassed' : 'short-circuited';
    if (this.#standing === 'failed')
      return `its sidecar is not ${what} yet: the rules in its network namespace could not be changed, and are tried again`;
    if (this.#standing !== 'done')
      return `its sidecar is not ${what} yet: no process of it, or no rules of a sidecar, have been found`;
    const tools = [...(this.#done?.tools ?? [])].join(', ');
    return tools === ''
      ? 'no rules of a sidecar were found in its network namespace'
      : `its sidecar is ${what}, by rules that name cgroute in the nat tables of ${tools}; connections of before stay with it`;
  }

  /** The pod is gone, or the agent ends. What is being done is done to its end. */
  [Symbol.dispose](): void {
    this.#isEnded = true;
    clearTimeout(this.#timer);
  }
}
