import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { follow, restartsOf } from './kube-follow.ts';
import { namespace, pod } from './kube-stub.ts';

describe('the API server as the source', { concurrency: true }, () => {
  test('lists pods of this node and namespaces, and tells of both at once', async () => {
    await using f = await follow();
    assert.deepEqual(f.told, ['all shop | a']);
    assert.equal(f.api.asked('pods', false)[0]?.query.get('fieldSelector'), 'spec.nodeName=node-a');
    assert.equal(f.api.asked('namespaces', false)[0]?.query.get('fieldSelector'), null);
  });

  test('asks for bookmarks, from the version of the list, for a time that differs', async () => {
    await using f = await follow();
    const watches = [...f.api.asked('pods', true), ...f.api.asked('namespaces', true)];
    for (const { query } of watches) {
      assert.equal(query.get('allowWatchBookmarks'), 'true');
      assert.equal(query.get('resourceVersion'), '102');
      const seconds = Number(query.get('timeoutSeconds'));
      assert.ok(seconds >= 300 && seconds <= 600, String(seconds));
    }
  });

  test('tells of each change as it comes', async () => {
    await using f = await follow();
    f.api.put('pods', pod('b', 'uid-b'));
    f.api.put('pods', pod('b', 'uid-b', { v: '2' }));
    f.api.remove('pods', 'b');
    f.api.put('namespaces', namespace('shop'));
    f.api.put('namespaces', namespace('more'));
    f.api.remove('namespaces', 'more');
    await f.until('told', () => f.told.length === 7);
    assert.deepEqual(
      f.told.filter((text) => !text.includes('ns')),
      ['all shop | a', '+b', '+b v=2', '-uid-b'],
    );
    assert.deepEqual(
      f.told.filter((text) => text.includes('ns')),
      ['+ns shop 0', '+ns more 0', '-ns more'],
    );
  });

  test('is not synced by one of two lists', async () => {
    await using f = await follow({
      wait: false,
      prepare: (api) => {
        api.intercept = ({ kind }, response) =>
          kind === 'namespaces' && !!response.writeHead(500).end('{"code":500,"message":"etcd is away"}');
      },
    });
    await f.until('the pods are watched', () => f.api.watches('pods') === 1);
    f.api.put('pods', pod('b', 'uid-b'));
    await sleep(100);
    assert.deepEqual(f.told, []);
    assert.equal(f.isSynced, false);
    assert.match(
      f.state('namespaces'),
      /^failed: never listed; since \S+ \(\d+ s\), .*answered 500: etcd is away/,
    );
    assert.match(f.state('pods'), /^ok: /);
    f.api.intercept = () => false;
    await f.until('synced', () => f.isSynced);
    assert.deepEqual(f.told, ['all shop | a b']);
  });

  test('lists the pages of a long list to its end', async () => {
    await using f = await follow({
      timing: { pageSize: 3 },
      prepare(api) {
        for (let i = 0; i < 10; i++) api.put('pods', pod(`p${i}`, `uid-p${i}`));
        // As a server without a cache of its own does.
        api.intercept = ({ query }) => {
          query.delete('resourceVersion');
          return false;
        };
      },
      wait: false,
    });
    await f.until('synced', () => f.isSynced);
    assert.equal(f.told[0]?.split(' ').length, 'all shop | '.split(' ').length - 1 + 11);
    assert.equal(f.api.asked('pods', false).length, 4);
  });

  test('puts an event together that comes in pieces, in the middle of a letter too', async () => {
    await using f = await follow();
    const line = Buffer.from(`${JSON.stringify({ type: 'ADDED', object: pod('ü', 'uid-ü') })}\n`);
    for (const byte of line) {
      f.api.say('pods', Buffer.of(byte));
      await sleep(0);
    }
    await f.until('told', () => f.told.includes('+ü'));
  });

  test('opens the next watch at once when the server ends one in order', async () => {
    await using f = await follow();
    f.api.bookmark('pods');
    f.api.put('namespaces', namespace('later'));
    f.api.bookmark('pods');
    await sleep(50);
    f.api.cut('pods', 'end');
    await f.until('ended', () => restartsOf(f, 'pods')['timeout'] === 1);
    await f.watching();
    assert.equal(f.api.asked('pods', false).length, 1);
    assert.equal(
      f.api.asked('pods', true)[1]?.query.get('resourceVersion'),
      '103',
      'the version of the bookmark',
    );
    assert.match(f.state('pods'), /^ok: /);
  });

  test('keeps two pods of one name apart: made again in the watch, and between list and watch', async () => {
    await using f = await follow();
    f.api.remove('pods', 'a');
    f.api.put('pods', pod('a', 'uid-a2'));
    await f.until('told', () => f.told.length === 3);
    assert.deepEqual(f.told.slice(1), ['-uid-a', '+a']);
    f.api.cut('pods', 'break');
    f.api.remove('pods', 'a', true);
    f.api.put('pods', pod('a', 'uid-a3'));
    f.api.compact();
    await f.until('told again', () => f.told.includes('-uid-a2'));
    assert.deepEqual(f.told.slice(3).sort(), ['+a', '-uid-a2']);
    // A late delete of the first one takes nobody else.
    f.api.say('pods', { type: 'DELETED', object: pod('a', 'uid-a') });
    f.api.put('pods', pod('z', 'uid-z'));
    await f.until('told last', () => f.told.includes('+z'));
    assert.equal(f.told.length, 6);
  });

  test('finds by its periodic list what no watch has told, and asks for nothing older than it knows', async () => {
    await using f = await follow({ timing: { relistMs: 250 } });
    f.api.remove('pods', 'a', true);
    await f.until('told', () => f.told.includes('-uid-a'));
    const query = f.api.asked('pods', false)[1]?.query;
    assert.equal(query?.get('resourceVersionMatch'), 'NotOlderThan');
    assert.equal(query?.get('resourceVersion'), '102');
    assert.match(f.state('pods'), /^ok: /);
    assert.deepEqual(Object.keys(restartsOf(f, 'pods')), ['relist']);
  });

  test('reads the token anew for each request', async () => {
    let token = 'one';
    await using f = await follow({ token: () => token });
    assert.equal(f.api.asked('pods', true)[0]?.authorization, 'Bearer one');
    token = 'two';
    f.api.bookmark('pods');
    await sleep(20);
    f.api.cut('pods', 'end');
    await f.until('asked', () => f.api.asked('pods', true).length === 2);
    assert.equal(f.api.asked('pods', true)[1]?.authorization, 'Bearer two');
  });

  test('gives a pod only when its namespace is known', async () => {
    await using f = await follow({ prepare: (api) => api.put('pods', pod('early', 'uid-early', {}, 'new')) });
    f.api.put('pods', pod('earlier', 'uid-earlier', {}, 'newer'));
    f.api.put('pods', pod('b', 'uid-b'));
    await f.until('told', () => f.told.includes('+b'));
    assert.deepEqual(f.told, ['all shop | a', '+b']);
    f.api.put('namespaces', namespace('new', { x: 'y' }));
    f.api.put('namespaces', namespace('newer'));
    await f.until('told', () => f.told.includes('+earlier'));
    assert.deepEqual(f.told.slice(2), ['+ns new 1', '+early', '+ns newer 0', '+earlier']);
  });

  test('keeps a namespace until its last pod is gone', async () => {
    await using f = await follow({ prepare: (api) => api.put('pods', pod('b', 'uid-b')) });
    f.api.remove('namespaces', 'shop');
    await sleep(50);
    f.api.remove('pods', 'a');
    f.api.remove('pods', 'b');
    await f.until('told', () => f.told.length === 4);
    assert.deepEqual(f.told.slice(1), ['-uid-a', '-uid-b', '-ns shop']);
  });

  test('tells nothing more when it is closed, and leaves no connection behind', async () => {
    const f = await follow();
    await f[Symbol.asyncDispose]();
    assert.match(f.state('pods'), /^off: /);
    assert.equal(f.api.watches('pods') + f.api.watches('namespaces'), 0);
    const asked = f.api.requests.length;
    await sleep(100);
    assert.equal(f.api.requests.length, asked);
  });
});
