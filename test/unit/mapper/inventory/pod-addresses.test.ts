import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PodAddressBook } from '../../../../mapper/inventory/pod-addresses.ts';
import { podOf, type Pod } from '../../../../mapper/objects/pod.ts';

const podWith = (ips: readonly string[], hostNetwork = false): Pod =>
  podOf({
    metadata: { name: 'p', namespace: 'n', uid: 'key' },
    spec: { hostNetwork },
    status: { podIPs: ips.map((ip) => ({ ip })) },
  }) as Pod;

/** The host has 192.0.2.1; the pod's processes have what the test says. */
function setUp() {
  const asked: string[][] = [];
  const host = { found: undefined as readonly string[] | undefined };
  const book = new PodAddressBook({
    host: {
      isOwnAddress: (ip) => ip === '192.0.2.1',
      addressesIn(paths) {
        asked.push([...paths]);
        return host.found;
      },
    },
    pathsOf: (key) => [`/${key}`],
  });
  return { book, host, asked };
}

test('the status counts, but for addresses of the host or of nobody', () => {
  const { book, asked } = setUp();
  const pod = podWith(['192.0.2.1', '127.0.0.1', '10.1.0.5', 'fd00::5', 'fe80::1']);
  assert.deepEqual(book.told(pod), ['10.1.0.5', 'fd00::5']);
  assert.deepEqual(book.ownOf('key', pod), ['10.1.0.5', 'fd00::5']);
  assert.equal(book.isWanting('key', pod), false);
  assert.deepEqual(asked, []);
});

test('where the status says nothing, its processes are asked until they tell', () => {
  const { book, host, asked } = setUp();
  const pod = podWith([]);
  assert.deepEqual(book.ownOf('key', pod), []);
  assert.equal(book.isWanting('key', pod), true);
  host.found = ['10.1.0.6'];
  assert.deepEqual(book.ownOf('key', pod), ['10.1.0.6']);
  assert.deepEqual(book.reachedAt('key', pod), ['10.1.0.6']);
  assert.equal(book.isWanting('key', pod), false);
  assert.deepEqual(asked, [['/key'], ['/key']], 'and no more from then on');
  assert.deepEqual(book.ownOf('key', podWith(['10.1.0.7'])), ['10.1.0.7'], 'the status wins');
  book.forget('key');
  assert.equal(book.isWanting('key', pod), true);
});

test("a pod in the host's network has no address of its own, and is reached at the host's", () => {
  const { book, asked } = setUp();
  const pod = podWith(['192.0.2.1'], true);
  assert.deepEqual(book.ownOf('key', pod), []);
  assert.deepEqual(book.reachedAt('key', pod), ['192.0.2.1']);
  assert.equal(book.isWanting('key', pod), false);
  assert.deepEqual(asked, []);
});
