/**
 * The error of a connect() that is denied: ECONNREFUSED, on which clients try again,
 * where something is not there yet, and EPERM where it will not change by waiting.
 */
import assert from 'node:assert/strict';
import { after, afterEach, beforeEach, test } from 'node:test';
import { run } from '../../deploy/stage/process.ts';
import { connect, type Connected, type Place, SOCK } from '../../deploy/stage/sock.ts';
import { FOR_NOW } from '../harness/for-now.ts';
import { at } from '../harness/travel.ts';
import { assertFailed, assertRedirected, makeMesh, PORT } from './mesh.ts';
import { loadRival } from './rival.ts';

const mesh = await makeMesh('refusal');
const { plane, app, proxy, server, sandbox } = mesh;
const rival = loadRival();
const root = { absolute: sandbox.cgroupRoot };

after(async () => {
  rival[Symbol.dispose]();
  await mesh[Symbol.asyncDispose]();
});
beforeEach(() => plane.setProxy(undefined));
afterEach(() => plane.nothingLeft());

/** Some clients connect in other ways than connect(). */
const WAYS: readonly (readonly [string, readonly string[]])[] = [
  ['at once', []],
  ['where the socket does not block', ['--nonblock']],
  ['through a ring of io', ['--io-uring']],
  ['in sendto() with data for the SYN', ['--tfo']],
  ['where the kernel puts the SYN off to the first data', ['--tfo-connect']],
];

for (const [name, flags] of WAYS) {
  test(`connect() is refused ${name}, counted once`, async () => {
    for (const address of [server.ip4, server.ip6]) {
      const [result, counts] = await mesh.counted(() => connect(app, address, PORT, ...flags));
      assertFailed(result, FOR_NOW);
      assert.deepEqual(counts, { 'app noProxyDenied': 1 });
    }
  });
}

test('the socket that was refused can be used again', async () => {
  const { stdout } = await run({
    ...app,
    cmd: SOCK,
    args: ['connect', '--then', at(server.ip4, PORT), '--then', at('127.0.0.1', 1), server.ip4, String(PORT)],
  });
  const results = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Connected);
  assert.deepEqual(
    results.map((result) => 'errno' in result && result.errno),
    [FOR_NOW, FOR_NOW, 'ECONNREFUSED'],
  );
});

test('what is denied for good, or for want of room, is EPERM', async () => {
  plane.setProxy(proxy);
  assertFailed(await connect(app, proxy.ip4, 15001), 'EPERM');
  assertFailed(await connect(app, '::10.1.2.3', PORT), 'EPERM');
});

test('with another program on the hook, the error is that of the first that denies', async () => {
  const to = { address: server.ip4, port: PORT };
  const errno = async (place: Place): Promise<string | false> => {
    const result = await connect(place, to.address, to.port);
    return 'errno' in result && result.errno;
  };
  rival.deny(to);
  {
    using _nearer = rival.attach('deny', app.podCgroup);
    assert.equal(await errno(app), 'EPERM');
  }
  {
    using _farther = rival.attach('deny', root);
    assert.equal(await errno(app), FOR_NOW);
  }
  assert.equal(await errno(app), FOR_NOW);
  plane.setProxy(proxy);
  await assertRedirected(mesh, await connect(app, to.address, to.port), at(to.address, to.port));
});
