/** A source that is followed ahead: who comes late hears all that is so by then, and each change after it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { followAhead } from '../../../../mapper/object-sources/followed-ahead.ts';
import type { ObjectHandlers, ObjectSource } from '../../../../mapper/object-sources/object-source.ts';
import type { Namespace } from '../../../../mapper/objects/namespace.ts';
import type { Pod } from '../../../../mapper/objects/pod.ts';
import { podWith } from '../pod-with.ts';

const pod = (uid: string, name = uid): Pod => podWith({ uid, name });
const namespace = (name: string): Namespace => ({ name, labels: {} });

/** A source that a test speaks for. */
function stub(): { source: ObjectSource; says: () => ObjectHandlers; ended: () => number } {
  let handlers: ObjectHandlers | undefined;
  let ends = 0;
  return {
    says: () => handlers as ObjectHandlers,
    ended: () => ends,
    source: {
      async follow(given) {
        handlers = given;
        return {
          synced: Promise.resolve(),
          [Symbol.asyncDispose]: async () => void ends++,
        };
      },
      states: () => [{ name: 'stub', state: 'ok', detail: '' }],
      figures: () => ({ requests: 7, restarts: {}, lastEventAgeMs: {} }),
    },
  };
}

/** What is told, in words. */
function ear(): { readonly heard: string[]; readonly handlers: ObjectHandlers } {
  const heard: string[] = [];
  return {
    heard,
    handlers: {
      onObjects: ({ pods, namespaces }) =>
        heard.push(`all: ${[...pods, ...namespaces].map(({ name }) => name).join(' ')}`),
      onPod: ({ name }) => heard.push(`pod ${name}`),
      onPodGone: (uid) => heard.push(`no pod ${uid}`),
      onNamespace: ({ name }) => heard.push(`namespace ${name}`),
      onNamespaceGone: (name) => heard.push(`no namespace ${name}`),
    },
  };
}

test('who follows late hears once what is so by then, and the changes from then on', async () => {
  const { source, says, ended } = stub();
  const ahead = await followAhead(source);
  says().onObjects({ pods: [pod('a'), pod('b')], namespaces: [namespace('n'), namespace('o')] });
  says().onPod(pod('c'));
  says().onPod(pod('a', 'renamed'));
  says().onPodGone('b');
  says().onNamespaceGone('o');
  says().onNamespace(namespace('p'));
  const { heard, handlers } = ear();
  const following = await ahead.source.follow(handlers);
  assert.deepEqual(heard.splice(0), ['all: renamed c n p']);
  says().onPod(pod('d'));
  says().onPodGone('a');
  says().onNamespace(namespace('q'));
  says().onNamespaceGone('n');
  says().onObjects({ pods: [pod('e')], namespaces: [] });
  assert.deepEqual(heard, ['pod d', 'no pod a', 'namespace q', 'no namespace n', 'all: e']);
  assert.deepEqual([ahead.source.states().length, ahead.source.figures().requests], [1, 7]);
  await ahead[Symbol.asyncDispose]();
  assert.equal(ended(), 0, 'it is who follows that ends it');
  await following[Symbol.asyncDispose]();
  assert.equal(ended(), 1);
});

test('a list replaces the one before, also while nobody listens', async () => {
  const { source, says } = stub();
  const ahead = await followAhead(source);
  says().onObjects({ pods: [pod('a')], namespaces: [namespace('n')] });
  says().onObjects({ pods: [pod('b')], namespaces: [] });
  const { heard, handlers } = ear();
  await ahead.source.follow(handlers);
  assert.deepEqual(heard, ['all: b']);
});

test('before the first list nothing is told, as nothing is known', async () => {
  const { source, says, ended } = stub();
  const ahead = await followAhead(source);
  const { heard, handlers } = ear();
  await ahead.source.follow(handlers);
  assert.deepEqual(heard, []);
  says().onObjects({ pods: [], namespaces: [] });
  assert.deepEqual(heard, ['all: ']);
  const unused = await followAhead(source);
  await unused[Symbol.asyncDispose]();
  assert.equal(ended(), 1, 'what nobody followed ends with its maker');
});
