/**
 * Sidecars out of their pods' path: which pods should have which rules in their
 * own network namespace, and that they have them.
 *
 * A short-circuited pod counts as redirected once the rules stand. Until then its
 * sidecar keeps its connections, which would else be redirected twice.
 */
import { existsSync } from 'node:fs';
import { isIPv4 } from 'node:net';
import PQueue from 'p-queue';
import type { Logger } from 'pino';
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
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
import { bypassDirection, infoFlag } from '../../native/layout/layouts.ts';
import { openPodNetns } from '../../native/netns/pod-netns.ts';
import { effectiveCapabilities, hostNamespaces } from '../../native/boundary/privilege.ts';
import type { Addresses } from '../../watcher/proc.ts';
import type { SourceState } from '../../watcher/source-state.ts';
import type { Config } from '../config/config.ts';
import { makeBackoff, type Backoff } from '../pacing/backoff.ts';
import { MapMirror } from '../maps/map-mirror.ts';
import { SIDECAR_STATUS } from '../objects/label-names.ts';
import type { Pod } from '../objects/pod.ts';
import { addressBytes } from '../objects/address.ts';
import type { Decision } from '../decisions/decision.ts';

/** What of the host is looked at. */
export interface SidecarHost {
  pidsOf(path: string): readonly number[];
  addressesOf(pid: number): Addresses | undefined;
}

export interface SidecarRulesOptions {
  readonly dataPlane: Pick<DataPlane, 'pinBypass'> & {
    readonly maps: Pick<DataPlane['maps'], 'bypass4' | 'bypass6' | 'pods'>;
  };
  readonly config: Pick<Config, 'sidecars'>;
  readonly procRoot: string;
  readonly host: SidecarHost;
  readonly logger: Logger;
  /** What {@link SidecarRules.adjust} says of the pod has changed. */
  readonly onChanged: (uid: string) => void;
  /** First and longest wait, milliseconds: for a sidecar that is not there yet, and after a failure. */
  readonly waits?: { readonly absent: readonly [number, number]; readonly failed: readonly [number, number] };
}

export interface SidecarFigures {
  readonly bypassed: number;
  readonly shortCircuited: number;
  /** No process, or no rules of a sidecar, so far. */
  readonly waiting: number;
  readonly failing: number;
  /** Failures since the start. */
  readonly failures: number;
}

type Standing = 'unknown' | 'waiting' | 'done' | 'failed';

interface PodState {
  pod: Pod;
  kind: RuleKind | undefined;
  ips: readonly string[];
  /** Cgroups of its containers, relative to the watched root. */
  paths: readonly string[];
  standing: Standing;
  /** The rules stood when they were last read. */
  isShortCircuited: boolean;
  /** Its sidecar was short-circuited, and the rules for that have not been seen gone. */
  isLeft: boolean;
  /** Why it failed, in a sentence that stays the same while it does. */
  problem: string | undefined;
  /** Whose table could not be written last: the next try begins there, before it changes any other. */
  stuck: NatTable['tool'] | undefined;
  /** The namespace where it was done last, and in which tables. */
  done:
    | { readonly inode: number; readonly kind: RuleKind | undefined; readonly tools: ReadonlySet<string> }
    | undefined;
  isRunning: boolean;
  isDirty: boolean;
  timer: NodeJS.Timeout | undefined;
  readonly absent: Backoff;
  readonly failed: Backoff;
}

const WAITS = { absent: [50, 30_000], failed: [1000, 120_000] } as const;
/** A pod with very many rules of its own must not keep all others waiting. */
const AT_ONCE = 2;
const SWITCHED_OFF =
  "the agent runs with sidecars: false; to allow it, set sidecars: true in the chart's values, or without the chart in the agent's configuration";
const SHORT_CIRCUITED = 'sidecar-short-circuited';

/** What a pod with a sidecar should have; the mode is known where no rule before the sidecar's decided. */
export function ruleKindOf({ sidecar, mode, bypassOutbound, bypassInbound }: Decision): RuleKind | undefined {
  if (!sidecar) return undefined;
  if (mode === 'kmesh') return 'short-circuit';
  return bypassOutbound || bypassInbound ? 'bypass' : undefined;
}

const directionsOf = ({ bypassOutbound, bypassInbound }: Decision): number =>
  (bypassOutbound ? bypassDirection.outbound : 0) | (bypassInbound ? bypassDirection.inbound : 0);

/** Why this process cannot change rules inside pods; undefined where it can. */
export function unableToEnter(procRoot: string): string | undefined {
  const held = effectiveCapabilities(procRoot);
  for (const capability of ['CAP_SYS_ADMIN', 'CAP_NET_ADMIN'] as const) {
    if (!held.has(capability))
      return `the agent lacks ${capability}, which it takes to change rules inside a pod's network namespace (in the chart, sidecars: true)`;
  }
  if (hostNamespaces(procRoot).net === undefined)
    return "the host's network namespace cannot be told from a pod's: the agent needs CAP_SYS_PTRACE and hostPID";
  return undefined;
}

export class SidecarRules implements Disposable {
  readonly #options: SidecarRulesOptions;
  readonly #unable: string | undefined;
  #filter: FilterPin | undefined;
  readonly #bypass4;
  readonly #bypass6;
  readonly #pods = new Map<string, PodState>();
  /** Pods that an earlier agent knew to have a sidecar, until they have been looked at: whether it was short-circuited. */
  readonly #before: Map<string, boolean>;
  readonly #queue = new PQueue({ concurrency: AT_ONCE });
  #failures = 0;
  #drift = 0;
  #isStopped = false;

  constructor(options: SidecarRulesOptions) {
    this.#options = options;
    const { maps } = options.dataPlane;
    const hex = (address: Uint8Array): string => Buffer.from(address).toString('hex');
    this.#bypass4 = new MapMirror(maps.bypass4, hex);
    this.#bypass6 = new MapMirror(maps.bypass6, hex);
    this.#before = new Map(
      maps.pods
        .entries()
        .filter(([, { flags }]) => (flags & infoFlag.sidecar) !== 0)
        .map(([, { uid, reason }]) => [uid, reason === SHORT_CIRCUITED]),
    );
    let unable = options.config.sidecars ? unableToEnter(options.procRoot) : SWITCHED_OFF;
    try {
      if (unable === undefined) this.#filter = options.dataPlane.pinBypass();
    } catch (error) {
      unable = messageOf(error);
    }
    this.#unable = unable;
    // Nothing is wrong with what was asked for.
    if (unable !== undefined)
      options.logger[unable === SWITCHED_OFF ? 'info' : 'warn'](
        `sidecars stay in the path of their pods: ${unable}`,
      );
  }

  /** The decision as long as the rules that it takes are not there; to be asked before {@link want}. */
  adjust(pod: Pod, decision: Decision): Decision {
    const kind = ruleKindOf(decision);
    const note = (message: string): Decision['notes'] => [
      ...decision.notes,
      { code: 'sidecar-stays', message: `the sidecar of pod ${pod.namespace}/${pod.name} ${message}` },
    ];
    // Its connections are redirected as before: they would else belong to no data plane.
    if (this.#unable !== undefined && this.#before.get(pod.uid) === true)
      return {
        ...decision,
        notes: note(
          `is kept out of its path by rules that an earlier agent left, until the pod is replaced or an agent may remove them: ${this.#unable}`,
        ),
      };
    const state = this.#pods.get(pod.uid);
    if (kind === undefined) {
      if (state?.problem === undefined || !state.isLeft) return decision;
      return {
        ...decision,
        notes: note(
          `is kept out of its path by rules that could not be removed, and no data plane has its connections: ${state.problem}`,
        ),
      };
    }
    const problem = this.#unable ?? state?.problem;
    const notes =
      problem === undefined
        ? decision.notes
        : note(`cannot be ${kind === 'bypass' ? 'bypassed' : 'short-circuited'}: ${problem}`);
    if (kind === 'bypass' || (this.#unable === undefined && this.#isOutOfPath(pod.uid, state)))
      return { ...decision, notes };
    return { ...decision, verdict: 'out', reason: 'sidecar', enrolled: false, traffic: undefined, notes };
  }

  #isOutOfPath(uid: string, state: PodState | undefined): boolean {
    // An earlier agent's rules stand; and where nothing runs yet, nothing is redirected twice.
    return (
      this.#before.get(uid) === true ||
      (state !== undefined && (state.isShortCircuited || !this.#hasProcess(state)))
    );
  }

  #hasProcess({ paths }: PodState): boolean {
    return paths.some((path) => this.#options.host.pidsOf(path).length > 0);
  }

  /** Where the pod's processes are; before its decision is asked for. */
  place(pod: Pod, paths: readonly string[]): void {
    const state = this.#pods.get(pod.uid);
    if (state !== undefined) state.isDirty ||= paths.join() !== state.paths.join();
    if (state !== undefined) Object.assign(state, { pod, paths });
    else if (pod.annotations[SIDECAR_STATUS] !== undefined || this.#before.has(pod.uid))
      this.#pods.set(pod.uid, this.#newState(pod, paths));
  }

  /** What the pod should have. Returns at once. */
  want(pod: Pod, decision: Decision, ips: readonly string[]): void {
    const state = this.#pods.get(pod.uid);
    if (state === undefined || pod.hostNetwork) return;
    const kind = this.#unable === undefined ? ruleKindOf(decision) : undefined;
    // The map is the switch: it counts at once, and the rules follow.
    this.#list(state, kind === 'bypass' ? directionsOf(decision) : 0, ips);
    if (kind !== state.kind) {
      state.isLeft = kind !== 'short-circuit' && (state.isLeft || state.kind === 'short-circuit');
      state.kind = kind;
      state.standing = 'unknown';
      state.isShortCircuited = false;
      if (kind !== 'short-circuit') this.#before.delete(pod.uid);
      state.problem = undefined;
    }
    if (this.#unable !== undefined || (state.standing === 'done' && !state.isDirty)) return;
    state.absent.reset();
    if (state.isDirty) state.failed.reset();
    this.#look(state);
  }

  forget(uid: string): void {
    const state = this.#pods.get(uid);
    if (state === undefined) return;
    this.#pods.delete(uid);
    clearTimeout(state.timer);
    this.#list(state, 0, []);
  }

  #newState(pod: Pod, paths: readonly string[]): PodState {
    const { absent, failed } = this.#options.waits ?? WAITS;
    return {
      pod,
      paths,
      kind: undefined,
      ips: [],
      standing: 'unknown',
      isShortCircuited: false,
      isLeft: this.#before.get(pod.uid) === true,
      problem: undefined,
      stuck: undefined,
      done: undefined,
      isRunning: false,
      isDirty: true,
      timer: undefined,
      absent: makeBackoff(...absent),
      failed: makeBackoff(...failed),
    };
  }

  /** Another pod may have the address by now: that one's entry stays. */
  #list(state: PodState, directions: number, ips: readonly string[]): void {
    const others = new Set(
      [...this.#pods.values()]
        .filter((other) => other !== state && other.kind === 'bypass')
        .flatMap(({ ips: theirs }) => theirs),
    );
    const wanted = directions === 0 ? [] : ips;
    for (const ip of state.ips) if (!wanted.includes(ip) && !others.has(ip)) this.#mirrorOf(ip)(undefined);
    for (const ip of wanted) this.#mirrorOf(ip)(directions);
    state.ips = ips;
  }

  #mirrorOf(ip: string): (directions: number | undefined) => void {
    const bytes = addressBytes(ip) ?? new Uint8Array(16);
    const [mirror, key] = isIPv4(ip) ? [this.#bypass4, bytes.slice(12)] : [this.#bypass6, bytes];
    return (directions) => void (directions === undefined ? mirror.delete(key) : mirror.set(key, directions));
  }

  #look(state: PodState): void {
    state.isDirty = true;
    clearTimeout(state.timer);
    state.timer = undefined;
    if (state.isRunning || this.#isStopped) return;
    state.isRunning = true;
    void this.#queue.add(async () => {
      // What changes meanwhile is looked at once more.
      while (state.isDirty && !this.#isStopped && this.#pods.get(state.pod.uid) === state) {
        state.isDirty = false;
        await this.#lookNow(state);
      }
      state.isRunning = false;
    });
  }

  async #lookNow(state: PodState): Promise<void> {
    const { kind, pod } = state;
    let standing: Standing;
    let problem: string | undefined;
    try {
      standing = await this.#enter(state, kind);
      state.failed.reset();
    } catch (error) {
      standing = 'failed';
      problem = messageOf(error);
      this.#failures++;
      const log = { err: error, podUid: pod.uid, pod: `${pod.namespace}/${pod.name}` };
      this.#options.logger[state.problem === problem ? 'debug' : 'warn'](
        log,
        `the rules for a pod's sidecar could not be brought up to date, and are tried again: ${problem}`,
      );
    }
    if (state.kind !== kind) return;
    const changed = problem !== state.problem || (kind !== undefined && standing !== state.standing);
    if (standing === 'done') state.isLeft = false;
    state.standing = standing;
    state.problem = problem;
    if (standing === 'failed') this.#later(state, state.failed.next());
    // Rules that are not wanted cannot come by themselves.
    else if (standing === 'waiting') this.#later(state, state.absent.next());
    if (changed) this.#options.onChanged(pod.uid);
  }

  #later(state: PodState, ms: number): void {
    if (!this.#isStopped) state.timer = setTimeout(() => this.#look(state), ms).unref();
  }

  async #enter(state: PodState, kind: RuleKind | undefined): Promise<Standing> {
    const { procRoot, logger } = this.#options;
    const found = this.#processOf(state);
    if (found === undefined) return 'waiting';
    const { pid, path, inode } = found;
    using netns = openPodNetns(pid, procRoot);
    const isStill = (): boolean => this.#options.host.pidsOf(path).includes(pid);
    // The PID may be another process's by now, in any namespace.
    if (netns === undefined || netns.inode !== inode || !isStill()) return 'waiting';
    const text = kind === undefined || this.#filter === undefined ? undefined : ruleText(kind, this.#filter);
    const { tables, missing } = await readNat(netns, pid, procRoot);
    if (!isStill()) return 'waiting';
    const wrong = tables.filter((table) => !isAsWanted(table, text));
    state.isLeft =
      kind !== 'short-circuit' && tables.some(({ own }) => own.some((rule) => rule.kind === 'short-circuit'));
    if (wrong.length > 0) this.#setShortCircuited(state, kind, false);
    let after = tables;
    try {
      for (const table of wrong.toSorted(
        (a, b) => Number(b.tool === state.stuck) - Number(a.tool === state.stuck),
      )) {
        state.stuck = table.tool;
        await writeNat(netns, table, text);
      }
      if (wrong.length > 0) after = (await readNat(netns, pid, procRoot)).tables;
      const stillWrong = after.find((table) => !isAsWanted(table, text));
      if (stillWrong !== undefined)
        throw new Error(
          `the rules do not stand first in the nat table of ${stillWrong.tool}: somebody else changes it at the same time`,
        );
    } catch (error) {
      // In one family alone they would leave its connections to no data plane, as the pod is not redirected.
      if (kind === 'short-circuit') await removeNat(netns, pid, procRoot);
      throw error;
    }
    state.stuck = undefined;
    const holding = after.filter(({ hasSidecar }) => hasSidecar);
    if (kind !== undefined && holding.length === 0 && missing[0] !== undefined)
      throw new Error(
        `the program ${missing[0]}-save is not installed where the agent runs, and the sidecar's rules may be there: install the package iptables`,
      );
    this.#setShortCircuited(state, kind, kind === 'short-circuit');
    this.#noteDrift(state, kind, inode, wrong);
    state.done = { inode, kind, tools: new Set(holding.map(({ tool }) => tool)) };
    if (wrong.length > 0)
      logger.info(
        {
          podUid: state.pod.uid,
          pod: `${state.pod.namespace}/${state.pod.name}`,
          rules: kind ?? 'none',
          tables: wrong.map(({ tool }) => tool),
        },
        'the rules for a sidecar were changed',
      );
    if (kind === undefined || holding.length > 0) return 'done';
    return kind === 'short-circuit' ? 'done' : 'waiting';
  }

  /** Nothing is known any more by what an earlier agent left. */
  #setShortCircuited(state: PodState, kind: RuleKind | undefined, is: boolean): void {
    this.#before.delete(state.pod.uid);
    if (state.kind === kind) state.isShortCircuited = is;
  }

  #noteDrift(
    { done, pod }: PodState,
    kind: RuleKind | undefined,
    inode: number,
    wrong: readonly NatTable[],
  ): void {
    const drifted =
      done?.inode === inode && done.kind === kind ? wrong.filter(({ tool }) => done.tools.has(tool)) : [];
    if (drifted.length === 0) return;
    this.#drift += drifted.length;
    this.#options.logger.warn(
      { podUid: pod.uid, pod: `${pod.namespace}/${pod.name}`, tables: drifted.map(({ tool }) => tool) },
      'rules for a sidecar had been removed or moved by somebody else, and are first again',
    );
  }

  /** One of the pod that is in the pod's own network, which has the pod's address. */
  #processOf({
    paths,
    ips,
  }: PodState): { readonly pid: number; readonly path: string; readonly inode: number } | undefined {
    for (const path of paths) {
      for (const pid of this.#options.host.pidsOf(path)) {
        const addresses = this.#options.host.addressesOf(pid);
        if (addresses !== undefined && !addresses.isHost && addresses.ips.some((ip) => ips.includes(ip)))
          return { pid, path, inode: addresses.netns };
      }
    }
    return undefined;
  }

  /** Once all pods are known: entries of those that are no more. */
  removeLeftovers(): number {
    const ips = new Set(
      [...this.#pods.values()]
        .filter(({ kind }) => kind === 'bypass')
        .flatMap((state) => state.ips.map((ip) => Buffer.from(addressBytes(ip) ?? []).toString('hex'))),
    );
    const old4 = this.#bypass4
      .entries()
      .filter(({ key }) => !ips.has(`${'0'.repeat(24)}${Buffer.from(key).toString('hex')}`));
    const old6 = this.#bypass6.entries().filter(({ key }) => !ips.has(Buffer.from(key).toString('hex')));
    for (const { key } of old4) this.#bypass4.delete(key);
    for (const { key } of old6) this.#bypass6.delete(key);
    return old4.length + old6.length;
  }

  /** Looks from time to time whether all is as it was left. Returns what has been put back since the last time. */
  repair(): number {
    let repaired = this.#drift;
    this.#drift = 0;
    if (this.#filter !== undefined && !existsSync(this.#filter.path)) {
      this.#filter = this.#options.dataPlane.pinBypass();
      repaired++;
    }
    for (const state of this.#pods.values())
      if (state.kind !== undefined && state.standing === 'done') this.#look(state);
    return repaired + this.#bypass4.repair() + this.#bypass6.repair();
  }

  get figures(): SidecarFigures {
    const states = [...this.#pods.values()].filter(({ kind }) => kind !== undefined);
    const count = (check: (state: PodState) => boolean): number => states.filter(check).length;
    return {
      bypassed: count(({ kind, standing }) => standing === 'done' && kind === 'bypass'),
      shortCircuited: count(({ kind, standing }) => standing === 'done' && kind === 'short-circuit'),
      waiting: count(({ standing }) => standing === 'waiting' || standing === 'unknown'),
      // Also those whose rules are to go.
      failing: [...this.#pods.values()].filter(({ standing }) => standing === 'failed').length,
      failures: this.#failures,
    };
  }

  /** What is being done about a pod's sidecar, for `explain`. */
  words(uid: string): string | undefined {
    const { kind, standing, done } = this.#pods.get(uid) ?? {};
    if (kind === undefined) return undefined;
    const what = kind === 'bypass' ? 'bypassed' : 'short-circuited';
    if (standing === 'failed')
      return `its sidecar is not ${what} yet: the rules in its network namespace could not be changed, and are tried again`;
    if (standing !== 'done')
      return `its sidecar is not ${what} yet: no process of it, or no rules of a sidecar, have been found`;
    const tools = [...(done?.tools ?? [])].join(', ');
    return tools === ''
      ? 'no rules of a sidecar were found in its network namespace'
      : `its sidecar is ${what}, by rules that name cgroute in the nat tables of ${tools}; connections of before stay with it`;
  }

  source(): SourceState {
    const name = 'sidecars';
    if (this.#unable !== undefined)
      return { name, state: 'off', detail: `they stay in the path of their pods: ${this.#unable}` };
    const { bypassed, shortCircuited, waiting, failing } = this.figures;
    const broken = [...this.#pods.values()].find(({ standing }) => standing === 'failed');
    const detail = `${bypassed} bypassed, ${shortCircuited} short-circuited, ${waiting} waiting for a sidecar's rules`;
    if (broken === undefined) return { name, state: 'ok', detail };
    return {
      name,
      state: 'degraded',
      detail: `${detail}, ${failing} failing; pod ${broken.pod.namespace}/${broken.pod.name}: ${broken.problem ?? ''}`,
    };
  }

  /** Resolves when nothing is being changed any more; nothing is from then on. */
  async stop(): Promise<void> {
    this[Symbol.dispose]();
    await this.#queue.onIdle();
  }

  [Symbol.dispose](): void {
    this.#isStopped = true;
    for (const { timer } of this.#pods.values()) clearTimeout(timer);
  }
}
