import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PodQueue } from '../../../../mapper/pacing/pod-queue.ts';

/** A queue that notes what it did; `during` is called in the middle of each piece of work. */
function noting(during: (pod: string, queue: PodQueue) => void = () => {}) {
  const done: string[] = [];
  const queue = new PodQueue(
    (pod) => {
      done.push(pod);
      during(pod, queue);
    },
    (pod, error) => done.push(`${pod}: ${String(error)}`),
  );
  queue.begin();
  return { queue, done };
}

test('many changes of a pod in a row are one piece of work, and pods come in the order of their first', async () => {
  const { queue, done } = noting();
  for (const pod of ['a', 'b', 'a', 'c', 'b', 'a']) queue.add(pod);
  assert.deepEqual([queue.size, done.length], [3, 0]);
  await queue.idle();
  assert.deepEqual([queue.size, ...done], [0, 'a', 'b', 'c']);
});

test('a change in the middle of the work is worked on again, and idle waits for that too', async () => {
  let changes = 2;
  const { queue, done } = noting((pod, of) => {
    if (pod === 'a' && changes-- > 0) of.add('a');
  });
  queue.add('a');
  queue.add('b');
  await queue.idle();
  assert.deepEqual(done, ['a', 'b', 'a', 'a']);
});

test('a failure is told, and the pods after it have their turn', async () => {
  const { queue, done } = noting((pod) => {
    if (pod === 'bad') throw new Error('full');
  });
  queue.add('bad');
  queue.add('good');
  await queue.idle();
  assert.deepEqual(done, ['bad', 'bad: Error: full', 'good']);
});

test('what is added after the work is through is worked on, and what is cleared is not', async () => {
  const { queue, done } = noting();
  await queue.idle();
  queue.add('a');
  await queue.idle();
  queue.add('b');
  queue.clear();
  await queue.idle();
  queue.add('c');
  await queue.idle();
  assert.deepEqual(done, ['a', 'c']);
});

test('nothing is done before it begins, and what waits together goes by rank, also what comes meanwhile', async () => {
  const done: string[] = [];
  const queue = new PodQueue(
    (pod) => {
      done.push(pod);
      if (pod === 'b2') for (const more of ['c3', 'a1', 'b4']) queue.add(more);
    },
    (pod, error) => assert.fail(`${pod}: ${String(error)}`),
    (pod) => Number(pod.slice(1)),
  );
  for (const pod of ['c3', 'a2', 'b2', 'z1']) queue.add(pod);
  await queue.idle();
  assert.deepEqual([queue.size, done.length], [4, 0]);
  queue.begin();
  await queue.idle();
  assert.deepEqual(done, ['z1', 'a2', 'b2', 'c3', 'a1', 'b4']);
});
