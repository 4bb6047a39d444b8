/**
 * What one ztunnel has been told, has answered, and is to be told next: the order of
 * ZDS, without sockets and clocks.
 *
 * A connection begins with the snapshot: Add for each pod that is wanted, then
 * SnapshotSent, once. What the ztunnel had before and is not in the snapshot it drops.
 * After that come changes. It ends itself on a second SnapshotSent, a Keep after it or
 * a Del before it, so there is no way here to have these. It answers each message, in
 * their order.
 */

/** What to send next. An Add may turn out to have no network, see {@link Conversation.told}. */
export type Telling =
  | { readonly kind: 'add' | 'del'; readonly uid: string }
  | { readonly kind: 'snapshot-sent' };

/** How a pod stands with one ztunnel: not answered yet, told to keep what it may have, or answered. */
export type Standing = 'told' | 'kept' | 'acknowledged' | 'refused';

interface Known {
  standing: Standing;
  /** Of the refusal. */
  reason: string;
  /** Counts the times that it was told: an answer to an earlier one says nothing of the latest. */
  turn: number;
  /** To the latest. */
  isAnswered: boolean;
  /** What it was told is no longer so, and it is to be told anew. */
  isOutdated: boolean;
}

/** An answer, with what it is the answer to. */
export interface Answered {
  readonly uid: string;
  readonly standing: 'acknowledged' | 'refused';
  /** Of a refusal; not empty. */
  readonly reason: string;
  /** A refusal in the words of the one before: it was asked again. */
  readonly isKnown: boolean;
}

export class Conversation {
  /** Pods of the snapshot that were not sent yet. */
  readonly #snapshot: Set<string>;
  /** What has changed since, in its order. */
  readonly #changes = new Map<string, 'add' | 'del'>();
  readonly #known = new Map<string, Known>();
  readonly #unanswered: { readonly uid: string | undefined; readonly turn: number }[] = [];
  readonly #window: number;
  #hasSnapshot = false;
  #turns = 0;

  /**
   * @param wanted UIDs of the pods that it is to know
   * @param window so many messages may wait for their answers; what waits in the ztunnel's socket holds on to network namespaces
   */
  constructor(wanted: Iterable<string>, window: number) {
    this.#snapshot = new Set(wanted);
    this.#window = window;
  }

  /** The ztunnel is to know this pod. @param isNew false: it is told only if it has not been told of its network */
  add(uid: string, isNew: boolean): void {
    if (this.#snapshot.has(uid)) return;
    const known = this.#known.get(uid);
    const isTold = known !== undefined && known.standing !== 'kept' && !known.isOutdated;
    if (isTold && !isNew) return;
    if (known !== undefined && isNew) this.#forgetAnswer(known);
    // One that waits keeps its place.
    if (this.#changes.get(uid) === 'add') return;
    this.#changes.delete(uid);
    this.#changes.set(uid, 'add');
  }

  /** It is to forget this pod. */
  del(uid: string): void {
    this.#snapshot.delete(uid);
    this.#changes.delete(uid);
    const known = this.#known.get(uid);
    if (known === undefined) return;
    this.#forgetAnswer(known);
    this.#changes.set(uid, 'del');
  }

  /** Nothing while too much waits for an answer. */
  next(): Telling | undefined {
    if (this.#unanswered.length >= this.#window) return undefined;
    for (const uid of this.#snapshot) return { kind: 'add', uid };
    if (!this.#hasSnapshot) return { kind: 'snapshot-sent' };
    for (const [uid, kind] of this.#changes) return { kind, uid };
    return undefined;
  }

  /** Whether a pod whose network cannot be had now may be kept by a ztunnel that has it from before. */
  get mayKeep(): boolean {
    return !this.#hasSnapshot;
  }

  /**
   * What {@link next} said has been sent. An Add whose network cannot be had now was
   * sent as Keep (`kept`) or, where that may not be, not at all (`nothing`).
   */
  told(telling: Telling, as: 'sent' | 'kept' | 'nothing' = 'sent'): void {
    if (telling.kind === 'snapshot-sent') {
      this.#hasSnapshot = true;
      this.#unanswered.push({ uid: undefined, turn: 0 });
      return;
    }
    const { kind, uid } = telling;
    this.#snapshot.delete(uid);
    this.#changes.delete(uid);
    if (as === 'nothing') return;
    const turn = ++this.#turns;
    this.#unanswered.push({ uid, turn });
    if (kind === 'del') this.#known.delete(uid);
    else {
      const before = this.#known.get(uid);
      // Who has refused it and is asked again still refuses it.
      const standing = as === 'kept' ? 'kept' : before?.standing === 'refused' ? 'refused' : 'told';
      this.#known.set(uid, {
        standing,
        reason: before?.reason ?? '',
        turn,
        isAnswered: false,
        isOutdated: false,
      });
    }
  }

  /**
   * The next answer. Returns what it says of a pod; undefined where nothing, as of a Del.
   * @param error of a nack, as one line; empty of an ack
   * @throws RangeError where nothing waits for an answer
   */
  answered(error: string): Answered | undefined {
    const to = this.#unanswered.shift();
    if (to === undefined) throw new RangeError('an answer to nothing');
    const known = to.uid === undefined ? undefined : this.#known.get(to.uid);
    if (to.uid === undefined || known === undefined || known.turn !== to.turn) return undefined;
    known.isAnswered = true;
    // That it would keep it, if it had it.
    if (known.standing === 'kept' && error === '') return undefined;
    const isKnown = error !== '' && known.reason === error;
    known.standing = error === '' ? 'acknowledged' : 'refused';
    known.reason = error;
    return { uid: to.uid, standing: known.standing, reason: error, isKnown };
  }

  /** Tells again of all pods that it has refused: it tries by itself, and says nothing when it succeeds. Returns how many. */
  askAgain(): number {
    const refused = [...this.#known].filter(
      ([uid, { standing, isAnswered }]) => standing === 'refused' && isAnswered && !this.#changes.has(uid),
    );
    for (const [uid] of refused) this.#changes.set(uid, 'add');
    return refused.length;
  }

  /** Undefined while it has not been told of the pod. */
  standingOf(uid: string): { readonly standing: Standing; readonly reason: string } | undefined {
    const known = this.#known.get(uid);
    return known === undefined || this.#changes.get(uid) === 'del' ? undefined : known;
  }

  /** Messages that wait for their answers. */
  get unanswered(): number {
    return this.#unanswered.length;
  }

  /** SnapshotSent has gone out. */
  get hasSnapshot(): boolean {
    return this.#hasSnapshot;
  }

  /** What it said so far was about another network, or about a pod that it is to forget. */
  #forgetAnswer(known: Known): void {
    known.standing = 'told';
    known.reason = '';
    known.turn = ++this.#turns;
    known.isOutdated = true;
  }
}
