/** The connection of one ztunnel: what it is told goes out as fast as it answers, and it is known whether it does. */
import { closeSync } from 'node:fs';
import type { PacketConnection, PacketEvents } from '../../native/unix/packet-connection.ts';
import { makeBackoff } from '../pacing/backoff.ts';
import { Conversation, type Answered, type Standing, type Telling } from '../zds/conversation.ts';
import {
  delMessage,
  isUnreadable,
  keepMessage,
  readAnswer,
  readHello,
  reasonOf,
  snapshotSentMessage,
  ZDS_VERSION,
} from '../zds/messages.ts';

/** How long is waited for a ztunnel, and how much at once. */
export interface LinkLimits {
  /** For its hello. */
  readonly helloMs: number;
  /** For its next answer, before it counts as slow. */
  readonly answerMs: number;
  /** From a refusal until it is asked again, for the first time and at most. */
  readonly againMs: readonly [first: number, most: number];
  /** Messages that wait for their answers. */
  readonly window: number;
}

export interface LinkOptions {
  readonly limits: LinkLimits;
  /** UIDs of all pods that it is to know, asked for once. */
  readonly wanted: () => Iterable<string>;
  /** The Add of one of them; undefined for a pod that is not wanted any more. */
  readonly addOf: (uid: string) => Uint8Array | undefined;
  /** A descriptor of its network namespace that is closed afterwards; undefined where there is none now. */
  readonly networkOf: (uid: string) => number | undefined;
  /** It has said hello. */
  readonly onHello: (link: ZtunnelLink) => void;
  readonly onAnswered: (link: ZtunnelLink, answered: Answered) => void;
  /** Once each time that it falls behind. */
  readonly onSlow: (link: ZtunnelLink) => void;
  readonly onCaughtUp: (link: ZtunnelLink) => void;
  /** It is gone, or was closed for what it sent. */
  readonly onEnd: (link: ZtunnelLink, why: string) => void;
}

export class ZtunnelLink implements Disposable {
  readonly pid: number;
  readonly #options: LinkOptions;
  readonly #connection: PacketConnection;
  readonly #backoff;
  #conversation: Conversation | undefined;
  #answers = 0;
  #isSlow = false;
  #isTelling = false;
  /** Its socket has no room: nothing is opened for it until it has. */
  #isFull = false;
  #isOver = false;
  #helloTimer: NodeJS.Timeout | undefined;
  #answerTimer: NodeJS.Timeout | undefined;
  #againTimer: NodeJS.Timeout | undefined;

  /** @param open the connection, given who hears of it */
  constructor(open: (events: PacketEvents) => PacketConnection, options: LinkOptions) {
    this.#options = options;
    this.#connection = open({
      onMessage: (message) => this.#take(message),
      onRoom: () => {
        this.#isFull = false;
        this.#tell();
      },
      onEnd: (why) => this.#end(why),
    });
    this.pid = this.#connection.peer.pid;
    this.#backoff = makeBackoff(...options.limits.againMs);
    this.#helloTimer = setTimeout(() => this.#missHello(), options.limits.helloMs);
  }

  /** It has said hello, and is being told of pods. */
  get isZtunnel(): boolean {
    return this.#conversation !== undefined;
  }

  /** It has let its time pass, and has not caught up since. */
  get isSlow(): boolean {
    return this.#isSlow;
  }

  /** Messages that it has not answered yet. */
  get unanswered(): number {
    return this.#conversation?.unanswered ?? 0;
  }

  standingOf(uid: string): { readonly standing: Standing; readonly reason: string } | undefined {
    return this.#conversation?.standingOf(uid);
  }

  /** It is to know the pod. @param isNew false: nothing is said to who has been told of this network */
  add(uid: string, isNew: boolean): void {
    this.#conversation?.add(uid, isNew);
    this.#tell();
  }

  /** It is to forget the pod. */
  del(uid: string): void {
    this.#conversation?.del(uid);
    this.#tell();
  }

  /** Closes it; nobody is told. */
  [Symbol.dispose](): void {
    this.#isOver = true;
    for (const timer of [this.#helloTimer, this.#answerTimer, this.#againTimer]) clearTimeout(timer);
    this.#connection[Symbol.dispose]();
  }

  #end(why: string): void {
    if (this.#isOver) return;
    this[Symbol.dispose]();
    this.#options.onEnd(this, why);
  }

  #take(message: Uint8Array): void {
    if (this.#isOver) return;
    const conversation = this.#conversation;
    if (conversation === undefined) return this.#greet(message);
    const error = readAnswer(message);
    if (isUnreadable(error)) return this.#end(`it sent ${error.unreadable}`);
    if (conversation.unanswered === 0) return this.#end('it answered what nobody had told it');
    const answered = conversation.answered(error === '' ? '' : reasonOf(error));
    this.#answers++;
    if (answered?.standing === 'refused') this.#askAgainLater();
    if (answered !== undefined) this.#options.onAnswered(this, answered);
    this.#tell();
    if (this.#isOver) return;
    clearTimeout(this.#answerTimer);
    this.#answerTimer = undefined;
    if (conversation.unanswered > 0) this.#awaitAnswer();
    else this.#rest();
  }

  #greet(message: Uint8Array): void {
    const version = readHello(message);
    if (isUnreadable(version)) return this.#end(`it sent ${version.unreadable} in place of a hello`);
    if (version !== ZDS_VERSION)
      return this.#end(`it speaks version ${version} of ZDS, where ${ZDS_VERSION} was expected`);
    clearTimeout(this.#helloTimer);
    this.#conversation = new Conversation(this.#options.wanted(), this.#options.limits.window);
    this.#options.onHello(this);
    this.#tell();
  }

  /** Sends what may be sent. */
  #tell(): void {
    const conversation = this.#conversation;
    // Who is asked for a network may change what is wanted; the loop that runs sees that.
    if (conversation === undefined || this.#isTelling || this.#isFull || this.#isOver) return;
    this.#isTelling = true;
    try {
      for (let next = conversation.next(); next !== undefined; next = conversation.next())
        if (!this.#send(conversation, next)) break;
    } finally {
      this.#isTelling = false;
    }
    if (conversation.unanswered > 0 && !this.#isOver) this.#awaitAnswer();
  }

  #awaitAnswer(): void {
    this.#answerTimer ??= setTimeout(() => this.#missAnswer(), this.#options.limits.answerMs);
  }

  #send(conversation: Conversation, telling: Telling): boolean {
    if (telling.kind === 'snapshot-sent')
      return this.#sent(snapshotSentMessage(), () => conversation.told(telling));
    const { kind, uid } = telling;
    if (kind === 'del') return this.#sent(delMessage(uid), () => conversation.told(telling));
    const network = this.#options.networkOf(uid);
    try {
      // Who was asked may have found the pod to be gone.
      const now = conversation.next();
      const message = this.#options.addOf(uid);
      if (message === undefined || now?.kind !== 'add' || now.uid !== uid) return true;
      if (network !== undefined) return this.#sent(message, () => conversation.told(telling), network);
      if (conversation.mayKeep) return this.#sent(keepMessage(uid), () => conversation.told(telling, 'kept'));
      conversation.told(telling, 'nothing');
      return true;
    } finally {
      if (network !== undefined) closeSync(network);
    }
  }

  #sent(message: Uint8Array, then: () => void, descriptor?: number): boolean {
    if (this.#isOver) return false;
    this.#isFull = !this.#connection.send(message, descriptor);
    if (!this.#isFull) then();
    return !this.#isFull;
  }

  #askAgainLater(): void {
    this.#againTimer ??= setTimeout(() => {
      this.#againTimer = undefined;
      if (this.#conversation?.askAgain() === 0) return this.#backoff.reset();
      this.#tell();
      this.#askAgainLater();
    }, this.#backoff.next());
  }

  #missHello(): void {
    // It may be this process that has not looked for long.
    this.#connection.receive();
    if (this.#conversation === undefined)
      this.#end(`it said no hello within ${this.#options.limits.helloMs / 1000} s`);
  }

  #missAnswer(): void {
    const before = this.#answers;
    this.#connection.receive();
    if (this.#answers !== before || this.#isOver || this.#isSlow) return;
    this.#isSlow = true;
    this.#options.onSlow(this);
  }

  /** Nothing waits for an answer. */
  #rest(): void {
    if (!this.#isSlow) return;
    this.#isSlow = false;
    this.#options.onCaughtUp(this);
  }
}
