import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { release } from 'node:os';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { recv, setsockopt, SOL_SOCKET } from '../../native/boundary/libc.ts';
import { openProcConnector } from '../../native/netlink/proc-connector.ts';
import { eventually, run } from '../../deploy/stage/process.ts';

/** <asm-generic/socket.h> */
const SO_DETACH_FILTER = 27;

test('exec events arrive with the PID of the process', async () => {
  const pids: number[] = [];
  using _ = await openProcConnector({
    onExec: (pid) => void pids.push(pid),
    onLost: () => assert.fail('lost'),
    onBroken: assert.fail,
  });
  // One exec of sh and one of env, by the same process.
  const { stdout } = await run({ cmd: 'sh', args: ['-c', 'echo $$; exec env'] });
  const pid = Number(stdout.split('\n')[0]);
  await eventually('both execs', () => pids.filter((each) => each === pid).length === 2);
});

test('forks and exits stay in the kernel', async () => {
  const { fd, ...connector } = await openProcConnector({ onExec() {}, onLost() {}, onBroken: assert.fail });
  using _ = connector;
  // Synchronous, so that what was queued meanwhile can be read here.
  const { pid } = spawnSync('sh', ['-c', 'i=0; while [ $i -lt 200 ]; do (:); i=$((i+1)); done']);
  const kinds = new Set<number>();
  const seen = new Set<number>();
  for (const event = Buffer.alloc(1024); recv(fd, event) > 0; ) {
    const u32 = new Uint32Array(event.buffer, event.byteOffset, 20);
    // PROC_EVENT_NONE is the answer to a subscription, and every subscriber on the host gets it.
    if (u32[36 / 4] !== 0) kinds.add(u32[36 / 4]!);
    seen.add(u32[56 / 4]!);
  }
  assert.ok(seen.has(pid), 'the exec of sh is among them');
  assert.deepEqual([...kinds], [2]); // PROC_EVENT_EXEC
});

test('from Linux 6.6 on, the kernel keeps forks and exits from the socket before its filter sees them', async (t) => {
  const [major = 0, minor = 0] = release().split('.').map(Number);
  if (major < 6 || (major === 6 && minor < 6))
    return t.skip('this kernel has no choice of process events; Linux 6.6 has it');
  const kinds = new Set<number>();
  const { fd, ...connector } = await openProcConnector({
    onExec() {},
    onLost() {},
    onBroken: assert.fail,
    attachFilter: (socket) => setsockopt(socket, SOL_SOCKET, SO_DETACH_FILTER, Buffer.alloc(4), 'no filter'),
  });
  using _ = connector;
  // Synchronous, so that what was queued meanwhile can be read here.
  spawnSync('sh', ['-c', 'i=0; while [ $i -lt 50 ]; do (:); i=$((i+1)); done']);
  for (const event = Buffer.alloc(1024); recv(fd, event) > 0; )
    kinds.add(new Uint32Array(event.buffer, event.byteOffset, 20)[36 / 4] ?? 0);
  kinds.delete(0); // the answer to somebody's subscription, of before
  assert.deepEqual([...kinds], [2]); // PROC_EVENT_EXEC
});

test('an overflow is told, and events go on afterwards', async () => {
  const pids: number[] = [];
  let lost = 0;
  const connector = await openProcConnector({
    receiveBuffer: 2_304,
    onExec: (pid) => void pids.push(pid),
    onLost: () => void lost++,
    onBroken: assert.fail,
  });
  using _ = connector;
  // Synchronous, so that nobody reads meanwhile.
  spawnSync('sh', ['-c', 'for i in $(seq 100); do /bin/true; done']);
  await eventually('the loss is told', () => lost > 0);
  for (let round = 0; round < 3; round++) {
    // With so small a buffer, what else runs on this machine may push one out.
    await eventually('a later exec', async () => {
      const { stdout } = await run({ cmd: 'sh', args: ['-c', 'echo $$'] });
      await delay(20);
      return pids.includes(Number(stdout));
    });
  }
});

test('a closed connector is silent, and another one can be opened beside a third', async () => {
  let first = 0;
  let second = 0;
  const one = await openProcConnector({ onExec: () => void first++, onLost() {}, onBroken: assert.fail });
  using _ = await openProcConnector({ onExec: () => void second++, onLost() {}, onBroken: assert.fail });
  await run({ cmd: 'true' });
  await eventually('both hear it', () => first > 0 && second > 0);
  one[Symbol.dispose]();
  const before = first;
  await run({ cmd: 'true' });
  await delay(50);
  assert.equal(first, before);
});
