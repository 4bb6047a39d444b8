/**
 * Every ztunnel of the node is told of the node's pods: the server of ZDS, which
 * ztunnels dial.
 *
 * All that are connected are told everything, as two of them share a pod's ports while
 * one takes the other's place. None is waited for: each is told as fast as it answers.
 */
import type { Logger } from 'pino';
import type { Caller } from '../../native/unix/packet-listener.ts';
import { messageOf } from '../../native/error.ts';
import { makeTokenBucket } from '../pacing/token-bucket.ts';
import type { Answered, Standing } from '../zds/conversation.ts';
import { addMessage, whyUnfit, type WorkloadNames } from '../zds/messages.ts';
import { openZdsSocket } from './zds-socket.ts';
import { ZtunnelLink, type LinkLimits } from './ztunnel-link.ts';

/** A pod that ztunnels are to serve. */
export interface Workload extends WorkloadNames {
  /** Inode of its network namespace: another one under the same UID is another sandbox, and told again. */
  readonly network: bigint;
}

export interface ZdsServerOptions {
  /** Where ztunnels look for the server. */
  readonly path: string;
  readonly logger: Pick<Logger, 'info' | 'warn' | 'error'>;
  /**
   * Opens the pod's network namespace; the descriptor becomes the server's, which closes
   * it once it is sent. Asked when a ztunnel is told, so that nobody here keeps the
   * namespace of a pod alive that has gone. Undefined where there is none now: a
   * ztunnel that has the pod from before keeps it, and others are told once
   * {@link ZdsServer.set} is called again.
   */
  readonly networkOf: (uid: string) => number | undefined;
  /** A pod counts as acknowledged from now on, see {@link PodStanding}. */
  readonly onAcknowledged?: (uid: string) => void;
  /** A ztunnel has refused a pod, with its first line; not said again while it gives the same reason. */
  readonly onRefused?: (uid: string, reason: string) => void;
  /** A ztunnel has said hello, and is told of no pod before this returns. @param pid 0 where its process is not seen from here */
  readonly onConnected?: (pid: number) => void;
  /** One of those is gone; what it serves it may go on serving. */
  readonly onDisconnected?: (pid: number) => void;
  /** The user whose processes may connect. @default 0, root */
  readonly allowUid?: number;
  readonly limits?: Partial<ZdsLimits>;
}

export interface ZdsLimits extends LinkLimits {
  readonly connections: number;
}

const LIMITS: ZdsLimits = {
  connections: 64,
  helloMs: 5_000,
  answerMs: 10_000,
  // It tries again by itself after five seconds.
  againMs: [1_000, 15_000],
  window: 128,
};

/** Of log lines about connections, which anybody may make who may connect. */
const LINES = { most: 20, perSecond: 0.1 } as const;

export interface ZtunnelState {
  /** 0 where its process is not seen from here. */
  readonly pid: number;
  readonly unanswered: number;
  readonly isSlow: boolean;
}

/**
 * How a pod stands with the ztunnels.
 *
 * - `acknowledged`: one of them has acknowledged it, so there are listeners in the pod;
 *   the others, which may be slow or about to end, are not waited for. It stays so
 *   while ztunnels come and go: until one that is connected refuses the pod and none
 *   that is connected has acknowledged it, or the pod has another network.
 * - `refused`: one that is connected refuses it, or it could not be told at all.
 * - `pending`: none has answered.
 */
export interface PodStanding {
  readonly state: 'acknowledged' | 'refused' | 'pending';
  /** Of the refusal, else empty. */
  readonly reason: string;
  /** Those that have been told of it. */
  readonly ztunnels: readonly {
    readonly pid: number;
    readonly standing: Standing;
    readonly reason: string;
  }[];
}

interface Wanted {
  readonly workload: Workload;
  /** Why no ztunnel can be told. */
  readonly unfit: string | undefined;
  isAcknowledged: boolean;
}

/** @throws CgrouteError `EZDSTAKEN`, `ESOCKETPATH` */
export function openZdsServer(options: ZdsServerOptions): ZdsServer {
  return new ZdsServer(options);
}

export class ZdsServer implements Disposable {
  readonly #options: ZdsServerOptions;
  readonly #limits: ZdsLimits;
  readonly #wanted = new Map<string, Wanted>();
  readonly #links = new Set<ZtunnelLink>();
  readonly #mayLog = makeTokenBucket(LINES, () => performance.now());
  #unlogged = 0;
  #hadZtunnel = false;
  #listener;
  #lastTrouble = '';

  constructor(options: ZdsServerOptions) {
    this.#options = options;
    this.#limits = { ...LIMITS, ...options.limits };
    this.#listener = this.#listen();
  }

  /**
   * Ztunnels are to serve this pod. Where it is wanted already and nothing differs,
   * only those are told that could not be told of its network before.
   */
  set(workload: Workload): void {
    const { uid } = workload;
    const before = this.#wanted.get(uid);
    const isNew = before === undefined || !isSame(before.workload, workload);
    const unfit = isNew ? whyUnfit(workload) : before.unfit;
    if (isNew) this.#wanted.set(uid, { workload, unfit, isAcknowledged: false });
    if (unfit === undefined) for (const link of this.#links) link.add(uid, isNew);
    else if (isNew) {
      for (const link of this.#links) link.del(uid);
      this.#refused(uid, unfit);
    }
  }

  /** Ztunnels are to forget this pod, and end its connections. */
  remove(uid: string): void {
    if (!this.#wanted.delete(uid)) return;
    for (const link of this.#links) link.del(uid);
  }

  /** Undefined for a pod that is not wanted. */
  standingOf(uid: string): PodStanding | undefined {
    const wanted = this.#wanted.get(uid);
    if (wanted === undefined) return undefined;
    const ztunnels = [...this.#links].flatMap((link) => {
      const { standing, reason } = link.standingOf(uid) ?? {};
      return standing === undefined ? [] : [{ pid: link.pid, standing, reason: reason ?? '' }];
    });
    if (wanted.isAcknowledged) return { state: 'acknowledged', reason: '', ztunnels };
    const refusal = wanted.unfit ?? ztunnels.find(({ standing }) => standing === 'refused')?.reason;
    return { state: refusal === undefined ? 'pending' : 'refused', reason: refusal ?? '', ztunnels };
  }

  /** UIDs of all pods that are wanted. */
  get wanted(): Iterable<string> {
    return this.#wanted.keys();
  }

  /** Those that are connected and have said hello. */
  get ztunnels(): readonly ZtunnelState[] {
    return [...this.#links]
      .filter(({ isZtunnel }) => isZtunnel)
      .map(({ pid, unanswered, isSlow }) => ({ pid, unanswered, isSlow }));
  }

  /** One has been connected since this server was opened. */
  get hadZtunnel(): boolean {
    return this.#hadZtunnel;
  }

  /** Puts the socket back where somebody has removed it or put another in its place; says once what keeps it from that. */
  look(): void {
    if (this.#listener.isOurs()) return;
    try {
      const listener = this.#listen();
      this.#listener[Symbol.dispose]();
      this.#listener = listener;
      this.#lastTrouble = '';
      this.#options.logger.warn(`the socket ${this.#options.path} had gone, and is made again`);
    } catch (error) {
      const trouble = messageOf(error);
      if (trouble !== this.#lastTrouble) this.#options.logger.error(trouble);
      this.#lastTrouble = trouble;
    }
  }

  /** Closes all connections, which ends nothing of what ztunnels serve, and takes the socket away. */
  [Symbol.dispose](): void {
    this.#listener[Symbol.dispose]();
    for (const link of this.#links) link[Symbol.dispose]();
    this.#links.clear();
  }

  #listen() {
    return openZdsSocket({
      path: this.#options.path,
      onConnection: (caller) => this.#meet(caller),
      onTrouble: (why) => this.#say('warn', `connections of ztunnels cannot be accepted now: ${why}`),
    });
  }

  #meet(caller: Caller): void {
    const { pid, uid } = caller.peer;
    const { allowUid = 0 } = this.#options;
    if (uid !== allowUid) {
      caller[Symbol.dispose]();
      this.#say('warn', `process ${pid} of user ${uid} was turned away: only user ${allowUid} may connect`);
      return;
    }
    if (this.#links.size >= this.#limits.connections) {
      // Who has said nothing yet gives way, so that no crowd of such keeps a ztunnel out.
      const silent = [...this.#links].find(({ isZtunnel }) => !isZtunnel);
      if (silent === undefined) {
        caller[Symbol.dispose]();
        this.#say('warn', `process ${pid} was turned away: ${this.#links.size} ztunnels are connected`);
        return;
      }
      silent[Symbol.dispose]();
      this.#ended(silent, `there are ${this.#links.size} connections, and it had said no hello`);
    }
    try {
      this.#links.add(this.#linkWith(caller));
    } catch (error) {
      caller[Symbol.dispose]();
      this.#say('warn', `process ${pid} was turned away: ${messageOf(error)}`);
    }
  }

  #linkWith(caller: Caller): ZtunnelLink {
    return new ZtunnelLink((events) => caller.open(events), {
      limits: this.#limits,
      wanted: () => [...this.#wanted].filter(([, { unfit }]) => unfit === undefined).map(([each]) => each),
      addOf: (each) => {
        const workload = this.#wanted.get(each)?.workload;
        return workload && addMessage(workload);
      },
      networkOf: (each) => this.#calmly(() => this.#options.networkOf(each)),
      onHello: ({ pid: ztunnel }) => {
        this.#hadZtunnel = true;
        this.#say('info', `a ztunnel (process ${ztunnel}) has connected`);
        this.#calmly(() => this.#options.onConnected?.(ztunnel));
      },
      onAnswered: (from, answered) => this.#answered(from, answered),
      onSlow: ({ pid: ztunnel, unanswered }) =>
        this.#options.logger.warn(
          `a ztunnel (process ${ztunnel}) has not answered for ${this.#limits.answerMs / 1000} s: ${unanswered} messages wait; the others go on`,
        ),
      onCaughtUp: ({ pid: ztunnel }) =>
        this.#options.logger.info(`a ztunnel (process ${ztunnel}) answers again`),
      onEnd: (from, why) => this.#ended(from, why),
    });
  }

  #answered(from: ZtunnelLink, { uid, standing, reason, isKnown }: Answered): void {
    const wanted = this.#wanted.get(uid);
    if (wanted === undefined) return;
    if (standing === 'acknowledged') {
      if (wanted.isAcknowledged) return;
      wanted.isAcknowledged = true;
      this.#calmly(() => this.#options.onAcknowledged?.(uid));
      return;
    }
    if (!this.#isAcknowledgedNow(uid)) wanted.isAcknowledged = false;
    if (isKnown) return;
    const { namespace, name } = wanted.workload;
    const about = { podUid: uid };
    this.#options.logger.warn(
      about,
      `a ztunnel (process ${from.pid}) refuses pod ${namespace}/${name}: ${reason}`,
    );
    this.#refused(uid, reason);
  }

  #refused(uid: string, reason: string): void {
    this.#calmly(() => this.#options.onRefused?.(uid, reason));
  }

  #ended(link: ZtunnelLink, why: string): void {
    this.#links.delete(link);
    const who = link.isZtunnel ? `a ztunnel (process ${link.pid})` : `process ${link.pid}`;
    this.#say('info', `the connection of ${who} is closed: ${why}`);
    if (!link.isZtunnel) return;
    this.#calmly(() => this.#options.onDisconnected?.(link.pid));
    // What it had acknowledged may be left with those that refuse it.
    for (const [uid, wanted] of this.#wanted) {
      if (!wanted.isAcknowledged || this.#isAcknowledgedNow(uid)) continue;
      const refusals = [...this.#links].flatMap((each) => each.standingOf(uid) ?? []);
      const refusal = refusals.find(({ standing }) => standing === 'refused');
      if (refusal === undefined) continue;
      wanted.isAcknowledged = false;
      this.#refused(uid, refusal.reason);
    }
  }

  #isAcknowledgedNow(uid: string): boolean {
    return [...this.#links].some((link) => link.standingOf(uid)?.standing === 'acknowledged');
  }

  /** About a connection: not more often than somebody can read. */
  #say(level: 'info' | 'warn', message: string): void {
    if (!this.#mayLog()) {
      this.#unlogged++;
      return;
    }
    const more = this.#unlogged === 0 ? '' : ` (and ${this.#unlogged} more about connections before that)`;
    this.#unlogged = 0;
    this.#options.logger[level](`${this.#options.path}: ${message}${more}`);
  }

  /** What others do when they are told must not end the agent. */
  #calmly<T>(tell: () => T): T | undefined {
    try {
      return tell();
    } catch (error) {
      this.#options.logger.error(
        { err: error },
        `what ztunnels say could not be followed: ${messageOf(error)}`,
      );
      return undefined;
    }
  }
}

const isSame = (a: Workload, b: Workload): boolean =>
  a.name === b.name &&
  a.namespace === b.namespace &&
  a.serviceAccount === b.serviceAccount &&
  a.network === b.network;
