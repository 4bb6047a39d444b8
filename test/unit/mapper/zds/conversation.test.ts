/** The order of ZDS holds whatever happens, and a ztunnel ends up with the pods that are wanted. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { Conversation, type Telling } from '../../../../mapper/zds/conversation.ts';

/** A ztunnel by what its source says: which pods it has, and what ends it. */
class Ztunnel {
  /** What it has from an earlier connection, too: a pod's UID and its network. */
  readonly pods: Map<string, number>;
  readonly #named = new Set<string>();
  readonly #unread: (() => void)[] = [];
  #hasSnapshot = false;

  constructor(pods: Iterable<readonly [string, number]>) {
    this.pods = new Map(pods);
  }

  /** A message is in its socket. */
  send(telling: Telling | { readonly kind: 'keep'; readonly uid: string }, network: number): void {
    this.#unread.push(() => {
      switch (telling.kind) {
        case 'add':
          if (!this.#hasSnapshot) this.#named.add(telling.uid);
          this.pods.set(telling.uid, network);
          break;
        case 'keep':
          assert.ok(!this.#hasSnapshot, 'Keep after SnapshotSent');
          this.#named.add(telling.uid);
          break;
        case 'del':
          assert.ok(this.#hasSnapshot, 'Del before SnapshotSent');
          this.pods.delete(telling.uid);
          break;
        case 'snapshot-sent':
          assert.ok(!this.#hasSnapshot, 'a second SnapshotSent');
          this.#hasSnapshot = true;
          for (const uid of this.pods.keys()) if (!this.#named.has(uid)) this.pods.delete(uid);
      }
    });
  }

  /** Reads a message, if there is one. */
  read(): boolean {
    const message = this.#unread.shift();
    message?.();
    return message !== undefined;
  }
}

const UIDS = ['a', 'b', 'c', 'd'];
const uid = fc.constantFrom(...UIDS);
const step = fc.oneof(
  fc.record({ what: fc.constantFrom('want', 'want again', 'remove', 'network goes', 'network comes'), uid }),
  { arbitrary: fc.record({ what: fc.constantFrom('tell', 'ack', 'nack', 'ask again'), uid }), weight: 2 },
);

test('no order of changes, answers and lost networks breaks the protocol, and in the end the ztunnel has what is wanted', () => {
  fc.assert(
    fc.property(
      fc.uniqueArray(uid),
      fc.uniqueArray(uid),
      fc.array(step, { maxLength: 60, size: 'max' }),
      fc.integer({ min: 1, max: 4 }),
      (had, wantedAtFirst, steps, window) => {
        const wanted = new Map(wantedAtFirst.map((each) => [each, 1]));
        const away = new Set<string>();
        const ztunnel = new Ztunnel(had.map((each) => [each, 0]));
        const conversation = new Conversation(wanted.keys(), window);
        let told = 0;

        const tell = (): boolean => {
          const telling = conversation.next();
          if (telling === undefined) return false;
          if (telling.kind !== 'add' || !away.has(telling.uid)) {
            ztunnel.send(telling, telling.kind === 'add' ? (wanted.get(telling.uid) ?? NaN) : 0);
            conversation.told(telling);
          } else if (conversation.mayKeep) {
            ztunnel.send({ kind: 'keep', uid: telling.uid }, 0);
            conversation.told(telling, 'kept');
          } else {
            conversation.told(telling, 'nothing');
            return true;
          }
          told++;
          assert.ok(conversation.unanswered <= window);
          return true;
        };
        const answer = (error: string): boolean => {
          if (!ztunnel.read()) return false;
          told--;
          const answered = conversation.answered(error);
          if (answered !== undefined) {
            assert.ok(wanted.has(answered.uid), 'an answer about a pod that nobody wants counts');
            assert.equal(conversation.standingOf(answered.uid)?.standing, answered.standing);
            if (answered.standing === 'acknowledged')
              assert.equal(ztunnel.pods.get(answered.uid), wanted.get(answered.uid), 'an earlier network');
          }
          return true;
        };

        for (const { what, uid: pod } of steps) {
          if (what === 'want') {
            wanted.set(pod, (wanted.get(pod) ?? 0) + 1);
            conversation.add(pod, true);
          } else if (what === 'want again') {
            if (wanted.has(pod)) conversation.add(pod, false);
          } else if (what === 'remove') {
            wanted.delete(pod);
            conversation.del(pod);
          } else if (what === 'network goes') away.add(pod);
          else if (what === 'network comes') away.delete(pod);
          else if (what === 'tell') tell();
          else if (what === 'ask again') conversation.askAgain();
          else answer(what === 'nack' ? 'a reason' : '');
          assert.equal(conversation.unanswered, told);
        }

        away.clear();
        for (const pod of wanted.keys()) conversation.add(pod, false);
        for (;;) {
          conversation.askAgain();
          if (!tell() && !answer('')) break;
        }
        assert.ok(conversation.hasSnapshot);
        assert.deepEqual(new Map([...ztunnel.pods].sort()), new Map([...wanted].sort()));
        for (const pod of UIDS)
          assert.equal(conversation.standingOf(pod)?.standing, wanted.has(pod) ? 'acknowledged' : undefined);
      },
    ),
    { numRuns: 3000 },
  );
});

describe('a conversation', () => {
  /** Sends all that it may. */
  function tellAll(conversation: Conversation): string[] {
    const told: string[] = [];
    for (let telling = conversation.next(); telling !== undefined; telling = conversation.next()) {
      conversation.told(telling);
      told.push(telling.kind === 'snapshot-sent' ? telling.kind : `${telling.kind} ${telling.uid}`);
    }
    return told;
  }

  test('takes back what was not sent yet, and sends Del for the rest, after the snapshot', () => {
    const conversation = new Conversation(['a', 'b', 'c'], 1);
    assert.deepEqual(tellAll(conversation), ['add a']);
    conversation.del('a');
    conversation.del('b');
    conversation.del('nobody');
    const told: string[] = [];
    while (conversation.unanswered > 0) {
      conversation.answered('');
      told.push(...tellAll(conversation));
    }
    assert.deepEqual(told, ['add c', 'snapshot-sent', 'del a']);
  });

  test('takes no answer for another than it is to', () => {
    const conversation = new Conversation(['a', 'b'], 9);
    assert.deepEqual(tellAll(conversation), ['add a', 'add b', 'snapshot-sent']);
    const refusal = { uid: 'a', standing: 'refused', reason: 'a reason', isKnown: false };
    assert.deepEqual(conversation.answered('a reason'), refusal);
    // Of its earlier network.
    conversation.add('b', true);
    assert.equal(conversation.answered(''), undefined);
    assert.equal(conversation.answered(''), undefined);
    assert.equal(conversation.standingOf('b')?.standing, 'told');
    assert.equal(conversation.askAgain(), 1);
    assert.deepEqual(tellAll(conversation), ['add b', 'add a']);
    assert.equal(conversation.answered('')?.uid, 'b');
    assert.equal(conversation.standingOf('a')?.standing, 'refused', 'until it says otherwise');
    assert.deepEqual(conversation.answered('a reason'), { ...refusal, isKnown: true });
    assert.equal(conversation.askAgain(), 1);
    assert.deepEqual(tellAll(conversation), ['add a']);
    assert.equal(conversation.answered('')?.standing, 'acknowledged');
    assert.throws(() => conversation.answered(''), RangeError);
  });

  test('tells a pod that is wanted again of nothing, unless it was kept, or its network is another', () => {
    const conversation = new Conversation(['a', 'b'], 9);
    conversation.told({ kind: 'add', uid: 'a' }, 'kept');
    assert.deepEqual(tellAll(conversation), ['add b', 'snapshot-sent']);
    assert.equal(conversation.answered(''), undefined);
    assert.equal(conversation.standingOf('a')?.standing, 'kept');
    conversation.add('a', false);
    conversation.add('b', false);
    assert.deepEqual(tellAll(conversation), ['add a']);
    conversation.add('b', true);
    assert.deepEqual(tellAll(conversation), ['add b']);
  });
});
