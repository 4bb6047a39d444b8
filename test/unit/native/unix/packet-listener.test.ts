/** The path of a socket that others connect to: whose it is, what may be replaced, and what is left at the end. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import {
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { openZdsSocket } from '../../../../mapper/ztunnel/zds-socket.ts';
import { CgrouteError } from '../../../../native/error.ts';
import { listenForPackets, type PacketListener } from '../../../../native/unix/packet-listener.ts';
import { must } from '../../../../deploy/stage/process.ts';
import { dialZds } from '../../../harness/zds-client.ts';

function directory(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'cgroute-test-listener-'));
  t.after(() => rmSync(path, { recursive: true }));
  return path;
}

/** Listens, and disposes of who connects. */
const listen = (path: string, onTrouble = (errno: string): void => assert.fail(errno)): PacketListener =>
  listenForPackets({
    path,
    purpose: 'a.setting',
    onConnection: (caller) => caller[Symbol.dispose](),
    onTrouble,
  });

const isRefused = (code: string, message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof CgrouteError && error.code === code, String(error));
  assert.match(error.message, message);
  return true;
};

test('the directory is made, the socket is for root alone, and nothing else is there', (t) => {
  const path = join(directory(t), 'var', 'run', 'x.sock');
  const mask = process.umask(0);
  t.after(() => process.umask(mask));
  using listener = listen(path);
  assert.ok(listener.isOurs() && statSync(path).isSocket());
  assert.equal(statSync(path).mode & 0o7777, 0o600);
  assert.deepEqual(readdirSync(join(path, '..')), ['x.sock']);
  dialZds(path)[Symbol.dispose]();
});

test('a socket that nobody answers on is replaced, and what an earlier one left half made', (t) => {
  const at = directory(t);
  const path = join(at, 'x.sock');
  // Its name outlives it, as that of a process that was killed.
  for (const name of ['x.sock', '.x.sock.new']) {
    const killed = listen(join(at, 'made'));
    linkSync(join(at, 'made'), join(at, 'kept'));
    killed[Symbol.dispose]();
    renameSync(join(at, 'kept'), join(at, name));
  }
  assert.deepEqual(readdirSync(at).sort(), ['.x.sock.new', 'x.sock']);
  assert.throws(() => dialZds(path), /^Error: ECONNREFUSED$/);
  using listener = listen(path);
  assert.ok(listener.isOurs());
  assert.deepEqual(readdirSync(at), ['x.sock']);
  dialZds(path)[Symbol.dispose]();
});

test('one that somebody answers on is never replaced, also where more wait than he accepts', (t) => {
  const path = join(directory(t), 'x.sock');
  using first = listen(path);
  const taken = isRefused('ESOCKETTAKEN', /^a\.setting \S+x\.sock is a socket on which somebody answers$/);
  assert.throws(() => listen(path), taken);
  // Nothing is accepted while this does not return to the event loop.
  const waiting: Disposable[] = [];
  t.after(() => {
    for (const each of waiting) each[Symbol.dispose]();
  });
  assert.throws(() => {
    for (;;) waiting.push(dialZds(path, { hello: null, reads: false }));
  }, /^Error: EAGAIN$/);
  assert.throws(() => listen(path), taken);
  assert.ok(first.isOurs());
  assert.deepEqual(readdirSync(join(path, '..')), ['x.sock']);
});

test('one of another type is somebody’s too, and the sentence of ztunnels’ socket names istio-cni', async (t) => {
  const path = join(directory(t), 'ztunnel.sock');
  const server = createServer().listen(path);
  t.after(() => server.close());
  await once(server, 'listening');
  const nobody = { onConnection: () => assert.fail(), onTrouble: () => assert.fail() };
  assert.throws(
    () => openZdsSocket({ path, ...nobody }),
    isRefused(
      'EZDSTAKEN',
      /^somebody answers on ztunnel\.socket \S+ztunnel\.sock already, istio-cni on most nodes, [^.\n]*(?:\.\w[^.\n]*)*$/,
    ),
  );
  assert.ok(server.listening && statSync(path).isSocket());
});

test('a path that is no socket’s is refused and left as it is', (t) => {
  const at = directory(t);
  const socket = join(at, 'other.sock');
  using other = listen(socket);
  writeFileSync(join(at, 'file'), 'text');
  mkdirSync(join(at, 'directory'));
  symlinkSync('nowhere', join(at, 'dangling'));
  symlinkSync(socket, join(at, 'link'));
  for (const name of ['file', 'directory', 'dangling', 'link'])
    assert.throws(
      () => listen(join(at, name)),
      isRefused('ESOCKETPATH', /cannot be used: expected a socket or nothing there, got something else$/),
    );
  assert.throws(
    () => listen(join(at, 'file', 'x.sock')),
    isRefused('ESOCKETPATH', /cannot be used: (?:ENOTDIR|EEXIST)/),
  );
  // What stands in the way of making it is no socket either.
  writeFileSync(join(at, '.x.sock.new'), 'text');
  assert.throws(() => listen(join(at, 'x.sock')), isRefused('ESOCKETPATH', /bind\(\) .* EADDRINUSE/));
  assert.equal(
    readFileSync(join(at, 'file'), 'utf8') + readFileSync(join(at, '.x.sock.new'), 'utf8'),
    'texttext',
  );
  assert.ok(other.isOurs());
});

test('a path that no socket can have is refused with the length that may be', (t) => {
  const at = directory(t);
  const longest = join(at, 'n'.repeat(102 - at.length - 1));
  using listener = listen(longest);
  assert.ok(listener.isOurs());
  dialZds(longest)[Symbol.dispose]();
  for (const path of [`${longest}n`, `${at}/${'é'.repeat(50)}`, `${at}/`, 'relative.sock', '', `${at}/a\0b`])
    assert.throws(
      () => listen(path),
      isRefused('ESOCKETPATH', /expected an absolute path of at most 102 bytes, got \d+$/),
      path,
    );
});

test('it is removed at the end, unless another has taken its place', (t) => {
  const path = join(directory(t), 'x.sock');
  const first = listen(path);
  unlinkSync(path);
  assert.ok(!first.isOurs());
  const second = listen(path);
  assert.ok(!first.isOurs() && second.isOurs());
  first[Symbol.dispose]();
  assert.ok(second.isOurs());
  second[Symbol.dispose]();
  second[Symbol.dispose]();
  assert.deepEqual(readdirSync(join(path, '..')), []);
});

test('a process that runs out of descriptors accepts again when it has some, and does not spin meanwhile', async (t) => {
  const path = join(directory(t), 'x.sock');
  // In a process of its own, as here the report of the tests takes descriptors, too.
  const answer = await must({
    cmd: process.execPath,
    args: [join(import.meta.dirname, 'without-descriptors.ts'), path],
  });
  assert.deepEqual(JSON.parse(answer), { troubles: ['EMFILE'], metWithout: 0, metAfter: 1, isClosed: false });
});
