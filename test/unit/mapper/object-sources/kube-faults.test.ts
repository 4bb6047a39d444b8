import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { stretch } from '../../../../deploy/stage/deadline.ts';
import { follow, restartsOf } from './kube-follow.ts';
import { namespace, pod } from './kube-stub.ts';

describe('when the API server fails, the source', { concurrency: true }, () => {
  test('begins a list anew whose pages expire in the middle', async () => {
    let compactions = 0;
    await using f = await follow({
      timing: { pageSize: 3 },
      prepare(api) {
        for (let i = 0; i < 5; i++) api.put('pods', pod(`p${i}`, `uid-p${i}`));
        api.intercept = ({ query, isWatch }) => {
          if (!isWatch) query.delete('resourceVersion');
          if (query.has('continue') && compactions++ === 0) api.compact();
          return false;
        };
      },
      wait: false,
    });
    await f.until('synced', () => f.isSynced);
    assert.deepEqual(f.told, ['all shop | a p0 p1 p2 p3 p4']);
    assert.equal(restartsOf(f, 'pods')['expired'], 1);
  });

  test('goes on from the last event when a watch is cut in the middle of one', async () => {
    await using f = await follow();
    f.api.put('pods', pod('b', 'uid-b'));
    await f.until('told', () => f.told.includes('+b'));
    f.api.cut('pods', 'break', '{"type":"MODIFIED","object":{"metadata":{"name":"b","uid":"uid-b","resou');
    await f.until('cut', () => f.api.watches('pods') === 0);
    f.api.put('pods', pod('c', 'uid-c'));
    await f.until('told', () => f.told.includes('+c'));
    assert.deepEqual(f.told, ['all shop | a', '+b', '+c']);
    assert.equal(f.api.asked('pods', false).length, 1);
    assert.equal(f.api.asked('pods', true)[1]?.query.get('resourceVersion'), '103');
    assert.equal(restartsOf(f, 'pods')['cut'], 1);
    assert.deepEqual(restartsOf(f, 'namespaces'), {});
  });

  test('takes half an event before an orderly end for a cut', async () => {
    await using f = await follow();
    f.api.cut('pods', 'end', '{"type":"DELETED","object":{"metadata":{"name":"a","uid":"uid-a"}}}');
    await f.until('restarted', () => restartsOf(f, 'pods')['cut'] === 1);
    await f.watching();
    assert.deepEqual(f.told, ['all shop | a']);
  });

  test('does not race around a server that ends each watch at once', async () => {
    await using f = await follow({
      prepare: (api) => {
        api.intercept = ({ isWatch }, response) => isWatch && !!response.writeHead(200).end();
      },
      wait: false,
    });
    await f.until('synced', () => f.isSynced);
    await f.until('three watches', () => f.api.asked('pods', true).length >= 3);
    const count = (): number => f.api.asked('pods', true).length;
    const [before, began] = [count(), performance.now()];
    await sleep(500);
    // A busy machine may have slept longer.
    const [more, halves] = [count() - before, (performance.now() - began) / 500];
    assert.ok(more < 16 * halves, `${more} more watches in ${halves} half seconds`);
    assert.match(f.state('pods'), /^degraded: .*ended it at once; what stood before goes on \(1 known\)/);
  });

  test('lists afresh after a 410, and takes what is missing from that list for gone: a delete seen only as a tombstone', async () => {
    await using f = await follow({ prepare: (api) => api.put('pods', pod('b', 'uid-b')) });
    f.api.cut('pods', 'break');
    f.api.remove('pods', 'a', true);
    f.api.put('pods', pod('c', 'uid-c'));
    f.api.compact();
    await f.until('told', () => f.told.includes('+c') && f.told.includes('-uid-a'));
    assert.ok(!f.told.includes('-uid-b'));
    const again = f.api.asked('pods', false)[1]?.query;
    assert.equal(again?.get('resourceVersion'), null, 'read through to etcd');
    assert.equal(restartsOf(f, 'pods')['expired'], 1);
  });

  test('lists afresh after a 410 that is an HTTP answer', async () => {
    let refusals = 0;
    await using f = await follow({
      prepare: (api) => {
        api.intercept = ({ isWatch, kind }, response) =>
          isWatch &&
          kind === 'pods' &&
          refusals++ === 0 &&
          !!response.writeHead(410).end('{"kind":"Status","code":410}');
      },
    });
    assert.equal(f.api.asked('pods', false).length, 2);
  });

  test('lists afresh when the server is behind what it once said, as after a restored backup', async () => {
    await using f = await follow();
    f.api.intercept = ({ query }, response) =>
      (query.get('resourceVersion') ?? '0') !== '0' &&
      !query.has('fixed') &&
      !!response.writeHead(504).end(
        JSON.stringify({
          kind: 'Status',
          code: 504,
          message: 'Timeout: Too large resource version: 9, current: 5',
        }),
      );
    f.api.cut('pods', 'break');
    await f.until('listed afresh', () =>
      f.api.asked('pods', false).some(({ query }) => !query.has('resourceVersion')),
    );
  });

  test('leaves a watch that is silent for too long', async () => {
    await using f = await follow({ timing: { idleMs: 150 } });
    await f.until('left', () => (restartsOf(f, 'pods')['idle'] ?? 0) >= 1);
    await f.until('back', () => f.api.asked('pods', true).length >= 2);
    assert.equal(f.api.asked('pods', false).length, 1);
  });

  test('stays with a watch that sends bookmarks only', async () => {
    // So long that a busy machine sends some bookmarks meanwhile.
    const idleMs = Math.round(400 * stretch());
    await using f = await follow({ timing: { idleMs } });
    for (const began = performance.now(); performance.now() - began < 3 * idleMs; await sleep(20)) {
      f.api.bookmark('pods');
      f.api.bookmark('namespaces');
    }
    assert.deepEqual([restartsOf(f, 'pods'), restartsOf(f, 'namespaces')], [{}, {}]);
    assert.ok((f.source.figures().lastEventAgeMs['pods'] ?? Infinity) < idleMs);
  });

  test('gives up a server that takes the connection and does not answer', async () => {
    await using f = await follow({
      deadlineMs: 150,
      wait: false,
      prepare: (api) => {
        api.intercept = () => true;
      },
    });
    await f.until('given up', () => (restartsOf(f, 'pods')['idle'] ?? 0) >= 2);
    assert.match(f.state('pods'), /did not answer within 150 ms/);
    f.api.intercept = () => false;
    await f.until('synced', () => f.isSynced);
  });

  test('waits for a list that is slow but goes on', async () => {
    await using f = await follow({
      deadlineMs: 200,
      wait: false,
      prepare: (api) => {
        api.intercept = ({ isWatch, kind }, response) => {
          if (isWatch || kind !== 'pods') return false;
          const text = JSON.stringify({
            metadata: { resourceVersion: '102' },
            items: [pod('slow', 'uid-slow')],
          });
          response.writeHead(200);
          void (async () => {
            for (let at = 0; at < 6; at++) {
              response.write(text.slice((at * text.length) / 6, ((at + 1) * text.length) / 6));
              await sleep(80);
            }
            response.end();
          })();
          return true;
        };
      },
    });
    await f.until('synced', () => f.isSynced);
    assert.deepEqual(f.told, ['all shop | slow']);
  });

  for (const [what, body] of [
    ['rubbish', '<html>502</html>'],
    ['JSON of another kind', '[1]'],
    ['nothing at all', ''],
  ] as const) {
    test(`is not upset by a list that is ${what}`, async () => {
      await using f = await follow({
        wait: false,
        prepare: (api) => {
          api.intercept = ({ isWatch }, response) => !isWatch && !!response.writeHead(200).end(body);
        },
      });
      await f.until('seen', () => (restartsOf(f, 'pods')['garbage'] ?? 0) >= 2);
      f.api.intercept = () => false;
      await f.until('synced', () => f.isSynced);
    });
  }

  test('goes on from the last good event after a line that is not JSON', async () => {
    await using f = await follow();
    f.api.say('pods', 'this is not JSON\n');
    await f.until('restarted', () => restartsOf(f, 'pods')['garbage'] === 1);
    f.api.put('pods', pod('b', 'uid-b'));
    await f.until('told', () => f.told.includes('+b'));
    assert.equal(f.api.asked('pods', false).length, 1);
  });

  test('keeps asking a server that fails, ever less often, and says since when and why', async () => {
    await using f = await follow({ timing: { backoffMs: [20, 200] } });
    f.api.intercept = (_, response) =>
      !!response
        .writeHead(503)
        .end(JSON.stringify({ kind: 'Status', code: 503, message: 'the server is starting' }));
    const from = f.api.requests.length;
    f.api.cut('pods', 'break');
    await f.until('five tries', () => f.api.requests.length - from >= 6);
    const at = f.api.requests.slice(from).map(({ atMs }) => atMs);
    const gaps = at.slice(1).map((ms, i) => ms - (at[i] ?? 0));
    // A busy machine makes them longer, and none shorter: the first waits are of some 20 ms.
    assert.ok((gaps[4] ?? 0) >= 95, JSON.stringify(gaps));
    assert.match(
      f.state('pods'),
      /^degraded: not followed since 2\S+Z \(\d+ s\), (?:next try in \d+ s|trying now): .*503: the server is starting; what stood before goes on \(1 known\)$/,
    );
    assert.match(f.state('namespaces'), /^ok: /);
    assert.deepEqual(f.told, ['all shop | a']);
    const warnings = f.log.filter(({ msg }) => String(msg).includes('the server is starting'));
    assert.equal(warnings.length, 1, 'said once, not with each try');
    f.api.intercept = () => false;
    await f.until('back', () => f.state('pods').startsWith('ok'));
    assert.ok(f.log.some(({ msg }) => msg === 'the API server is followed again'));
  });

  test('lists again when a watch fails time after time: it may be the version', async () => {
    await using f = await follow();
    f.api.intercept = ({ isWatch, kind }, response) =>
      isWatch && kind === 'pods' && !!response.writeHead(400).end('{}');
    f.api.cut('pods', 'break');
    await f.until('listed', () => f.api.asked('pods', false).length >= 2);
    assert.ok(f.api.asked('pods', true).length >= 5);
  });

  test('names what is refused, and goes on when the role is given back', async () => {
    await using f = await follow();
    f.api.intercept = ({ kind }, response) =>
      kind === 'namespaces' &&
      !!response.writeHead(403).end(
        JSON.stringify({
          kind: 'Status',
          code: 403,
          message: 'namespaces is forbidden: User "x" cannot watch',
        }),
      );
    f.api.cut('namespaces', 'end');
    await f.until('seen', () => f.state('namespaces').includes('403'));
    assert.match(
      f.state('namespaces'),
      /^degraded: .*403: namespaces is forbidden: User "x" cannot watch; expected a role that may get, list and watch this/,
    );
    f.api.intercept = () => false;
    f.api.put('namespaces', namespace('new'));
    await f.until('told', () => f.told.includes('+ns new 0'));
  });

  test('leaves a server alone for as long as it asks', async () => {
    await using f = await follow({ timing: { backoffMs: [10, 5000] } });
    f.api.intercept = ({ kind }, response) =>
      kind === 'pods' && !!response.writeHead(429, { 'retry-after': '1' }).end('{}');
    const from = f.api.asked('pods', true).length;
    f.api.cut('pods', 'break');
    await f.until('two tries', () => f.api.asked('pods', true).length >= from + 2);
    const [first, second] = f.api.asked('pods', true).slice(from);
    assert.ok((second?.atMs ?? 0) - (first?.atMs ?? 0) >= 990);
  });

  test('starts without a server, and follows it when it is there', async () => {
    await using f = await follow({ wait: false, prepare: (api) => api.stop() });
    await f.until('tried', () => (restartsOf(f, 'pods')['unreachable'] ?? 0) >= 2);
    assert.match(f.state('pods'), /^failed: never listed; since .* cannot be reached: .*ECONNREFUSED/);
    assert.deepEqual(f.source.figures().lastEventAgeMs, {});
    await f.api.start();
    await f.until('synced', () => f.isSynced);
  });

  test('keeps all it told while the server is away, and tells the difference when it is back', async () => {
    await using f = await follow({ prepare: (api) => api.put('pods', pod('b', 'uid-b')) });
    await f.api.stop();
    await f.until(
      'seen',
      () => f.state('pods').startsWith('degraded') && f.state('namespaces').startsWith('degraded'),
    );
    f.api.remove('pods', 'b', true);
    f.api.put('pods', pod('c', 'uid-c'));
    f.api.compact();
    await sleep(150);
    assert.deepEqual(f.told, ['all shop | a b']);
    assert.ok((f.source.figures().lastEventAgeMs['pods'] ?? 0) >= 150);
    await f.api.start();
    await f.until('told', () => f.told.includes('-uid-b') && f.told.includes('+c'));
    await f.until('ok', () => f.state('pods').startsWith('ok') && f.state('namespaces').startsWith('ok'));
  });

  test('survives a token that cannot be read for a while', async () => {
    let missing = true;
    await using f = await follow({
      wait: false,
      token: () => {
        if (missing) throw new Error('ENOENT: no token');
        return 'there';
      },
    });
    await f.until('seen', () => (restartsOf(f, 'pods')['access'] ?? 0) >= 2);
    assert.match(f.state('pods'), /a test: there are no credentials for .*: ENOENT: no token/);
    missing = false;
    await f.until('synced', () => f.isSynced);
  });

  test('skips an object that cannot be read, says so once, and leaves what was known of it', async () => {
    await using f = await follow({ timing: { relistMs: 300 } });
    const broken = { ...pod('a', 'uid-a'), spec: { nodeName: 7 } };
    f.api.put('pods', broken);
    f.api.put('pods', { ...broken, status: {} });
    // With the third request the second list has been read.
    await f.until('listed again', () => f.api.asked('pods', false).length >= 3);
    assert.deepEqual(
      f.told.filter((text) => !text.includes('ns')),
      ['all shop | a'],
    );
    assert.equal(f.log.filter(({ msg }) => String(msg).includes("can't be read")).length, 1);
    assert.match(f.state('pods'), /1 of them can't be read/);
    f.api.remove('pods', 'a');
    await f.until('told', () => f.told.includes('-uid-a'));
    assert.match(f.state('pods'), /0 known; /);
  });

  test('goes on when a handler throws', async () => {
    await using f = await follow();
    f.told.push = () => {
      throw new Error('out of order');
    };
    f.api.put('pods', pod('b', 'uid-b'));
    await f.until('logged', () => f.log.some(({ msg }) => String(msg).includes('out of order')));
    f.told.push = Array.prototype.push.bind(f.told) as typeof f.told.push;
    f.api.put('pods', pod('c', 'uid-c'));
    await f.until('told', () => f.told.includes('+c'));
    assert.deepEqual(restartsOf(f, 'pods'), {});
  });

  test('waits by a clock that nobody can set', async () => {
    await using f = await follow({ timing: { idleMs: 30_000, relistMs: 60_000 } });
    const real = Date.now;
    try {
      for (const jump of [3_600_000, -3_600_000]) {
        Date.now = () => real() + jump;
        f.api.bookmark('pods');
        f.api.bookmark('namespaces');
        await sleep(150);
      }
      assert.deepEqual([restartsOf(f, 'pods'), restartsOf(f, 'namespaces')], [{}, {}]);
      assert.ok((f.source.figures().lastEventAgeMs['pods'] ?? Infinity) < 1_800_000, 'not by that hour');
    } finally {
      Date.now = real;
    }
  });
});
